/** Opaque directories: directories of a layer that hide the contents below them. */
import { checkWord, toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, missingProc, OverlayError } from '../errors.js';
import { needsUserXattr } from '../features/probe.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import { addGuard } from '../kernel/guards.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { Plan, type Step, type Text } from '../kernel/plan.js';
import { ask, run, runSync, type Task } from '../kernel/task.js';
import {
  type Path,
  type PathLike,
  pathString,
  quotePath,
  toAbsolute,
  toPath,
  withoutTrailingSlashes,
} from '../paths.js';
import { option, text } from '../text.js';
import { opaqueName } from '../trees/xattrs.js';
import { explainErrno, type Verdict } from '../verdicts.js';

export interface OpaqueOptions {
  /**
   * Uses the mark `user.overlay.opaque`, which counts for mounts with `userxattr`. The mark for all other mounts is
   * `trusted.overlay.opaque`, which needs CAP_SYS_ADMIN in the initial user namespace. Default: true
   * for a plain user and in a user namespace, where a process may not write `trusted.*`.
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

/** The value of the mark. Any other value has no such effect. */
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

/** Returns true for the mark of `userxattr` and false for the other, one for each mark to use. */
function toNamespaces(options: OpaqueOptions | undefined): boolean[] {
  const { userxattr, marks } = toBooleanOptions(options, names, booleans);
  if (checkWord(marks, 'marks', ['both']) === undefined) return [userxattr ?? needsUserXattr()];
  if (userxattr === undefined) return [true, false];
  throw conflictingOptions(
    text`${option('marks')} and ${option('userxattr')} exclude each other`,
    'leave one of the two out',
  );
}

function addDirectory({ plan, path }: OpaquePlan): number {
  return plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_PATH | k.O_DIRECTORY | k.O_NOFOLLOW | k.O_CLOEXEC, 0]);
}

function* marked(dir: PathLike, options: OpaqueOptions | undefined): Task<void> {
  const made = prepare(dir, options);
  const { path, attributes, plan } = made;
  const directory = addDirectory(made);
  // Through a mounted overlay the mark would get another name, and would have no effect on this overlay.
  plan.add(calls.fstatfs, [directory]);
  addGuard(plan, 'file-system-is-overlay');
  const set = (attribute: string, flags = 0, tolerate: readonly number[] = []) =>
    plan.add(calls.setxattr, [['/proc/self/fd/', directory], attribute, OPAQUE, flags], { tolerate });
  // A process without privilege fails here, before it sets either mark.
  if (attributes.length > 1) set(`${opaqueName(false)}.none`, k.XATTR_REPLACE, [e.ENODATA]);
  for (const attribute of attributes) set(attribute);
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainOpaque(path, outcome);
}

/** Explains the errors that marks have of their own. explainErrno covers the rest. */
function findVerdict(shown: string, { errno, step, guard }: StepFailure): Verdict | undefined {
  if (guard === 'file-system-is-overlay') {
    return { reason: 'merged-mount', what: `${shown} is in a mounted overlay, where the mark has no effect` };
  }
  if (step?.call === calls.openat2) {
    return errno === e.ENOTDIR ? { reason: 'path-not-directory', what: `${shown} is not a directory` } : undefined;
  }
  const attribute = String(step?.args[1] ?? '').replace(/\.none$/, '');
  if (errno === e.EOPNOTSUPP) {
    return {
      reason: 'xattr-denied',
      what: `the file system of ${shown} does not support the attribute ${attribute}`,
      hint: 'use a layer on ext4, xfs, btrfs or tmpfs (user.* on tmpfs: Linux 6.6)',
    };
  }
  if (errno === e.EPERM && !attribute.startsWith('user.')) {
    return { reason: 'xattr-denied', what: `the kernel refuses the attribute ${attribute} on ${shown}` };
  }
  if (errno === e.EPERM || errno === e.EACCES) {
    return {
      reason: 'permission-denied',
      what: `this process may not mark ${shown}`,
      hint: 'run as its owner or as root; its owner may have to make it writable (chmod u+w); an immutable directory takes no mark (chattr -ia)',
    };
  }
  return undefined;
}

/** Explains why a directory could not be examined or marked. Pure. */
function explainOpaque(path: Path, failure: StepFailure): OverlayError {
  const { errno, step, guard } = failure;
  const isOpening = step?.call === calls.openat2;
  const shown = quotePath(path);
  if (!isOpening && errno === e.ENOENT) return missingProc('/proc/self/fd');
  const failed = { name: `the directory ${shown}`, purpose: isOpening ? `open ${shown}` : `mark ${shown} as opaque` };
  return new OverlayError({
    errno: failure.shownErrno,
    syscall: guard !== undefined ? undefined : isOpening ? 'open' : step?.call.name,
    path: pathString(path),
    ...(explainFiltered(failure) ?? findVerdict(shown, failure) ?? explainErrno(errno, failed)),
  });
}

/**
 * Marks a directory of a layer as opaque, which hides the contents below it: setxattr(2) of `trusted.overlay.opaque`
 * (or `user.`, or both) to `y`. On a layer's own root directory the mark has no effect.
 *
 * @throws {OverlayError} `'path-missing'`, `'path-not-directory'`, `'xattr-denied'`, `'merged-mount'`, …
 */
export async function makeOpaque(dir: PathLike, options?: OpaqueOptions): Promise<void> {
  return run(marked(dir, options));
}

/** The synchronous form of `makeOpaque`. */
export function makeOpaqueSync(dir: PathLike, options?: OpaqueOptions): void {
  runSync(marked(dir, options));
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

function* hasMark(dir: PathLike, options: OpaqueOptions | undefined): Task<boolean> {
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
  return run(hasMark(dir, options));
}

/** The synchronous form of `isOpaque`. */
export function isOpaqueSync(dir: PathLike, options?: OpaqueOptions): boolean {
  return runSync(hasMark(dir, options));
}
