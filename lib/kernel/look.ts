/** A look at a path, as a step of a plan: statx(2). */
import type { Path } from '../paths.js';
import * as k from './constants.js';
import { type Outputs, StepFailure } from './perform.js';
import type { Descriptor, Plan, Step, StepOptions } from './plan.js';

/** What is at a path. */
export interface Found {
  /** 0, or the errno of the look, a positive number. */
  readonly errno: number;
  /** The S_IFMT bits of its mode; 0 when nothing is there. */
  readonly type: number;
  readonly device: bigint;
  readonly inode: bigint;
  /** The device that a device node stands for. */
  readonly represents: bigint;
  readonly size: bigint;
  readonly mountId: bigint;
  readonly isMountRoot: boolean;
  /** Whether this kernel gives mount ids that are never used again. */
  readonly hasUniqueMountId: boolean;
}

export const NOT_FOUND: Found = {
  errno: 0,
  type: 0,
  device: 0n,
  inode: 0n,
  represents: 0n,
  size: 0n,
  mountId: 0n,
  isMountRoot: false,
  hasUniqueMountId: false,
};

/** The 64-bit words of the output, in the order of native/plan.cc. */
const WORDS = 8;
export const STATX_OUTPUT = WORDS * 8;

export interface LookOptions extends StepOptions {
  /** The directory that a relative path begins in. */
  readonly at?: Descriptor;
  /** AT_* */
  readonly flags?: number;
  /** STATX_*; the type is always asked for. */
  readonly mask?: number;
}

/** Adds a look. That nothing is found does not fail the plan, unless `tolerate` says otherwise. */
export function addLook(plan: Plan, path: Path, options: LookOptions = {}): Step {
  const { at = k.AT_FDCWD, flags = 0, mask = k.STATX_INO, ...rest } = options;
  const args = [at, path, flags | k.AT_STATX_DONT_SYNC, mask | k.STATX_TYPE];
  return plan.stepOf(plan.add('statx', args, { output: STATX_OUTPUT, tolerate: 'any', ...rest }));
}

/** What a look has found. */
export function readLook(step: Step | undefined, outputs: Outputs | StepFailure): Found {
  if (step === undefined) return NOT_FOUND;
  if (outputs instanceof StepFailure) return { ...NOT_FOUND, errno: outputs.errno };
  const result = outputs.result(step);
  if (result < 0) return { ...NOT_FOUND, errno: -result };
  const [mask, mode, inode, device, represents, size, mountId, attributes] = outputs.words(
    step,
    WORDS,
  ) as unknown as [bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint];
  return {
    errno: 0,
    type: Number(mode) & k.S_IFMT,
    device,
    inode,
    represents,
    size,
    mountId,
    isMountRoot: (attributes & BigInt(k.STATX_ATTR_MOUNT_ROOT)) !== 0n,
    hasUniqueMountId: (mask & BigInt(k.STATX_MNT_ID_UNIQUE)) !== 0n,
  };
}
