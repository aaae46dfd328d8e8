/** Opaque directories: directories of a layer that hide the contents below them. */

import { checkWord, toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, missingProc, OverlayError, type OverlayErrorFields } from '../errors.js';
import { featuresSync } from '../features/probe.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { Plan, type Step, type Text } from '../kernel/plan.js';
import {
  type Path,
  type PathLike,
  pathString,
  quotePath,
  toAbsolute,
  toPath,
  withoutTrailingSlashes,
} from '../paths.js';
import { opaqueName } from './xattrs.js';

export interface OpaqueOptions {
  /**
   * Uses the mark `user.overlay.opaque`, which counts for mounts with `userxattr`. The mark for all other mounts is
   * `trusted.overlay.opaque`, which needs CAP_SYS_ADMIN in the initial user namespace. Default: as for mounts, true in
   * a user namespace, which may not write `trusted.*`.
   */
  userxattr?: boolean;
  /**
   * `'both'`: uses both marks, for a layer that root mounts and that a plain user mounts with `rootless`. `isOpaque`
   * then checks both marks, so that it detects a directory that has only one. Cannot be combined with `userxattr`.
   */
  marks?: 'both';
}

const booleans: ReadonlySet<string> = new Set(['userxattr']);
const names: ReadonlySet<string> = new Set([...booleans, 'marks']);

/** The value that counts; any other has no effect. */
const OPAQUE = 'y';

interface OpaquePlan {
  readonly path: Path;
  readonly attributes: readonly string[];
  readonly plan: Plan;
}

function prepare(dir: PathLike, options: OpaqueOptions | undefined): OpaquePlan {
  // The kernel would follow a symbolic link with a slash at the end.
  const path = withoutTrailingSlashes(toAbsolute(toPath(dir, 'dir')));
  return { path, attributes: toNamespaces(options).map(opaqueName), plan: new Plan() };
}

/** Returns, for each mark, whether it is that of `userxattr`. */
function toNamespaces(options: OpaqueOptions | undefined): boolean[] {
  const { userxattr, marks } = toBooleanOptions(options, names, booleans);
  if (checkWord(marks, 'marks', ['both']) === undefined) return [userxattr ?? featuresSync().userNamespace];
  if (userxattr === undefined) return [true, false];
  throw conflictingOptions('"marks" cannot go with "userxattr"', 'leave one of the two out');
}

function addDirectory({ plan, path }: OpaquePlan): number {
  return plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_PATH | k.O_DIRECTORY | k.O_NOFOLLOW | k.O_CLOEXEC, 0]);
}

function* marked(dir: PathLike, options: OpaqueOptions | undefined): Dialogue<void> {
  const made = prepare(dir, options);
  const { path, attributes, plan } = made;
  const directory = addDirectory(made);
  // Through a mounted overlay the mark would get another name, and would have no effect on this overlay.
  plan.add(calls.fstatfs, [directory, 0, k.OVERLAYFS_SUPER_MAGIC]);
  const set = (attribute: string, flags = 0, tolerate: readonly number[] = []) =>
    plan.add(calls.setxattr, [['/proc/self/fd/', directory], attribute, OPAQUE, flags], { tolerate });
  // Without privilege this one fails, before the other mark is set.
  if (attributes.length > 1) set(`${opaqueName(false)}.none`, k.XATTR_REPLACE, [e.ENODATA]);
  for (const attribute of attributes) set(attribute);
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainOpaque(path, outcome);
}

