/** Inspects a path with statx(2), as a step of a plan. */
import type { Path } from '../paths.js';
import { calls } from './calls.js';
import * as k from './constants.js';
import { type Outputs, performSync, StepFailure } from './perform.js';
import { type Descriptor, Plan, type Step, type StepOptions } from './plan.js';

/** The result of inspecting a path. */
export interface StatResult {
  /** The errno of statx(2) as a positive number, or 0. */
  readonly errno: number;
  /** The S_IFMT bits of the mode; 0 when nothing exists at the path. */
  readonly type: number;
  readonly device: number;
  readonly inode: bigint;
  /** The device number that a device node stands for. */
  readonly represents: number;
  readonly size: number;
  readonly mountId: number;
  readonly isMountRoot: boolean;
  /** The link count: 0 when the file has been removed. Set only when STATX_NLINK is requested. */
  readonly links: number;
  /** True when it is immutable or append-only, which binds every process, even a privileged one: chattr(1). */
  readonly isImmutable: boolean;
  /** True when the kernel reports unique mount ids, which are never reused. */
  readonly hasUniqueMountId: boolean;
}

export const NOT_FOUND: StatResult = {
  errno: 0,
  type: 0,
  device: 0,
  inode: 0n,
  represents: 0,
  size: 0,
  mountId: 0,
  isMountRoot: false,
  links: 1,
  isImmutable: false,
  hasUniqueMountId: false,
};

/** The positions of the 64-bit words of the output: StatxReport in native/plan.h. */
const word = {
  mask: 0,
  mode: 1,
  inode: 2,
  device: 3,
  represents: 4,
  size: 5,
  mountId: 6,
  attributes: 7,
  links: 8,
} as const;
export const STATX_OUTPUT = 72;

/** The size of the output of statfs(2), in 64-bit words: type, flags, blocks, free blocks, inodes, free inodes. */
export const STATFS_OUTPUT = 48;

/** Returns the id of the mount that a look has found. */
export function readMountId(step: Step, outputs: Outputs): number {
  return outputs.number(step, word.mountId);
}

export interface MountIds {
  readonly id: number;
  /** The device number of its file system. */
  readonly device: number;
}

/** Returns the mount id and the device number, which together identify the mount that a look has found. */
export function readMountIds(step: Step, outputs: Outputs): MountIds {
  return { id: readMountId(step, outputs), device: outputs.number(step, word.device) };
}

export interface StatOptions extends StepOptions {
  /** The directory that a relative path starts from. */
  readonly at?: Descriptor;
  /** AT_* */
  readonly flags?: number;
  /** STATX_*; the type is always requested. */
  readonly mask?: number;
}

/** Adds a statx(2) step to a plan. An error of this step does not fail the plan, unless `tolerate` says otherwise. */
export function addStat(plan: Plan, path: Path, options: StatOptions = {}): Step {
  const { at = k.AT_FDCWD, flags = 0, mask = k.STATX_INO, ...rest } = options;
  const args = [at, path, flags | k.AT_STATX_DONT_SYNC, mask | k.STATX_TYPE] as const;
  return plan.stepOf(plan.add(calls.statx, args, { output: STATX_OUTPUT, tolerate: 'any', ...rest }));
}

/** Reads the result of a look. */
export function readStat(step: Step | undefined, outputs: Outputs | StepFailure): StatResult {
  if (step === undefined) return NOT_FOUND;
  if (outputs instanceof StepFailure) return { ...NOT_FOUND, errno: outputs.errno };
  const result = outputs.result(step);
  if (result < 0) return { ...NOT_FOUND, errno: -result };
  const has = (position: number, bit: number) => (outputs.number(step, position) & bit) !== 0;
  return {
    errno: 0,
    type: outputs.number(step, word.mode) & k.S_IFMT,
    device: outputs.number(step, word.device),
    inode: outputs.bigint(step, word.inode),
    represents: outputs.number(step, word.represents),
    size: outputs.number(step, word.size),
    mountId: readMountId(step, outputs),
    isMountRoot: has(word.attributes, k.STATX_ATTR_MOUNT_ROOT),
    links: outputs.number(step, word.links),
    isImmutable: has(word.attributes, k.STATX_ATTR_IMMUTABLE | k.STATX_ATTR_APPEND),
    hasUniqueMountId: has(word.mask, k.STATX_MNT_ID_UNIQUE),
  };
}

/** Inspects one path on the calling thread. */
export function statPathSync(path: Path, options?: StatOptions): StatResult {
  const plan = new Plan();
  const step = addStat(plan, path, options);
  return readStat(step, performSync(plan));
}
