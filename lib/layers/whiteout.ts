/** Whiteouts: the character devices 0:0 by which a layer marks a name below it as deleted. */

import { toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, invalidArgumentValue, OverlayError, type OverlayErrorFields } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { addGuard } from '../kernel/guards.js';
import { addLook, type Found, readLook } from '../kernel/look.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step, type StepOptions, type Subject } from '../kernel/plan.js';
import {
  type Path,
  type PathLike,
  pathString,
  quotePath,
  splitPath,
  toAbsolute,
  toBytes,
  toPath,
  withoutTrailingSlashes,
} from '../paths.js';
import type { Reason } from '../reasons.js';
import { whiteoutName } from './xattrs.js';

export interface WhiteoutOptions {
  /**
   * Replaces an existing file with the whiteout. The whiteout is made aside and exchanged with the file, so that the
   * name is never free. Then the file is removed. Default false.
   */
  replace?: boolean;
  /** With `replace`: also replaces a directory, which is removed with all that it holds. Default false. */
  recursive?: boolean;
}

const names: ReadonlySet<string> = new Set(['replace', 'recursive']);

interface Entry {
  readonly path: Path;
  readonly parent: Path;
  readonly name: Path;
}

interface WhiteoutPlan {
  readonly plan: Plan;
  readonly replaces: boolean;
  /** The steps that make the whiteouts, in order. */
  readonly entries: ReadonlyMap<Step, Entry>;
}

function toEntry(value: unknown, argument: string): Entry {
  const path = toAbsolute(toPath(value, argument));
  const [parent, name] = splitPath(path);
  const text = pathString(name);
  if (text === '.' || text === '..' || text === '' || text === '/') {
    throw invalidArgumentValue(argument, value, 'must end in a name, which is what the whiteout hides');
  }
  return { path, parent, name };
}

function checkOptions(options: WhiteoutOptions | undefined): Required<WhiteoutOptions> {
  const { replace = false, recursive = false } = toBooleanOptions(options, names);
  if (recursive && !replace) {
    throw conflictingOptions('"recursive" is of use with "replace" only', 'add `replace: true`, or leave it out');
  }
  return { replace, recursive };
}

function whiteoutPlan(paths: PathLike | readonly PathLike[], options: WhiteoutOptions | undefined): WhiteoutPlan {
  const { replace, recursive } = checkOptions(options);
  const list = Array.isArray(paths)
    ? Array.from(paths, (path, i) => toEntry(path, `paths[${i}]`))
    : [toEntry(paths, 'path')];

  // The plan opens all directories before it makes anything. Then it makes the whiteouts directory by directory: those
  // of one file system, which can share an inode, mostly follow each other.
  const plan = new Plan();
  const directories = new Map<string, { directory: Descriptor; entries: Entry[] }>();
  for (const entry of list) {
    const { parent } = entry;
    // Bytes that are not UTF-8 get a key that no string has.
    const key = typeof parent === 'string' ? parent : `\0${Buffer.from(parent).toString('latin1')}`;
    const known = directories.get(key);
    if (known !== undefined) {
      known.entries.push(entry);
      continue;
    }
    const flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
    const subject: Subject = { role: 'path', path: parent };
    const directory = plan.add(calls.openat2, [k.AT_FDCWD, parent, flags], { subject });
    directories.set(key, { directory, entries: [entry] });
  }
  const made = new Map<Step, Entry>();
  const prefix = replace ? `.overlayfs-${process.getBuiltinModule('node:crypto').randomBytes(6).toString('hex')}-` : '';
  for (const { directory, entries } of directories.values()) {
    for (const entry of entries) {
      const step = replace
        ? plan.add(calls.replace, [directory, entry.name, prefix + made.size, recursive ? 1 : 0])
        : plan.add(calls.whiteout, [directory, entry.name], undoOnFailure);
      made.set(plan.stepOf(step), entry);
    }
  }
  return { plan, replaces: replace, entries: made };
}

const undoOnFailure: StepOptions = { undo: true };

// ------------------------------------------------------------------------------------------ what went wrong

/** Facts about the path of a failed whiteout, and about its directory. */
export interface WhiteoutFacts {
  readonly found: Found;
  readonly parent: Found;
  readonly isOnOverlay: boolean;
  /** True if the process may change the directory of the path. */
  readonly mayChange: boolean;
}

