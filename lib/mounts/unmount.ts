/** Unmounting: umount2(2), what its errnos mean, and the work directory that an overlay leaves behind. */
import { checkBoolean, checkNames, toOptions } from '../arguments.js';
import { conflictingOptions, OverlayError, type OverlayErrorFields } from '../errors.js';
import * as k from '../kernel/constants.js';
import * as e from '../kernel/errnos.js';
import { type Outputs, perform, performSync, StepFailure, STATX_OUTPUT, statxWord } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { findOption, unescapeLayer } from '../mount-strings.js';
import {
  joinPath,
  type Path,
  type PathLike,
  pathString,
  quotePath,
  toAbsolute,
  toPath,
  withoutTrailingSlashes,
} from '../paths.js';
import { readMountinfo } from './mountinfo.js';

export interface UnmountOptions {
  /**
   * Takes the mount, with all mounts inside it, out of sight now and frees it when its last user ends
   * (MNT_DETACH). Until then an upperdir stays in use. Default false.
   */
  detach?: boolean;
  /** MNT_FORCE. OverlayFS itself has nothing to force; a busy overlay stays busy. Default false. */
  force?: boolean;
  /** Whether a target that is a symbolic link is followed. Default false (UMOUNT_NOFOLLOW). */
  followSymlinks?: boolean;
  /**
   * Removes the overlay's workdir afterwards: `work/work` and the directory itself, by rmdir(2), nothing
   * recursive. Default false.
   */
  removeWork?: boolean;
}

const names: ReadonlySet<string> = new Set(['detach', 'force', 'followSymlinks', 'removeWork']);

/** What is to be unmounted. */
export interface Mounted {
  /** Absolute. */
  readonly path: Path;
  /** The mount's id, when only this very mount will do. */
  readonly id?: number;
  /** Its workdir, when known. */
  readonly workdir?: Path | undefined;
}

export function checkUnmountOptions(options: UnmountOptions | undefined): UnmountOptions {
  const checked = toOptions(options);
  checkNames(checked, names);
  for (const name of names) checkBoolean(checked[name as keyof UnmountOptions], name);
  if (checked.detach && checked.removeWork) {
    throw conflictingOptions(
      '"removeWork" cannot go with "detach": a detached overlay may still use its workdir',
      'leave one of the two out',
    );
  }
  return checked;
}

export function toMounted(target: PathLike, options: UnmountOptions): Mounted {
  const path = toAbsolute(toPath(target, 'target'));
  // The slash would have the link followed all the same.
  return { path: options.followSymlinks ? path : withoutTrailingSlashes(path) };
}

function lookFlags(options: UnmountOptions): number {
  return options.followSymlinks ? 0 : k.AT_SYMLINK_NOFOLLOW;
}

export function unmountPlan(mounted: Mounted, options: UnmountOptions): Plan {
  const plan = new Plan();
  if (mounted.id !== undefined) {
    const wanted = Buffer.alloc(8);
    wanted.writeBigUInt64LE(BigInt(mounted.id));
    const mask = mountIdMask(mounted.id);
    plan.add('statx', [k.AT_FDCWD, mounted.path, lookFlags(options), mask, 0, wanted, e.EINVAL]);
  }
  const flags =
    (options.force ? k.MNT_FORCE : 0) |
    (options.detach ? k.MNT_DETACH : 0) |
    (options.followSymlinks ? 0 : k.UMOUNT_NOFOLLOW);
  plan.add('umount2', [mounted.path, flags]);
  if (options.removeWork && mounted.workdir !== undefined) {
    const inner = joinPath(mounted.workdir, 'work');
    // The kernel leaves the inode there that its whiteouts share.
    plan.add('sweep', [k.AT_FDCWD, inner], { tolerate: 'any' });
    for (const path of [inner, mounted.workdir]) {
      plan.add('unlinkat', [k.AT_FDCWD, path, k.AT_REMOVEDIR], { tolerate: [e.ENOENT] });
    }
  }
  return plan;
}

/** Unique ids begin above 2^31, reused ones stay below: the id says which of the two it is. */
export function mountIdMask(id: number): number {
  return id > 0x7fffffff ? k.STATX_MNT_ID_UNIQUE : k.STATX_MNT_ID;
}

/** The workdir of the overlay that is mounted at a path, from the mount table. */
function findWorkdir(mounted: Mounted, options: UnmountOptions): Path | undefined {
  const plan = new Plan();
  plan.add('statx', [k.AT_FDCWD, mounted.path, lookFlags(options), k.STATX_MNT_ID, 0, null, 0], {
    output: STATX_OUTPUT,
  });
  const [look] = plan.steps;
  const outputs = performSync(plan);
  if (outputs instanceof StepFailure || look === undefined) return undefined;
  const id = Number(outputs.word(look, statxWord.mountId));
  const entry = readMountinfo().find((candidate) => candidate.id === id && candidate.type === 'overlay');
  const text = entry && findOption(entry.superOptions, 'workdir');
  if (text === undefined) return undefined;
  // The table does not tell an escaped path from a plain one (a descriptor's): the one that exists is meant.
  const plain = unescapeLayer(text);
  return plain.equals(text) || exists(text) ? text : plain;
}

function exists(path: Path): boolean {
  const plan = new Plan();
  plan.add('statx', [k.AT_FDCWD, path, k.AT_SYMLINK_NOFOLLOW, k.STATX_TYPE, 0, null, 0]);
  return !(performSync(plan) instanceof StepFailure);
}

