/**
 * The attempts to unmount something. While it is busy they go on as long as the caller wants; the kernel does not
 * tell when that ends, so it is asked again, in between no thread is kept.
 */
import { setTimeout } from 'node:timers/promises';
import * as e from '../errnos.js';
import { abortError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { type Outputs, perform, performSync, StepFailure } from '../kernel/perform.js';
import type { Plan } from '../kernel/plan.js';

export interface Waiting {
  /** In ms. */
  readonly timeout?: number;
  readonly signal?: AbortSignal;
}

/** What came of it; undefined when another attempt has done it. */
type Outcome = Outputs | StepFailure | undefined;

/** In ms. */
const LONGEST_PAUSE = 50;
/** How long an attempt on the calling thread waits for one under way, in ms. */
const UNDER_WAY = 100;

const sleepWord = new Int32Array(new SharedArrayBuffer(4));

/** Pauses that grow from a millisecond, until time is over. */
class Pauses {
  readonly #end: number;
  #next = 1;

  constructor(timeout: number) {
    this.#end = performance.now() + timeout;
  }

  /** The next one, in ms; undefined when no time is left. */
  next(): number | undefined {
    const left = this.#end - performance.now();
    if (!(left > 0)) return undefined;
    const pause = Math.min(this.#next, left);
    this.#next = Math.min(this.#next * 2, LONGEST_PAUSE);
    return pause;
  }
}

const isBusy = (outcome: Outcome): boolean =>
  outcome instanceof StepFailure && outcome.errno === e.EBUSY && outcome.step?.call === calls.umount2;

/** Whether the mount is gone, for all that what was to follow may have failed. */
const isGone = (outcome: Outcome): boolean =>
  !(outcome instanceof StepFailure) || outcome.step?.call === calls.use_of || outcome.step?.call === calls.unlinkat;

const isGoneAlready = (outcome: Outcome): boolean =>
  outcome instanceof StepFailure && !outcome.cancelled && (outcome.errno === e.ESTALE || outcome.errno === e.EINVAL);

/** Those at one mount come one after the other: each holds it for a moment itself. */
export class Attempts {
  #isDone = false;
  #underWay: Promise<Outcome> | undefined;

  get isDone(): boolean {
    return this.#isDone;
  }

  /** Performs a plan made anew for each attempt. */
  async perform(
    plan: () => Plan,
    { signal, timeout = signal === undefined ? 0 : Infinity }: Waiting,
  ): Promise<Outcome> {
    const pauses = timeout > 0 ? new Pauses(timeout) : undefined;
    for (;;) {
      while (this.#underWay !== undefined) await this.#underWay.catch(() => {});
      if (signal?.aborted) throw abortError(signal);
      if (this.#isDone) return undefined;
      const attempt = perform(plan(), signal);
      this.#underWay = attempt;
      let outcome: Outcome;
      try {
        outcome = await attempt;
      } finally {
        this.#underWay = undefined;
      }
      // The other form of the call was quicker, or held the mount at that moment.
      if (this.#isDone && (isGoneAlready(outcome) || isBusy(outcome))) return undefined;
      this.#isDone ||= isGone(outcome);
      if (signal && outcome instanceof StepFailure && outcome.cancelled) throw abortError(signal);
      const pause = isBusy(outcome) ? pauses?.next() : undefined;
      if (pause === undefined) return outcome;
      await setTimeout(pause, undefined, { ...(signal && { signal }) }).catch((error: unknown) => {
        throw signal?.aborted ? abortError(signal) : error;
      });
    }
  }

  /** The same on the calling thread, which waits; a signal cannot end that. */
  performSync(plan: () => Plan, { signal, timeout = 0 }: Waiting): Outcome {
    if (signal?.aborted) throw abortError(signal);
    const pauses = timeout > 0 ? new Pauses(timeout) : undefined;
    const others = this.#underWay && new Pauses(UNDER_WAY);
    for (;;) {
      if (this.#isDone) return undefined;
      const outcome = performSync(plan());
      if (this.#underWay !== undefined && isGoneAlready(outcome)) return undefined;
      this.#isDone ||= isGone(outcome);
      const isWaitedFor = isBusy(outcome);
      const pause = isWaitedFor ? (pauses?.next() ?? others?.next()) : undefined;
      if (pause === undefined) return outcome;
      Atomics.wait(sleepWord, 0, 0, pause);
    }
  }
}
