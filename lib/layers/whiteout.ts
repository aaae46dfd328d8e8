/** Whiteouts: the character devices 0:0 by which a layer marks a name below it as deleted. */
import { toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, invalidArgumentValue, OverlayError, type OverlayErrorFields } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import { addGuard } from '../kernel/guards.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step, type StepOptions, type Subject } from '../kernel/plan.js';
import { addStat, readStat, type StatResult } from '../kernel/stat.js';
import { ask, run, runSync, type Task } from '../kernel/task.js';
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
import { either, option, text } from '../text.js';
import { whiteoutName } from '../trees/xattrs.js';
import { explainErrno, type Verdict } from '../verdicts.js';

export interface WhiteoutOptions {
  /**
   * Replaces an existing file with the whiteout. The call makes the whiteout under another name, exchanges it with the
   * file, so that the name is never free, and removes the file. Default: false.
   */
  replace?: boolean;
  /** With `replace`: also replaces a directory, and removes all that it holds. Default: false. */
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
    throw invalidArgumentValue(argument, value, 'must end in the name that the whiteout hides');
  }
  return { path, parent, name };
}

function checkOptions(options: WhiteoutOptions | undefined): Required<WhiteoutOptions> {
  const { replace = false, recursive = false } = toBooleanOptions(options, names);
  if (recursive && !replace) {
    throw conflictingOptions(
      text`${option('recursive')} has no effect without ${option('replace')}`,
      either(text`add ${option('replace', true)}`, 'leave it out'),
    );
  }
  return { replace, recursive };
}

function whiteoutPlan(paths: PathLike | readonly PathLike[], options: WhiteoutOptions | undefined): WhiteoutPlan {
  const { replace, recursive } = checkOptions(options);
  const list = Array.isArray(paths)
    ? Array.from(paths, (path, i) => toEntry(path, `paths[${i}]`))
    : [toEntry(paths, 'path')];

  // The plan opens all directories before it makes anything. Then it makes the whiteouts directory by directory, so that
  // whiteouts of one file system, which can share an inode, mostly follow each other.
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
  readonly found: StatResult;
  readonly parent: StatResult;
  readonly isOnOverlay: boolean;
  /** True if the process may change the directory of the path. */
  readonly mayChange: boolean;
}

function* lookAt(path: Path, parent: Path): Task<WhiteoutFacts> {
  const plan = new Plan();
  const itself = addStat(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW });
  const above = addStat(plan, parent);
  const any = { output: 0, tolerate: 'any' } as const;
  plan.add(calls.statfs, [parent], any);
  const guard = addGuard(plan, 'file-system-is-overlay', any);
  const access = plan.add(calls.faccessat2, [k.AT_FDCWD, parent, k.W_OK | k.X_OK, k.AT_EACCESS], any);
  const outcome = yield* ask(plan);
  const answers = (descriptor: Descriptor, errno: number): boolean =>
    !(outcome instanceof StepFailure) && outcome.result(plan.stepOf(descriptor)) === -errno;
  return {
    found: readStat(itself, outcome),
    parent: readStat(above, outcome),
    isOnOverlay: !(outcome instanceof StepFailure) && outcome.guard(guard) !== undefined,
    mayChange: !answers(access, e.EACCES) && !answers(access, e.EPERM),
  };
}

const isWhiteoutDevice = (found: StatResult): boolean => found.type === k.S_IFCHR && found.represents === 0;

function syscallOf({ step, errno }: StepFailure): string | undefined {
  if (step?.call === calls.openat2) return 'open';
  if (step?.call !== calls.replace) return 'mknod';
  if (errno === e.EISDIR) return undefined;
  return errno === e.EROFS || errno === e.ENOSPC || errno === e.EDQUOT ? 'mknod' : 'rename';
}

const frozen = (shown: string): Verdict => ({
  reason: 'permission-denied',
  what: `${shown} is immutable or append-only`,
  hint: 'remove the attribute: chattr -ia',
});

/** Explains a refusal. */
function explainDenied(shown: string, { found, parent, mayChange }: WhiteoutFacts, isTree: boolean): Verdict {
  if (found.isImmutable) return frozen(shown);
  if (parent.isImmutable) return frozen(`the directory of ${shown}`);
  if (!isTree || !mayChange) {
    return {
      reason: 'permission-denied',
      what: `this process may not make a whiteout at ${shown}`,
      hint: 'run as the owner of its directory or as root; the owner may have to make it writable (chmod u+w)',
    };
  }
  return {
    reason: 'permission-denied',
    what: `a file inside ${shown} may not be removed; other files inside may be gone`,
    hint: either(
      'find immutable and append-only files (lsattr -R) and remove the attribute (chattr -ia)',
      'run as the owner of all files or as root',
    ),
  };
}

/** True if the step was to remove a directory with its contents. */
const removesTree = (step: Step | undefined, { found }: WhiteoutFacts): boolean =>
  step?.call === calls.replace && step.args[3] === 1 && found.type === k.S_IFDIR;

