/**
 * Attempts to unmount something. While the mount is busy, they are repeated for as long as the caller allows. The
 * kernel does not report when a mount becomes free, so the library tries again. No thread waits between the attempts.
 */
import * as e from '../errnos.js';
import { abortError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import type { Plan } from '../kernel/plan.js';
import type { SharedLock } from '../kernel/shared-lock.js';
import { ask, inEitherForm, pause, run, runSync, type Task } from '../kernel/task.js';

export interface Waiting {
  /** In ms. Default 0. */
  readonly timeout?: number;
  readonly signal?: AbortSignal;
}

/** The outcome of an attempt; undefined when another attempt has unmounted the mount. */
type Outcome = Outputs | StepFailure | undefined;

/** In ms. */
const LONGEST_PAUSE = 50;
/** How long an attempt on the calling thread waits for promises of the same mount, in ms. */
const UNDER_WAY = 100;

/** Pauses that grow from one millisecond until the timeout has passed. */
export class Pauses {
  readonly #end: number;
  #next = 1;

  constructor(timeout: number) {
    this.#end = performance.now() + timeout;
  }

  /** Returns the next pause in ms; undefined when the timeout has passed. */
  next(): number | undefined {
    const left = this.#end - performance.now();
    if (!(left > 0)) return undefined;
    const length = Math.min(this.#next, left);
    this.#next = Math.min(this.#next * 2, LONGEST_PAUSE);
    return length;
  }
}

export const isBusy = (outcome: Outcome): outcome is StepFailure =>
  outcome instanceof StepFailure && outcome.errno === e.EBUSY && outcome.step?.call === calls.umount2;

const isGoneAlready = (outcome: Outcome): boolean =>
  outcome instanceof StepFailure &&
  !outcome.cancelled &&
  (outcome.guard === 'mount-is-another' || outcome.errno === e.EINVAL);

/**
 * The attempts to unmount one mount. Each takes the lock of its own, because a concurrent use would make the mount busy.
 */
export class Attempts {
  readonly #lock: SharedLock | undefined;
  #isDone = false;
  #isUnderWay = false;

  constructor(lock?: SharedLock) {
    this.#lock = lock;
  }

  /** True when an attempt has succeeded. */
  get isDone(): boolean {
    return this.#isDone;
  }

  /** Performs a plan until it succeeds or time runs out. Each attempt builds the plan anew. */
  *perform(plan: () => Plan, { signal, timeout = 0 }: Waiting, isDetached = false): Task<Outcome> {
    const pauses = timeout > 0 ? new Pauses(timeout) : undefined;
    let others: Pauses | undefined;
    for (;;) {
      if (signal?.aborted) throw abortError(signal);
      if (this.#isDone) return undefined;
      const outcome = yield* this.#attempt(plan, signal, isDetached);
      // Another attempt was faster, or held the mount at that moment.
      if ((this.#isDone || this.#isUnderWay) && isGoneAlready(outcome)) return undefined;
      if (this.#isDone && isBusy(outcome)) return undefined;
      this.#isDone ||= !(outcome instanceof StepFailure);
      if (signal && outcome instanceof StepFailure && outcome.cancelled) throw abortError(signal);
      if (!isBusy(outcome)) return outcome;
      if (this.#lock?.isTaken) others ??= new Pauses(UNDER_WAY);
      const length = pauses?.next() ?? others?.next();
      if (length === undefined) return outcome;
      yield* pause(length, signal);
    }
  }

  *#attempt(plan: () => Plan, signal: AbortSignal | undefined, isDetached: boolean): Task<Outcome> {
    const lock = this.#lock;
    if (lock === undefined) return yield* ask(plan(), signal);
    // The kernel decides if other calls keep an attached mount busy.
    const perform = () => ask(plan());
    return yield* inEitherForm<Outcome>(
      () => run(lock.exclude(() => this.#performAlone(plan, signal))),
      () => runSync(isDetached ? lock.exclude(perform) : this.#isUnderWay ? perform() : lock.share(perform)),
    );
  }

  *#performAlone(plan: () => Plan, signal: AbortSignal | undefined): Task<Outcome> {
    if (this.#isDone) return undefined;
    this.#isUnderWay = true;
    try {
      return yield* ask(plan(), signal);
    } finally {
      this.#isUnderWay = false;
    }
  }
}