/** Explains why a directory could not be examined or marked. Pure. */
export function explainOpaque(path: Path, failure: StepFailure): OverlayError {
  const { errno, step } = failure;
  const attribute = String(step?.args[1] ?? '').replace(/\.none$/, '');
  const shown = quotePath(path);
  const fields = (rest: Pick<OverlayErrorFields, 'reason' | 'what' | 'hint'>): OverlayError =>
    new OverlayError({
      errno,
      syscall: step?.call === calls.openat2 ? 'open' : step?.call === calls.fstatfs ? undefined : step?.call.name,
      path: pathString(path),
      ...rest,
    });
  if (step?.call === calls.fstatfs && errno === e.EPERM) {
    return fields({ reason: 'merged-mount', what: `${shown} is in a mounted overlay, where the mark does not count` });
  }
  if (e.isOutOfDescriptors(errno)) {
    return fields({ reason: 'out-of-descriptors', what: `no descriptor is left to open ${shown}` });
  }
  if (step?.call === calls.openat2) {
    if (errno === e.ENOENT) return fields({ reason: 'path-missing', what: `the directory ${shown} does not exist` });
    if (errno === e.ENOTDIR) {
      return fields({ reason: 'path-not-directory', what: `${shown} is not a directory` });
    }
    return fields({ reason: 'path-inaccessible', what: `the directory ${shown} cannot be reached` });
  }
  if (errno === e.ENOENT) return missingProc('/proc/self/fd');
  if (errno === e.EOPNOTSUPP) {
    return fields({
      reason: 'xattr-denied',
      what: `the file system of ${shown} keeps no attribute such as ${attribute}`,
      hint: 'use a layer on ext4, xfs, btrfs or tmpfs (which takes user.* from Linux 6.6 on)',
    });
  }
  if (errno === e.EPERM && attribute.startsWith('user.')) {
    return fields({
      reason: 'permission-denied',
      what: `this process may not mark ${shown}`,
      hint: 'run as its owner or as root; what is immutable takes no mark (chattr -ia)',
    });
  }
  if (errno === e.EPERM) {
    return fields({ reason: 'xattr-denied', what: `the attribute ${attribute} is refused on ${shown}` });
  }
  if (errno === e.EROFS) return fields({ reason: 'read-only', what: `the file system of ${shown} is read-only` });
  if (errno === e.ENOSPC || errno === e.EDQUOT)
    return fields({ reason: 'out-of-space', what: `no room is left for ${attribute} on ${shown}` });
  if (errno === e.EACCES) return fields({ reason: 'permission-denied', what: `this process may not mark ${shown}` });
  return fields({ reason: 'unexplained', what: `${shown} could not be made opaque` });
}

/**
 * Marks a directory of a layer as opaque, which hides the contents below it: setxattr(2) of `trusted.overlay.opaque`
 * (or `user.`, or both) to `y`. On a layer's own root directory the mark has no effect.
 *
 * @throws {OverlayError} `'path-missing'`, `'path-not-directory'`, `'xattr-denied'`, `'merged-mount'`, …
 */
export async function makeOpaque(dir: PathLike, options?: OpaqueOptions): Promise<void> {
  return hold(marked(dir, options));
}

/** The synchronous form of `makeOpaque`. */
export function makeOpaqueSync(dir: PathLike, options?: OpaqueOptions): void {
  holdSync(marked(dir, options));
}

/** Adds a step that reads a mark. */
export function addMark(
  plan: Plan,
  path: Text,
  attribute: string,
  tolerate: readonly number[] | 'any' = [e.ENODATA, e.EOPNOTSUPP, e.EPERM, e.ERANGE],
): Step {
  const room = OPAQUE.length;
  return plan.stepOf(plan.add(calls.lgetxattr, [path, attribute, room], { output: room, tolerate }));
}

export const isMarked = (outputs: Outputs, mark: Step): boolean =>
  outputs.result(mark) === OPAQUE.length && outputs.bytes(mark, OPAQUE.length).toString() === OPAQUE;

function* hasMark(dir: PathLike, options: OpaqueOptions | undefined): Dialogue<boolean> {
  const asked = prepare(dir, options);
  const { path, attributes, plan } = asked;
  const directory = addDirectory(asked);
  const marks = attributes.map((attribute) => addMark(plan, ['/proc/self/fd/', directory, '/.'], attribute));
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainOpaque(path, outcome);
  return marks.every((mark) => isMarked(outcome, mark));
}

/**
 * Returns whether a directory of a layer is opaque: its `trusted.overlay.opaque` (or `user.`, or both) is `y`. Only a
 * process with CAP_SYS_ADMIN can read `trusted.*`; without it, the answer for that mark is false. lgetxattr(2).
 *
 * @throws {OverlayError} `'path-missing'`, `'path-not-directory'`, `'path-inaccessible'`
 */
export async function isOpaque(dir: PathLike, options?: OpaqueOptions): Promise<boolean> {
  return hold(hasMark(dir, options));
}

/** The synchronous form of `isOpaque`. */
export function isOpaqueSync(dir: PathLike, options?: OpaqueOptions): boolean {
  return holdSync(hasMark(dir, options));
}