/** Explains the errors that whiteouts have of their own. explainErrno covers the rest. */
function findVerdict(shown: string, { errno, step }: StepFailure, facts: WhiteoutFacts): Verdict | undefined {
  if (e.isOutOfDescriptors(errno)) {
    return {
      ...explainErrno(errno, { purpose: `open ${shown}` }),
      hint: 'raise the limit (ulimit -n), or name whiteouts in fewer directories at once',
    };
  }
  if (step?.call === calls.openat2) {
    if (errno !== e.ENOTDIR) return undefined;
    const what = facts.found.errno === 0 ? shown : `the parent of ${shown}`;
    return { reason: 'path-not-directory', what: `${what} is not a directory` };
  }
  if (facts.isOnOverlay) {
    return {
      reason: 'merged-mount',
      what: `${shown} is in a mounted overlay, where no whiteout can be made`,
      hint: 'use the path in the layer directory, which must not be on an overlay; to delete a file from a mounted overlay, remove it there',
    };
  }
  switch (errno) {
    case e.EEXIST:
      return isWhiteoutDevice(facts.found)
        ? { reason: 'path-exists', what: `${shown} is already a whiteout`, hint: 'leave it as it is' }
        : { reason: 'path-exists', what: `${shown} exists` };
    case e.EISDIR:
      return { reason: 'path-is-directory', what: `${shown} is a directory` };
    case e.EBUSY:
    case e.EXDEV:
      return {
        reason: 'mount-inside',
        what: `something is mounted inside ${shown}; other files inside may be gone`,
      };
    case e.ENOENT:
      return { reason: 'path-missing', what: `the directory of ${shown} was removed in the meantime` };
    case e.EACCES:
    case e.EPERM:
      return explainDenied(shown, facts, removesTree(step, facts));
    default:
      return undefined;
  }
}

/** Explains why a whiteout could not be made. Pure. */
export function explainWhiteout(path: Path, failure: StepFailure, facts: WhiteoutFacts): OverlayErrorFields {
  const { errno, step } = failure;
  const shown = quotePath(path);
  const failed =
    step?.call === calls.openat2
      ? { name: `the directory ${shown}`, purpose: `open ${shown}` }
      : { name: shown, purpose: `make a whiteout at ${shown}` };
  const own = explainFiltered(failure) ?? findVerdict(shown, failure, facts);
  const isBroken = own === undefined && removesTree(step, facts);
  return {
    errno,
    syscall: syscallOf(failure),
    path: pathString(path),
    ...(own ?? explainErrno(errno, failed)),
    leftover: isBroken ? `files in ${shown} may be gone` : undefined,
  };
}

function failedPath({ entries }: WhiteoutPlan, failure: StepFailure): [path: Path, parent: Path] {
  const { step } = failure;
  const entry = step && entries.get(step);
  if (entry !== undefined) return [entry.path, entry.parent];
  const path = step?.options.subject?.path ?? '/';
  return [path, splitPath(path)[0]];
}

/**
 * True if the call names one path twice. The kernel has said that the path exists, but the undo has removed it. So
 * another path of the call that ends in the same name was the same path.
 */
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
    fields.leftover = `some of the new whiteouts could not be removed again (errno ${failure.undoErrno})`;
  }
  if (made.replaces && failure.step !== undefined) {
    const before = [...made.entries.keys()].indexOf(failure.step);
    if (before > 0) fields.leftover = `${before} of the ${made.entries.size} paths are now whiteouts`;
  }
  return new OverlayError(fields);
}

// ------------------------------------------------------------------------------------------ the calls

function* whitedOut(path: PathLike | readonly PathLike[], options: WhiteoutOptions | undefined): Task<void> {
  const made = whiteoutPlan(path, options);
  const outcome = yield* ask(made.plan);
  if (!(outcome instanceof StepFailure)) return;
  const [failed, parent] = failedPath(made, outcome);
  throw toError(made, failed, outcome, yield* lookAt(failed, parent));
}

/**
 * Makes whiteouts in a layer directory: character devices 0:0, as overlayfs itself makes them, mknodat(2). Needs no
 * privilege from Linux 5.8 on. The whiteouts of one call share an inode if the file system allows it. A call that fails
 * midway removes the whiteouts that it made. With `replace`, it keeps them and reports their number.
 *
 * @throws {OverlayError} for the first path that cannot be a whiteout; `reason` is `'path-exists'`,
 * `'path-is-directory'`, `'path-missing'`, `'merged-mount'` (the path is in a mounted overlay: use the layer's
 * directory), `'read-only'`, `'permission-denied'`, …
 */
export async function whiteout(path: PathLike | readonly PathLike[], options?: WhiteoutOptions): Promise<void> {
  return run(whitedOut(path, options));
}

/** The synchronous form of `whiteout`. */
export function whiteoutSync(path: PathLike | readonly PathLike[], options?: WhiteoutOptions): void {
  runSync(whitedOut(path, options));
}

function* isMarkedOut(value: PathLike): Task<boolean> {
  // The kernel would follow a symbolic link with a slash at the end.
  const path = withoutTrailingSlashes(toAbsolute(toPath(value, 'path')));
  const plan = new Plan();
  const itself = addStat(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW, mask: k.STATX_SIZE, tolerate: [] });
  const marks = [false, true].map((userxattr) =>
    plan.stepOf(plan.add(calls.lgetxattr, [path, whiteoutName(userxattr), 0], { output: 0, tolerate: 'any' })),
  );
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) {
    const { errno } = outcome;
    const name = quotePath(path);
    // A path below a file does not exist either.
    const verdict = explainErrno(errno === e.ENOTDIR ? e.ENOENT : errno, { name, purpose: `look at ${name}` });
    throw new OverlayError({ errno, syscall: 'statx', path: pathString(path), ...verdict });
  }
  const found = readStat(itself, outcome);
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
  return run(isMarkedOut(path));
}

/** The synchronous form of `isWhiteout`. */
export function isWhiteoutSync(path: PathLike): boolean {
  return runSync(isMarkedOut(path));
}
