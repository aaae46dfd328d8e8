/** Passes a plan to the addon, which performs it on this thread (synchronous form) or on one of its own (promises). */
import { ECHILD } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { addon, type NativeFailure } from '../native.js';
import { type Encoded, encode } from './encode.js';
import { errnoOf, type GuardName, guardOf } from './guard-names.js';
import { onAbort } from './on-abort.js';
import { type Plan, RESULT_SIZE, type Step } from './plan.js';
import { FilledPlan } from './template.js';

/** The failure of a plan that was undone. */
export class StepFailure {
  readonly plan: Plan;
  /** The step that failed; undefined when the plan was cancelled. */
  readonly step: Step | undefined;
  /** The guard that failed: the one that the step is, or one that its call checks by itself. */
  readonly guard: GuardName | undefined;
  /** The kernel's errno as a positive number; 0 when the executor's own guard failed or the plan was cancelled. */
  readonly errno: number;
  /** The errno with which undoing the plan, or an earlier plan of the same call, failed; or 0. */
  undoErrno: number;
  readonly cancelled: boolean;
  /** The kernel's messages, one a line, without the leading mark. */
  readonly kernel: readonly string[];

  constructor(plan: Plan, failure: NativeFailure) {
    this.plan = plan;
    this.step = plan.steps[failure.step];
    this.guard = guardOf(failure.guard ?? -1) ?? this.step?.options.guard;
    this.errno = failure.errno;
    this.undoErrno = failure.undoErrno;
    this.cancelled = failure.cancelled;
    this.kernel = failure.log.map((line) => line.toString().replace(/^[ewi] /, ''));
  }

  /** The errno of an error about this failure: the kernel's, or the one that stands for the guard. */
  get shownErrno(): number {
    return this.errno === 0 && this.guard !== undefined ? errnoOf(this.guard) : this.errno;
  }
}

/**
 * Converts a native failure. Throws when the failure has nothing to do with the plan: that error is the same for all
 * calls.
 */
function toFailure(plan: Plan, failure: NativeFailure): StepFailure {
  if (failure.step < 0 && !failure.cancelled) {
    throw new OverlayError({
      errno: failure.errno,
      reason: 'out-of-threads',
      what: 'no thread could be started for the call',
      syscall: 'clone',
    });
  }
  // The addon's own errno for it. No call of a plan has this one.
  if (failure.errno === ECHILD) {
    throw new OverlayError({
      errno: ECHILD,
      reason: 'process-killed',
      what: 'a process that the library had started for the call was killed',
    });
  }
  return new StepFailure(plan, failure);
}

/** The size of an output that holds the offset and the size of the step's data. */
export const DATA_OUTPUT = 8;

const noData = Buffer.alloc(0);

/** The outputs of a plan's steps. */
export class Outputs {
  readonly #numbers: Int32Array;
  readonly #start: number;
  readonly #data: Buffer;

  constructor(numbers: Int32Array, start: number, data: Buffer = noData) {
    this.#numbers = numbers;
    this.#start = start;
    this.#data = data;
  }

  #half(step: Step, position: number): number {
    return this.#numbers[(this.#start + step.outputAt + RESULT_SIZE + 4 * position) >> 2] as number;
  }

  /** Returns the result of the step's call, or the negated errno that the step tolerates. */
  result(step: Step): number {
    if (step.outputAt < 0) throw new Error(`a step without an output reports no result`);
    return this.#numbers[(this.#start + step.outputAt) >> 2] as number;
  }

  /** Returns the guard that has failed in a step that tolerates this. */
  guard(step: Step): GuardName | undefined {
    return guardOf(-this.result(step) - addon().firstGuard);
  }

  /** Returns the 64-bit number at this position, counted from 0. It is exact below 2^53. */
  number(step: Step, position: number): number {
    return this.#half(step, 2 * position + 1) * 2 ** 32 + (this.#half(step, 2 * position) >>> 0);
  }

  /** Returns the same number with all its bits. */
  bigint(step: Step, position: number): bigint {
    const high = BigInt.asUintN(32, BigInt(this.#half(step, 2 * position + 1)));
    return (high << 32n) | BigInt.asUintN(32, BigInt(this.#half(step, 2 * position)));
  }

  bytes(step: Step, length: number): Buffer {
    const { buffer, byteOffset } = this.#numbers;
    return Buffer.from(new Uint8Array(buffer, byteOffset + this.#start + step.outputAt + RESULT_SIZE, length));
  }

  /**
   * Returns the data of a step whose output size is not known in advance (DATA_OUTPUT). It starts at a multiple of 8
   * bytes.
   */
  data(step: Step): Buffer {
    const offset = this.#half(step, 0);
    return this.#data.subarray(offset, offset + this.#half(step, 1));
  }
}

const noOutputs = new Outputs(new Int32Array(0), 0);

const toBlock = (plan: Plan): Encoded => (plan instanceof FilledPlan ? plan.encode() : encode(plan));

/** Performs a plan on the calling thread. The outputs are valid until the next plan. */
export function performSync(plan: Plan): Outputs | StepFailure {
  const { block, numbers, outputs } = toBlock(plan);
  const outcome = addon().perform(block, plan.lent);
  if (outcome === undefined) return new Outputs(numbers, outputs);
  if (outcome instanceof ArrayBuffer) return new Outputs(numbers, outputs, Buffer.from(outcome));
  return toFailure(plan, outcome);
}

/** The outcome of a plan. */
export type Outcome = Outputs | StepFailure;

let lastToken = 0;

let results: Int32Array | undefined;

/**
 * Returns the outputs at this place among the results. The counter tells the addon that they were taken: it keeps
 * results that nobody has taken yet.
 */
function takeResults(place: number): Outputs {
  results ??= new Int32Array(addon().results);
  results[0] = (results[0] as number) + 1;
  return new Outputs(results, place);
}

/**
 * Performs a plan on another thread. The outputs are valid until the event loop continues, so the caller must read them
 * at once.
 *
 * When the signal aborts, a plan that has not begun is dropped, and a plan that has begun is undone when it is done.
 * The failure then has `cancelled` set.
 */
export function perform(plan: Plan, signal?: AbortSignal): Promise<Outputs | StepFailure> {
  const token = signal === undefined ? 0 : ++lastToken;
  const { block, size } = toBlock(plan);
  const promise = addon().start(block, size, token, plan.lent);
  const forget = signal && onAbort(signal, () => addon().cancel(token));
  // The signal may have aborted after the caller checked it; its event has already fired.
  if (signal?.aborted) addon().cancel(token);
  return promise.then((outcome) => {
    forget?.();
    // Until here, the plan keeps what it has lent.
    plan.lent = undefined;
    if (outcome === undefined) return noOutputs;
    if (typeof outcome === 'number') return takeResults(outcome);
    if (outcome instanceof ArrayBuffer) {
      const hasData = outcome.byteLength > plan.outputsSize;
      return new Outputs(new Int32Array(outcome), 0, hasData ? Buffer.from(outcome, plan.outputsSize) : noData);
    }
    return toFailure(plan, outcome);
  });
}
