/** Hands a plan to the addon: on this thread (the twins) or on one of the addon's (the promises). */
import { addon, type NativeFailure } from '../native.js';
import { encode } from './encode.js';
import { type Plan, RESULT_SIZE, type Step } from './plan.js';

/** A plan that failed and was taken back. */
export class StepFailure {
  /** The step that failed; undefined when none did (cancelled, or no thread could be started). */
  readonly step: Step | undefined;
  readonly index: number;
  /** A positive number; 0 when cancelled. */
  readonly errno: number;
  /** The errno with which taking back failed, or 0. */
  readonly undoErrno: number;
  readonly cancelled: boolean;
  /** What the kernel said about it, a line each, without the mark in front. */
  readonly kernel: readonly string[];

  constructor(plan: Plan, failure: NativeFailure) {
    this.step = plan.steps[failure.step];
    this.index = failure.step;
    this.errno = failure.errno;
    this.undoErrno = failure.undoErrno;
    this.cancelled = failure.cancelled;
    this.kernel = failure.log.map((line) => line.toString().replace(/^[ewi] /, ''));
  }
}

/** What a plan's steps reported. */
export class Outputs {
  readonly #view: DataView;

  constructor(view: DataView) {
    this.#view = view;
  }

  /** What the step's call returned, or minus the errno that the step tolerates. */
  result(step: Step): number {
    return this.#view.getInt32(step.outputAt, true);
  }

  /** The 64-bit number at this position, from 0, of what the call returned. */
  word(step: Step, position: number): bigint {
    return this.#view.getBigUint64(step.outputAt + RESULT_SIZE + 8 * position, true);
  }

  bytes(step: Step, length: number): Buffer {
    return Buffer.from(
      new Uint8Array(this.#view.buffer, this.#view.byteOffset + step.outputAt + RESULT_SIZE, length),
    );
  }
}

/** The words of a `statx` step's output, in the order of native/plan.cc. */
export const statxWord = { mask: 0, mode: 1, ino: 2, dev: 3, rdev: 4, size: 5, mountId: 6, attributes: 7 } as const;
export const STATX_OUTPUT = 64;
/** The words of an `fstatfs` step's output. */
export const statfsWord = { type: 0, flags: 1 } as const;
export const STATFS_OUTPUT = 16;

/** The outputs are valid until the next plan. */
export function performSync(plan: Plan): Outputs | StepFailure {
  const { block, outputs } = encode(plan);
  const failure = addon().perform(block);
  if (failure !== undefined) return new StepFailure(plan, failure);
  return new Outputs(new DataView(block.buffer, block.byteOffset + outputs, plan.outputsSize));
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
  if (outcome instanceof ArrayBuffer) return new Outputs(new DataView(outcome));
  return new StepFailure(plan, outcome);
}
