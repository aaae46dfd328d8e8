/** The type of a rule, and the functions that rules share. */
import * as e from '../errnos.js';
import type { OverlayErrorFields } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import type { StepFailure } from '../kernel/perform.js';
import type { Subject } from '../kernel/plan.js';
import type { CheckedOptions } from '../options/check.js';
import { type Path, pathString, quotePath } from '../paths.js';
import type { Facts, FileSystemFacts, PathFacts, ProcessFacts } from './facts.js';

/** A mount that failed or is only planned, and the facts about it. */
export interface Scene {
  readonly options: CheckedOptions;
  readonly facts: Facts;
  /** Undefined if no mount was tried. */
  readonly failure: StepFailure | undefined;
}

/** A cause. Its `hint` replaces the text of lib/reasons.ts, if this cause needs another remedy. */
export type Cause = Pick<OverlayErrorFields, 'reason' | 'what' | 'hint' | 'path' | 'dest'> & {
  /** Set if it differs from the errno of the failure. */
  readonly errno?: number;
};

export interface Rule {
  /** True if the rule can explain a failure. */
  readonly when: (failure: StepFailure) => boolean;
  readonly find: (scene: Scene) => Cause | undefined;
  /** True if the rule works without a failure: its findings would stop a mount or make it wrong. */
  readonly foresees?: true;
}

/** Names a path: `the lowerdir '/a'`, with its index if there are several. */
export function nameOf(subject: Subject, options: CheckedOptions): string {
  const which =
    (subject.role === 'lowerdir' && options.lowerdir.length > 1) ||
    (subject.role === 'datadir' && options.datadir.length > 1)
      ? `[${subject.index}]`
      : '';
  return `the ${subject.role}${which} ${quotePath(subject.path)}`;
}

export const isLower = ({ subject: { role } }: PathFacts): boolean => role === 'lowerdir' || role === 'datadir';
export const isUpper = ({ subject: { role } }: PathFacts): boolean => role === 'upperdir' || role === 'workdir';
export const isLayer = ({ subject: { role } }: PathFacts): boolean => role !== 'target';

export const findRole = ({ paths }: Facts, role: Subject['role']): PathFacts | undefined =>
  paths.find(({ subject }) => subject.role === role);

/**
 * Returns the path that the failed step is about. Undefined if the step is about none, or about several: the layers that
 * are passed as one `lowerdir`, or the options of mount(2).
 */
export function findSubject({ failure, facts }: Scene): PathFacts | undefined {
  const subject = failure?.step?.options.subject;
  if (subject === undefined) return undefined;
  return facts.paths.find(({ subject: { role, index } }) => role === subject.role && index === subject.index);
}

/** A guard has found the new superblock read-only. */
export const cameOutReadOnly = ({ guard }: StepFailure): boolean => guard === 'superblock-is-read-only';

/** Returns true if the step makes the superblock. The kernel checks all layers at once there. */
export function isCreation({ step }: StepFailure): boolean {
  return step?.call === calls.mount || (step?.call === calls.fsconfig && step.args[1] === k.FSCONFIG_CMD_CREATE);
}

/** Returns true if the step passes a layer or an option to the kernel. */
export const isSetting = ({ step }: StepFailure): boolean =>
  step?.call === calls.fsconfig && step.args[1] !== k.FSCONFIG_CMD_CREATE;

/** Linux 5.10 answers EROFS for a read-only upperdir, later kernels EINVAL. */
export const refusesLayers = (failure: StepFailure): boolean =>
  (failure.errno === e.EINVAL && (isCreation(failure) || isSetting(failure))) ||
  (failure.errno === e.EROFS && isCreation(failure));

/** Names a file system: `ramfs`. A detached overlay has no entry in the mount table. */
export function fileSystemName({ mount, fileSystem }: PathFacts): string {
  if (fileSystem?.magic === k.OVERLAYFS_SUPER_MAGIC) return 'overlay';
  return mount?.type ?? (fileSystem === undefined ? 'unknown' : `of magic 0x${fileSystem.magic.toString(16)}`);
}

/** Returns the verdict for an upperdir or workdir that is read-only. */
export const isReadOnly = (name: string, { subject, mount }: PathFacts): Cause => ({
  reason: 'upper-read-only',
  what: `${name} is on a read-only file system or mount${mount === undefined ? '' : `, at ${quotePath(mount.target)}`}`,
  path: pathString(subject.path),
});

const isFull = ({ blocks, freeBlocks }: FileSystemFacts): boolean => blocks > 0 && freeBlocks === 0;
const hasNoInodes = ({ inodes, freeInodes }: FileSystemFacts): boolean => inodes > 0 && freeInodes === 0;

/** More than the inodes that a mount makes, and fewer blocks than a file system has that is not full. */
const FEW = 16;
const hasFewInodes = ({ inodes, freeInodes, freeBlocks }: FileSystemFacts): boolean =>
  inodes > 0 && freeInodes < FEW && freeBlocks >= FEW;

/** Returns the verdict for a path whose file system has no space or no inode left. */
export function outOfRoom({ subject, fileSystem }: PathFacts, { options, failure }: Scene): Cause | undefined {
  if (fileSystem === undefined) return undefined;
  const name = nameOf(subject, options);
  const path = pathString(subject.path);
  if (isFull(fileSystem)) return { reason: 'out-of-space', what: `the file system of ${name} is full`, path };
  if (hasNoInodes(fileSystem)) {
    return { reason: 'out-of-inodes', what: `the file system of ${name} has no inode left`, path };
  }
  // The undo has given back those that the plan had taken.
  if (failure?.errno === e.ENOSPC && hasFewInodes(fileSystem)) {
    return { reason: 'out-of-inodes', what: `the file system of ${name} has too few inodes left`, path };
  }
  return undefined;
}

/** Returns ` at '/m'` for a mount that has a target, else nothing. */
export const place = ({ target }: CheckedOptions): string => (target === undefined ? '' : ` at ${quotePath(target)}`);

/** Returns the path field of an error, if there is a path. */
export const pathField = (path: Path | undefined): { readonly path?: string } =>
  path === undefined ? {} : { path: pathString(path) };

export const show = (path: Path | undefined): string => (path === undefined ? 'it' : quotePath(path));

export const CAP_DAC_OVERRIDE = 1n << 1n;
export const CAP_SYS_ADMIN = 1n << 21n;
export const hasCapability = ({ capabilities }: ProcessFacts, capability: bigint): boolean =>
  (capabilities & capability) !== 0n;
