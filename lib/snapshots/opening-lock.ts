/**
 * Transactions and openings exclude each other, in all processes: flock(2) on the directory of the snapshots. Each process
 * that opens a file tells lmdb's other processes the number of the transaction that it has read there. One that was
 * committed in between would be lost: the next transaction begins where the older one ended.
 */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { Plan } from '../kernel/plan.js';
import { askTolerant, run, runSync, type Task } from '../kernel/task.js';

/** In ms: transactions that overlap hold the lock together for about this long. Then one that opens has its turn. */
const MOST_HELD = 50;

/** Returns whether the lock was got, or cannot be had on this file system. */
function* flock(descriptor: number, operation: number): Task<boolean> {
  const plan = new Plan();
  const step = plan.stepOf(plan.add(calls.flock, [descriptor, operation], { output: 0, tolerate: 'any' }));
  return (yield* askTolerant(plan)).result(step) !== -e.EAGAIN;
}

export class OpeningLock {
  readonly #descriptor: number;
  #holders = 0;
  #since = 0;
  /** Fulfilled when the lock is there. */
  #taken: Promise<unknown> | undefined;
  /** Fulfilled when the last holder has gone. */
  #free: Promise<void> = Promise.resolve();
  #onFree: () => void = () => {};

  /** `descriptor`: the directory, which this object has for itself. */
  constructor(descriptor: number) {
    this.#descriptor = descriptor;
  }

  /** Calls a function that opens the file, while nobody writes. */
  async whileOpening<T>(open: () => T): Promise<T> {
    await run(flock(this.#descriptor, k.LOCK_EX));
    try {
      return open();
    } finally {
      this.#release();
    }
  }

  /**
   * Performs transactions, while nobody opens the file. The calling thread never waits for the lock: it may itself have to
   * go on with the opening that holds it.
   */
  async whileWriting<T>(write: () => Promise<T>): Promise<T> {
    while (this.#holders > 0 && performance.now() - this.#since > MOST_HELD) await this.#free;
    if (this.#holders++ === 0) {
      this.#since = performance.now();
      this.#free = new Promise((resolve) => (this.#onFree = resolve));
      const isThere = runSync(flock(this.#descriptor, k.LOCK_SH | k.LOCK_NB));
      this.#taken = isThere ? undefined : run(flock(this.#descriptor, k.LOCK_SH));
    }
    try {
      if (this.#taken !== undefined) await this.#taken;
      return await write();
    } finally {
      if (--this.#holders === 0) {
        this.#release();
        this.#onFree();
      }
    }
  }

  #release(): void {
    runSync(flock(this.#descriptor, k.LOCK_UN));
  }
}
