/** Hands a plan to the addon: on this thread (the twins) or on one of the addon's (the promises). */
import { addon, type NativeFailure } from '../native.js';
import { encode } from './encode.js';
import { type Plan, RESULT_SIZE, type Step } from './plan.js';

/** A plan that failed and was taken back. */
export class StepFailure {
  /** The step that failed; undefined when none did (cancelled, or no thread could be started). */
  readonly step: Step | undefined;
  /** A positive number; 0 when cancelled. */
  readonly errno: number;
  /** The errno with which taking back failed, or 0. */
  readonly undoErrno: number;
  readonly cancelled: boolean;
  /** What the kernel said about it, a line each, without the mark in front. */
  readonly kernel: readonly string[];

  constructor(step: Step | undefined, failure: Omit<NativeFailure, 'step'>) {
    this.step = step;
    this.errno = failure.errno;
    this.undoErrno = failure.undoErrno;
    this.cancelled = failure.cancelled;
    this.kernel = failure.log.map((line) => line.toString().replace(/^[ewi] /, ''));
  }
}

/** What a plan's steps reported. */
export class Outputs {
  readonly #bytes: ArrayBufferLike;
  readonly #start: number;

  constructor(bytes: ArrayBufferLike, start: number) {
    this.#bytes = bytes;
    this.#start = start;
  }

  #at(step: Step): number {
    return this.#start + step.outputAt;
  }

  /** What the step's call returned, or minus the errno that the step tolerates. */
  result(step: Step): number {
    return new Int32Array(this.#bytes, this.#at(step), 1)[0] as number;
  }

  /** The 64-bit numbers that the call returned. */
  words(step: Step, count: number): BigUint64Array {
    return new BigUint64Array(this.#bytes, this.#at(step) + RESULT_SIZE, count);
  }

  bytes(step: Step, length: number): Buffer {
    return Buffer.from(new Uint8Array(this.#bytes, this.#at(step) + RESULT_SIZE, length));
  }
}

/** The outputs are valid until the next plan. */
export function performSync(plan: Plan): Outputs | StepFailure {
  const { block, outputs } = encode(plan);
  const failure = addon().perform(block);
  if (failure !== undefined) return new StepFailure(plan.steps[failure.step], failure);
  return new Outputs(block.buffer, outputs);
}

let lastToken = 0;

/**
 * When the signal aborts, what has not begun does not, and what has is taken back when it is done; the
 * failure then says `cancelled`.
 */
export async function perform(plan: Plan, signal?: AbortSignal): Promise<Outputs | StepFailure> {
  const native = addon();
  const token = signal === undefined ? 0 : ++lastToken;
  const { block, size } = encode(plan);
  const started = native.start(block, size, token);
  let outcome: ArrayBuffer | NativeFailure;
  if (signal === undefined) {
    outcome = await started;
  } else {
    const cancel = () => native.cancel(token);
    signal.addEventListener('abort', cancel, { once: true });
    try {
      outcome = await started;
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }
  if (outcome instanceof ArrayBuffer) return new Outputs(outcome, 0);
  return new StepFailure(plan.steps[outcome.step], outcome);
}
