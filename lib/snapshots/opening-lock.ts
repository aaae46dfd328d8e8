/**
 * Openings of a file exclude transactions and closings, in all processes: flock(2) on the directory of the snapshots. Each
 * process that opens a file tells lmdb's other processes the number of the transaction that it has read there. One that was
 * committed in between would be lost: the next transaction begins where the older one ended. And the last process that
 * closes a file destroys the mutexes in it, which one that opens it at this moment would use.
 */
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, run, runSync, type Task } from '../kernel/task.js';
import { addon } from '../native.js';

/** In ms: transactions that overlap hold the lock together for about this long. Then one that opens has its turn. */
const MOST_HELD = 50;

/** Returns false if a lock is taken, or the file system has no such locks. */
function* flock(...locks: readonly (readonly [descriptor: number, operation: number])[]): Task<boolean> {
  const plan = new Plan();
  for (const lock of locks) plan.add(calls.flock, lock);
  return !((yield* ask(plan)) instanceof StepFailure);
}

export class OpeningLock {
  readonly #descriptor: number;
  /** Held by those that wait for the lock. Others come after them: else those that share the lock would keep it for ever. */
  readonly #queue: number;
  #holders = 0;
  #since = 0;
  /** Fulfilled when the lock is there. */
  #taken: Promise<unknown> | undefined;
  /** Fulfilled when the last holder has gone. */
  #free: Promise<void> = Promise.resolve();
  #onFree: () => void = () => {};

  /** Two directories, which this object has for itself. */
  constructor(descriptor: number, queue: number) {
    this.#descriptor = descriptor;
    this.#queue = queue;
  }

  /** Calls a function that opens the file, while nobody writes or closes it. */
  async whileOpening<T>(open: () => Promise<T>): Promise<T> {
    await run(flock([this.#queue, k.LOCK_EX], [this.#descriptor, k.LOCK_EX]));
    try {
      const opened = await open();
      addon().shareAtEnd(this.#descriptor, true);
      return opened;
    } finally {
      runSync(flock([this.#descriptor, k.LOCK_UN], [this.#queue, k.LOCK_UN]));
    }
  }

  #share(how: number): Task<boolean> {
    const shared = k.LOCK_SH | how;
    return flock([this.#queue, shared], [this.#descriptor, shared], [this.#queue, k.LOCK_UN]);
  }

  /**
   * Performs transactions or a closing, while nobody opens the file. The calling thread never waits for the lock: it may
   * itself have to go on with the opening that holds it.
   */
  async whileUsing<T>(use: () => Promise<T>): Promise<T> {
    while (this.#holders > 0 && performance.now() - this.#since > MOST_HELD) await this.#free;
    if (this.#holders++ === 0) {
      this.#since = performance.now();
      this.#free = new Promise((resolve) => (this.#onFree = resolve));
      this.#taken = runSync(this.#share(k.LOCK_NB)) ? undefined : run(this.#share(0));
    }
    try {
      if (this.#taken !== undefined) await this.#taken;
      return await use();
    } finally {
      if (--this.#holders === 0) {
        runSync(flock([this.#descriptor, k.LOCK_UN]));
        this.#onFree();
      }
    }
  }

  /** Performs the closing of the file, as `whileUsing`. */
  async whileClosing(close: () => Promise<void>): Promise<void> {
    await this.whileUsing(close);
    addon().shareAtEnd(this.#descriptor, false);
  }
}