// ------------------------------------------------------------------------------------------ what went wrong

function lookPlan(mounted: Mounted): Plan {
  const plan = new Plan();
  plan.add('statx', [k.AT_FDCWD, mounted.path, k.AT_SYMLINK_NOFOLLOW, k.STATX_TYPE, 0, null, 0], {
    output: STATX_OUTPUT,
    tolerate: 'any',
  });
  return plan;
}

export interface UnmountFacts {
  readonly isSymlink: boolean;
  readonly isMountPoint: boolean;
}

function toFacts(plan: Plan, outputs: Outputs | StepFailure): UnmountFacts {
  const [look] = plan.steps;
  if (outputs instanceof StepFailure || look === undefined || outputs.result(look) < 0) {
    return { isSymlink: false, isMountPoint: false };
  }
  const mode = Number(outputs.word(look, statxWord.mode));
  const attributes = outputs.word(look, statxWord.attributes);
  return {
    isSymlink: (mode & k.S_IFMT) === k.S_IFLNK,
    isMountPoint: (attributes & BigInt(k.STATX_ATTR_MOUNT_ROOT)) !== 0n,
  };
}

/** The reason for a failed unmount. Pure. */
export function explainUnmount(mounted: Mounted, failure: StepFailure, facts: UnmountFacts): OverlayError {
  const { errno, step } = failure;
  const shown = quotePath(mounted.path);
  const fields = (rest: Pick<OverlayErrorFields, 'reason' | 'what' | 'hint'>): OverlayError =>
    new OverlayError({ errno, syscall: step?.call, path: pathString(mounted.path), ...rest });

  if (step?.call === 'unlinkat') {
    const path = step.args[1] as Path;
    return new OverlayError({
      errno,
      syscall: 'rmdir',
      path: pathString(path),
      reason: errno === e.ENOTEMPTY || errno === e.EEXIST ? 'work-not-empty' : 'permission-denied',
      what: `${shown} is unmounted, but the work directory ${quotePath(path)} could not be removed`,
    });
  }
  switch (errno) {
    case e.ENOENT:
      return fields({ reason: 'target-missing', what: `the target ${shown} does not exist`, hint: 'check the path' });
    case e.EBUSY:
      return fields({ reason: 'mount-busy', what: `the mount at ${shown} is in use` });
    case e.EPERM:
      return fields({ reason: 'no-privilege', what: `this process may not unmount ${shown}` });
    case e.EINVAL:
      if (step?.call === 'statx') {
        return fields({ reason: 'not-mounted', what: `what is at ${shown} is not the mount that was made here any more` });
      }
      if (facts.isSymlink) {
        return fields({
          reason: 'target-symlink',
          what: `the target ${shown} is a symbolic link`,
          hint: 'name the mount point itself, or pass `followSymlinks: true`',
        });
      }
      if (facts.isMountPoint) {
        return fields({ reason: 'mount-locked', what: `the mount at ${shown} belongs to another user namespace` });
      }
      return fields({ reason: 'not-mounted', what: `the target ${shown} is not a mount point` });
    case e.EACCES:
    case e.ELOOP:
    case e.ENAMETOOLONG:
    case e.ENOTDIR:
      return fields({ reason: 'path-inaccessible', what: `the target ${shown} cannot be reached` });
    default:
      return fields({ reason: 'unexplained', what: `${shown} could not be unmounted` });
  }
}

/** Whether the mount itself is gone, for all that the unmount failed. */
export function isUnmountedAllTheSame(error: unknown): boolean {
  return error instanceof OverlayError && error.syscall === 'rmdir';
}

// ------------------------------------------------------------------------------------------ the two forms

export async function unmountMounted(mounted: Mounted, options: UnmountOptions): Promise<void> {
  const outcome = await perform(unmountPlan(mounted, options));
  if (!(outcome instanceof StepFailure)) return;
  const look = lookPlan(mounted);
  throw explainUnmount(mounted, outcome, toFacts(look, await perform(look)));
}

export function unmountMountedSync(mounted: Mounted, options: UnmountOptions): void {
  const outcome = performSync(unmountPlan(mounted, options));
  if (!(outcome instanceof StepFailure)) return;
  const look = lookPlan(mounted);
  throw explainUnmount(mounted, outcome, toFacts(look, performSync(look)));
}

function prepare(target: PathLike, options: UnmountOptions | undefined): [Mounted, UnmountOptions] {
  const checked = checkUnmountOptions(options);
  const mounted = toMounted(target, checked);
  return [checked.removeWork ? { ...mounted, workdir: findWorkdir(mounted, checked) } : mounted, checked];
}

/**
 * Unmounts what is mounted at `target`: umount2(2). Of several mounts stacked there, the top one. Writes the
 * whole file system of an overlay's upperdir back first, which can take its time; the promise waits on a
 * thread of the library's own.
 *
 * @throws {OverlayError} `reason` is `'not-mounted'`, `'mount-busy'`, `'target-missing'`,
 * `'target-symlink'`, `'mount-locked'`, `'no-privilege'`, `'path-inaccessible'` or, when the mount is gone
 * and its workdir is not, `'work-not-empty'`.
 */
export async function unmount(target: PathLike, options?: UnmountOptions): Promise<void> {
  await unmountMounted(...prepare(target, options));
}

/** `unmount`, on the calling thread. */
export function unmountSync(target: PathLike, options?: UnmountOptions): void {
  unmountMountedSync(...prepare(target, options));
}