function* lookAt(path: Path, parent: Path): Dialogue<WhiteoutFacts> {
  const plan = new Plan();
  const itself = addLook(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW });
  const above = addLook(plan, parent);
  const any = { output: 0, tolerate: 'any' } as const;
  plan.add(calls.statfs, [parent], any);
  const guard = addGuard(plan, 'file-system-is-overlay', any);
  const access = plan.add(calls.faccessat2, [k.AT_FDCWD, parent, k.W_OK | k.X_OK, k.AT_EACCESS], any);
  const outcome = yield* ask(plan);
  const answers = (descriptor: Descriptor, errno: number): boolean =>
    !(outcome instanceof StepFailure) && outcome.result(plan.stepOf(descriptor)) === -errno;
  return {
    found: readLook(itself, outcome),
    parent: readLook(above, outcome),
    isOnOverlay: !(outcome instanceof StepFailure) && outcome.guard(guard) !== undefined,
    mayChange: !answers(access, e.EACCES) && !answers(access, e.EPERM),
  };
}

const isWhiteoutDevice = (found: Found): boolean => found.type === k.S_IFCHR && found.represents === 0;

function syscallOf({ step, errno }: StepFailure): string | undefined {
  if (step?.call === calls.openat2) return 'open';
  if (step?.call !== calls.replace) return 'mknod';
  if (errno === e.EISDIR) return undefined;
  return errno === e.EROFS || errno === e.ENOSPC || errno === e.EDQUOT ? 'mknod' : 'rename';
}

const isFrozen = (shown: string): string => `${shown} is immutable, or can be appended to only`;
const FROZEN_HINT = 'take the attribute away: chattr -ia';

/** Explains a refusal. */
function explainDenied(shown: string, { found, parent, mayChange }: WhiteoutFacts, isTree: boolean): [string, string?] {
  if (found.isImmutable) return [isFrozen(shown), FROZEN_HINT];
  if (parent.isImmutable) return [isFrozen(`the directory of ${shown}`), FROZEN_HINT];
  if (!isTree || !mayChange) return [`this process may not make a whiteout at ${shown}`];
  return [
    `something inside ${shown} may not be removed, whose other contents may be gone in part`,
    'look for what is immutable or can be appended to only (lsattr -R), and take that away (chattr -ia); else run as the owner of it all, or as root',
  ];
}

/** Explains why a whiteout could not be made. Pure. */
export function explainWhiteout(path: Path, failure: StepFailure, facts: WhiteoutFacts): OverlayErrorFields {
  const { errno, step } = failure;
  const shown = quotePath(path);
  const fields = (reason: Reason, what: string, hint?: string): OverlayErrorFields => {
    return { errno, syscall: syscallOf(failure), path: pathString(path), reason, what, hint };
  };
  if (e.isOutOfDescriptors(errno)) {
    const hint = 'raise the limit (ulimit -n), or name whiteouts of fewer directories in one call';
    return fields('out-of-descriptors', `no descriptor is left to open ${shown}`, hint);
  }
  if (step?.call === calls.openat2) {
    if (errno === e.ENOENT) return fields('path-missing', `the directory ${shown} does not exist`);
    if (errno === e.ENOTDIR) {
      const what = facts.found.errno === 0 ? shown : `what should hold ${shown}`;
      return fields('path-not-directory', `${what} is not a directory`);
    }
    return fields('path-inaccessible', `the directory ${shown} cannot be reached`);
  }
  if (facts.isOnOverlay) {
    const what = `${shown} is in a mounted overlay, through which no whiteout can be made`;
    const hint =
      'use the path in the layer directory, which must not lie on an overlay itself; to delete a file of a mounted overlay, remove it there';
    return fields('merged-mount', what, hint);
  }
  // True for a directory that was to be removed with all that it holds.
  const isTree = step?.call === calls.replace && step.args[3] === 1 && facts.found.type === k.S_IFDIR;
  switch (errno) {
    case e.EEXIST:
      return isWhiteoutDevice(facts.found)
        ? fields('path-exists', `${shown} is a whiteout already`, 'leave it as it is')
        : fields('path-exists', `${shown} exists`);
    case e.EISDIR:
      return fields('path-is-directory', `${shown} is a directory`);
    case e.EBUSY:
    case e.EXDEV:
      return fields('mount-inside', `something is mounted inside ${shown}, whose other contents may be gone in part`);
    case e.ENOENT:
      return fields('path-missing', `the directory of ${shown} went away meanwhile`);
    case e.EROFS:
      return fields('read-only', `the file system of ${shown} is read-only`);
    case e.EACCES:
    case e.EPERM:
      return fields('permission-denied', ...explainDenied(shown, facts, isTree));
    case e.ENAMETOOLONG:
      return fields('path-inaccessible', `the name of ${shown} is too long`);
    case e.ENOSPC:
    case e.EDQUOT:
      return fields('out-of-space', `no room is left for a whiteout at ${shown}`);
    default:
      return fields(
        'unexplained',
        `the whiteout ${shown} could not be made${isTree ? ', and what the directory holds may be gone in part' : ''}`,
      );
  }
}

