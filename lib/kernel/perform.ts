/** Hands a plan to the addon: on this thread (the twins) or on one of the addon's (the promises). */
import { OverlayError } from '../errors.js';
import { addon, type NativeFailure } from '../native.js';
import { type Encoded, encode } from './encode.js';
import { onAbort } from './on-abort.js';
import { type Plan, RESULT_SIZE, type Step } from './plan.js';
import { FilledPlan } from './template.js';

/** A plan that failed and was taken back. */
export class StepFailure {
  readonly plan: Plan;
  /** The step that failed; undefined when cancelled. */
  readonly step: Step | undefined;
  /** A positive number; 0 when cancelled. */
  readonly errno: number;
  /** The errno with which taking back failed, or 0. */
  readonly undoErrno: number;
  readonly cancelled: boolean;
  /** What the kernel said about it, a line each, without the mark in front. */
  readonly kernel: readonly string[];

  constructor(plan: Plan, failure: NativeFailure) {
    this.plan = plan;
    this.step = plan.steps[failure.step];
    this.errno = failure.errno;
    this.undoErrno = failure.undoErrno;
    this.cancelled = failure.cancelled;
    this.kernel = failure.log.map((line) => line.toString().replace(/^[ewi] /, ''));
  }
}

/** What has nothing to do with the plan is an error here, the same for all calls. */
function toFailure(plan: Plan, failure: NativeFailure): StepFailure {
  if (failure.step < 0 && !failure.cancelled) {
    throw new OverlayError({
      errno: failure.errno,
      reason: 'out-of-threads',
      what: 'no thread could be started for the call',
      syscall: 'clone',
    });
  }
  return new StepFailure(plan, failure);
}

/** The size of an output that says where the step's data is. */
export const DATA_OUTPUT = 8;

const noData = Buffer.alloc(0);

/** What a plan's steps reported. */
export class Outputs {
  readonly #numbers: Int32Array;
  readonly #start: number;
  readonly #data: Buffer;

  constructor(numbers: Int32Array, start: number, data = noData) {
    this.#numbers = numbers;
    this.#start = start;
    this.#data = data;
  }

  #half(step: Step, position: number): number {
    return this.#numbers[(this.#start + step.outputAt + RESULT_SIZE + 4 * position) >> 2] as number;
  }

  /** What the step's call returned, or minus the errno that the step tolerates. */
  result(step: Step): number {
    return this.#numbers[(this.#start + step.outputAt) >> 2] as number;
  }

  /** The 64-bit number at this position, from 0, exact below 2^53. */
  number(step: Step, position: number): number {
    return this.#half(step, 2 * position + 1) * 2 ** 32 + (this.#half(step, 2 * position) >>> 0);
  }

  /** The same with all its bits. */
  bigint(step: Step, position: number): bigint {
    const high = BigInt.asUintN(32, BigInt(this.#half(step, 2 * position + 1)));
    return (high << 32n) | BigInt.asUintN(32, BigInt(this.#half(step, 2 * position)));
  }

  bytes(step: Step, length: number): Buffer {
    const { buffer, byteOffset } = this.#numbers;
    return Buffer.from(new Uint8Array(buffer, byteOffset + this.#start + step.outputAt + RESULT_SIZE, length));
  }

  /** What a step has found whose size nobody knew before (DATA_OUTPUT). It begins at a multiple of 8 bytes. */
  data(step: Step): Buffer {
    const offset = this.#half(step, 0);
    return this.#data.subarray(offset, offset + this.#half(step, 1));
  }
}

const noOutputs = new Outputs(new Int32Array(0), 0);

const toBlock = (plan: Plan): Encoded => (plan instanceof FilledPlan ? plan.encode() : encode(plan));

/** The outputs are valid until the next plan. */
export function performSync(plan: Plan): Outputs | StepFailure {
  const { block, numbers, outputs } = toBlock(plan);
  const outcome = addon().perform(block);
  if (outcome === undefined) return new Outputs(numbers, outputs);
  if (outcome instanceof ArrayBuffer) return new Outputs(numbers, outputs, Buffer.from(outcome));
  return toFailure(plan, outcome);
}

/** What comes of a plan. */
export type Outcome = Outputs | StepFailure;

let lastToken = 0;

let results: Int32Array | undefined;

/** The outputs at a place among the results, which is counted: what nobody has come for yet, stays. */
function takeResults(place: number): Outputs {
  results ??= new Int32Array(addon().results);
  results[0] = (results[0] as number) + 1;
  return new Outputs(results, place);
}

/**
 * The outputs are valid until the event loop goes on: whoever awaits them reads them at once.
 *
 * When the signal aborts, what has not begun does not, and what has is taken back when it is done; the
 * failure then says `cancelled`.
 */
export function perform(plan: Plan, signal?: AbortSignal): Promise<Outputs | StepFailure> {
  const token = signal === undefined ? 0 : ++lastToken;
  const { block, size } = toBlock(plan);
  const promise = addon().start(block, size, token);
  const forget = signal && onAbort(signal, () => addon().cancel(token));
  // The signal may have aborted after the caller checked it; its event has already fired.
  if (signal?.aborted) addon().cancel(token);
  return promise.then((outcome) => {
    forget?.();
    if (outcome === undefined) return noOutputs;
    if (typeof outcome === 'number') return takeResults(outcome);
    if (outcome instanceof ArrayBuffer) {
      const hasData = outcome.byteLength > plan.outputsSize;
      return new Outputs(new Int32Array(outcome), 0, hasData ? Buffer.from(outcome, plan.outputsSize) : noData);
    }
    return toFailure(plan, outcome);
  });
}