function failedPath({ entries }: WhiteoutPlan, failure: StepFailure): [path: Path, parent: Path] {
  const { step } = failure;
  const entry = step && entries.get(step);
  if (entry !== undefined) return [entry.path, entry.parent];
  const path = step?.options.subject?.path ?? '/';
  return [path, splitPath(path)[0]];
}

/** True if another path of the call ends in the same name: since nothing is there any more, it was the same path. */
function isNamedTwice({ entries }: WhiteoutPlan, { errno, step }: StepFailure, { found }: WhiteoutFacts): boolean {
  const entry = step && entries.get(step);
  if (entry === undefined || errno !== e.EEXIST || found.errno !== e.ENOENT) return false;
  return [...entries.values()].some(
    (other) => other !== entry && Buffer.compare(toBytes(other.name), toBytes(entry.name)) === 0,
  );
}

function toError(made: WhiteoutPlan, path: Path, failure: StepFailure, facts: WhiteoutFacts): OverlayError {
  const fields = explainWhiteout(path, failure, facts);
  if (isNamedTwice(made, failure, facts)) {
    fields.what = `${quotePath(path)} is named twice`;
    fields.hint = 'name each path once';
  }
  if (failure.undoErrno !== 0) {
    fields.leftover = `not all that was made could be removed again (errno ${failure.undoErrno})`;
  }
  if (made.replaces && failure.step !== undefined) {
    const before = [...made.entries.keys()].indexOf(failure.step);
    if (before > 0) fields.leftover = `${before} of the ${made.entries.size} paths are whiteouts now`;
  }
  return new OverlayError(fields);
}

// ------------------------------------------------------------------------------------------ the calls

function* whitedOut(path: PathLike | readonly PathLike[], options: WhiteoutOptions | undefined): Dialogue<void> {
  const made = whiteoutPlan(path, options);
  const outcome = yield* ask(made.plan);
  if (!(outcome instanceof StepFailure)) return;
  const [failed, parent] = failedPath(made, outcome);
  throw toError(made, failed, outcome, yield* lookAt(failed, parent));
}

/**
 * Makes whiteouts in a layer directory: character devices 0:0, as overlayfs itself makes them, mknodat(2). Needs no
 * privilege from Linux 5.8 on. The whiteouts of one call share an inode if the file system allows it. A call that fails
 * midway removes what it made, or, with `replace`, reports what was done.
 *
 * @throws {OverlayError} for the first path that cannot be a whiteout; `reason` is `'path-exists'`,
 * `'path-is-directory'`, `'path-missing'`, `'merged-mount'` (the path is in a mounted overlay: use the layer's
 * directory), `'read-only'`, `'permission-denied'`, …
 */
export async function whiteout(path: PathLike | readonly PathLike[], options?: WhiteoutOptions): Promise<void> {
  return hold(whitedOut(path, options));
}

/** The synchronous form of `whiteout`. */
export function whiteoutSync(path: PathLike | readonly PathLike[], options?: WhiteoutOptions): void {
  holdSync(whitedOut(path, options));
}

function* isMarkedOut(value: PathLike): Dialogue<boolean> {
  // The kernel would follow a symbolic link with a slash at the end.
  const path = withoutTrailingSlashes(toAbsolute(toPath(value, 'path')));
  const plan = new Plan();
  const itself = addLook(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW, mask: k.STATX_SIZE, tolerate: [] });
  const marks = [false, true].map((userxattr) =>
    plan.stepOf(plan.add(calls.lgetxattr, [path, whiteoutName(userxattr), 0], { output: 0, tolerate: 'any' })),
  );
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) {
    const missing = outcome.errno === e.ENOENT || outcome.errno === e.ENOTDIR;
    throw new OverlayError({
      errno: outcome.errno,
      syscall: 'statx',
      path: pathString(path),
      reason: missing ? 'path-missing' : 'path-inaccessible',
      what: missing ? `${quotePath(path)} does not exist` : `${quotePath(path)} cannot be reached`,
    });
  }
  const found = readLook(itself, outcome);
  if (found.type !== k.S_IFREG || found.size !== 0) return isWhiteoutDevice(found);
  return marks.some((mark) => outcome.result(mark) >= 0);
}

/**
 * Returns whether a path in a layer directory is a whiteout: a character device 0:0, or (Linux 6.7) an empty file with
 * the attribute `trusted.overlay.whiteout` or `user.overlay.whiteout`. Only a process with CAP_SYS_ADMIN can read
 * `trusted.*`. Does not follow a link. statx(2), lgetxattr(2).
 *
 * @throws {OverlayError} `'path-missing'`, `'path-inaccessible'`
 */
export async function isWhiteout(path: PathLike): Promise<boolean> {
  return hold(isMarkedOut(path));
}

/** The synchronous form of `isWhiteout`. */
export function isWhiteoutSync(path: PathLike): boolean {
  return holdSync(isMarkedOut(path));
}
