/** Whiteouts: the character devices 0:0 by which a layer says that a name below it is gone. */
import { randomBytes } from 'node:crypto';
import { checkBoolean, checkNames, toOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, invalidArgumentValue, OverlayError, type OverlayErrorFields } from '../errors.js';
import * as k from '../kernel/constants.js';
import { addLook, type Found, readLook } from '../kernel/look.js';
import { type Outputs, perform, performSync, StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step, type Subject } from '../kernel/plan.js';
import { type Path, type PathLike, pathString, quotePath, splitPath, toAbsolute, toPath } from '../paths.js';
import { whiteoutName } from './xattrs.js';

export interface WhiteoutOptions {
  /**
   * Puts the whiteout in the place of what is there: it is made aside and exchanged with it, so that the name
   * is never free, and what was there is removed. Default false.
   */
  replace?: boolean;
  /** With `replace`: of a directory too, which is removed with all that it holds. Default false. */
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

const isPathLike = (value: unknown): value is PathLike =>
  typeof value === 'string' || value instanceof Uint8Array || value instanceof URL;

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
  const checked = toOptions(options);
  checkNames(checked, names);
  const replace = checkBoolean(checked.replace, 'replace') ?? false;
  const recursive = checkBoolean(checked.recursive, 'recursive') ?? false;
  if (recursive && !replace) {
    throw conflictingOptions('"recursive" is of use with "replace" only', 'add `replace: true`, or leave it out');
  }
  return { replace, recursive };
}

function whiteoutPlan(paths: PathLike | readonly PathLike[], options: WhiteoutOptions | undefined): WhiteoutPlan {
  const { replace, recursive } = checkOptions(options);
  const list =
    isPathLike(paths) || !Array.isArray(paths)
      ? [toEntry(paths, 'path')]
      : paths.map((path, i) => toEntry(path, `paths[${i}]`));

  const plan = new Plan();
  const entries = new Map<Step, Entry>();
  // By the bytes, which a string of one character a byte stands for.
  const parents = new Map<string, Descriptor>();
  const prefix = `.overlayfs-${randomBytes(6).toString('hex')}-`;
  for (const entry of list) {
    const { path, parent, name } = entry;
    const key = typeof parent === 'string' ? parent : Buffer.from(parent).toString('latin1').replace(/^/, '\0');
    const subject: Subject = { role: 'path', path };
    let directory = parents.get(key);
    if (directory === undefined) {
      const flags = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
      directory = plan.add('openat2', [k.AT_FDCWD, parent, flags, 0], { subject: { role: 'path', path: parent } });
      parents.set(key, directory);
    }
    const made = replace
      ? plan.add('replace', [directory, name, prefix + entries.size, recursive ? 1 : 0], { subject })
      : plan.add('whiteout', [directory, name], { undo: true, subject });
    entries.set(plan.stepOf(made), entry);
  }
  return { plan, replaces: replace, entries };
}

// ------------------------------------------------------------------------------------------ what went wrong

/** What is found at the path of a failed whiteout, and where it is. */
export interface WhiteoutFacts {
  readonly found: Found;
  readonly parent: Found;
  readonly isOnOverlay: boolean;
}

interface Look {
  readonly plan: Plan;
  readonly facts: (outputs: Outputs | StepFailure) => WhiteoutFacts;
}

function lookAt(path: Path, parent: Path): Look {
  const plan = new Plan();
  const itself = addLook(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW });
  const above = addLook(plan, parent);
  const guard = plan.add('statfs', [parent, 0, k.OVERLAYFS_SUPER_MAGIC], { output: 0, tolerate: 'any' });
  return {
    plan,
    facts: (outputs) => ({
      found: readLook(itself, outputs),
      parent: readLook(above, outputs),
      isOnOverlay: !(outputs instanceof StepFailure) && outputs.result(plan.stepOf(guard)) === -e.EPERM,
    }),
  };
}

const isWhiteoutDevice = (found: Found): boolean => found.type === k.S_IFCHR && found.represents === 0;

/** The reason for a whiteout that could not be made. Pure. */
export function explainWhiteout(path: Path, failure: StepFailure, facts: WhiteoutFacts): OverlayErrorFields {
  const { errno, step } = failure;
  const shown = quotePath(path);
  const fields = (rest: Pick<OverlayErrorFields, 'reason' | 'what' | 'hint'>): OverlayErrorFields => ({
    errno,
    syscall: step?.call === 'openat2' ? 'open' : step?.call === 'replace' ? 'rename' : 'mknod',
    path: pathString(path),
    ...rest,
  });
  if (facts.isOnOverlay && errno !== e.EEXIST && errno !== e.ENOENT) {
    return fields({
      reason: 'merged-mount',
      what: `${shown} is in a mounted overlay, through which no whiteout can be made`,
      hint: 'use the path in the layer directory; to delete a file of a mounted overlay, remove it there',
    });
  }
  if (errno === e.EEXIST && isWhiteoutDevice(facts.found)) {
    return fields({ reason: 'path-exists', what: `${shown} is a whiteout already`, hint: 'leave it as it is' });
  }
  if (errno === e.EEXIST) return fields({ reason: 'path-exists', what: `${shown} exists` });
  if (errno === e.EISDIR) return fields({ reason: 'path-is-directory', what: `${shown} is a directory` });
  if (errno === e.ENOENT) {
    return fields({
      reason: 'path-missing',
      what: facts.parent.errno === 0 ? `${shown} went away meanwhile` : `the directory of ${shown} does not exist`,
    });
  }
  if (errno === e.ENOTDIR)
    return fields({ reason: 'path-not-directory', what: `what should hold ${shown} is not a directory` });
  if (errno === e.EROFS) return fields({ reason: 'read-only', what: `the file system of ${shown} is read-only` });
  if (errno === e.EACCES || errno === e.EPERM) {
    return fields({ reason: 'permission-denied', what: `this process may not make a whiteout at ${shown}` });
  }
  if (errno === e.ELOOP || errno === e.ENAMETOOLONG) {
    return fields({ reason: 'path-inaccessible', what: `${shown} cannot be reached` });
  }
  if (errno === e.ENOSPC) return fields({ reason: 'out-of-space', what: `no room is left for a whiteout at ${shown}` });
  if (errno === e.EMFILE || errno === e.ENFILE) {
    return fields({
      reason: 'out-of-descriptors',
      what: `no descriptor is left to open ${shown}`,
      hint: 'raise the limit (ulimit -n), or name whiteouts of fewer directories in one call',
    });
  }
  return fields({ reason: 'unexplained', what: `the whiteout ${shown} could not be made` });
}

function failedPath({ entries }: WhiteoutPlan, failure: StepFailure): [path: Path, parent: Path] {
  const { step } = failure;
  const entry = step && entries.get(step);
  if (entry !== undefined) return [entry.path, entry.parent];
  const path = step?.options.subject?.path ?? '/';
  return [path, splitPath(path)[0]];
}

function toError(made: WhiteoutPlan, path: Path, failure: StepFailure, facts: WhiteoutFacts): OverlayError {
  const fields = explainWhiteout(path, failure, facts);
  if (made.replaces && failure.step !== undefined) {
    const before = [...made.entries.keys()].indexOf(failure.step);
    if (before > 0)
      fields.leftover = `${before} of the ${made.entries.size} paths, those before this one, are whiteouts now`;
  }
  return new OverlayError(fields);
}

// ------------------------------------------------------------------------------------------ the calls

/**
 * Makes whiteouts in a layer directory: character devices 0:0, as overlayfs itself makes them, mknodat(2).
 * Needs no privilege from Linux 5.8 on. Those of one call share an inode where the file system allows it. A
 * call that fails midway removes what it made, or, with `replace`, says what was done.
 *
 * @throws {OverlayError} for the first path that cannot be one; `reason` is `'path-exists'`,
 * `'path-is-directory'`, `'path-missing'`, `'merged-mount'` (the path is in a mounted overlay: use the layer's
 * directory), `'read-only'`, `'permission-denied'`, …
 */
export async function whiteout(path: PathLike | readonly PathLike[], options?: WhiteoutOptions): Promise<void> {
  const made = whiteoutPlan(path, options);
  const outcome = await perform(made.plan);
  if (!(outcome instanceof StepFailure)) return;
  const [failed, parent] = failedPath(made, outcome);
  const look = lookAt(failed, parent);
  throw toError(made, failed, outcome, look.facts(await perform(look.plan)));
}

/** `whiteout`, on the calling thread. */
export function whiteoutSync(path: PathLike | readonly PathLike[], options?: WhiteoutOptions): void {
  const made = whiteoutPlan(path, options);
  const outcome = performSync(made.plan);
  if (!(outcome instanceof StepFailure)) return;
  const [failed, parent] = failedPath(made, outcome);
  const look = lookAt(failed, parent);
  throw toError(made, failed, outcome, look.facts(performSync(look.plan)));
}

interface Question {
  readonly path: Path;
  readonly plan: Plan;
  readonly itself: Step;
  readonly marks: readonly Step[];
}

function question(value: PathLike): Question {
  const path = toAbsolute(toPath(value, 'path'));
  const plan = new Plan();
  const itself = addLook(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW, mask: k.STATX_SIZE, tolerate: [] });
  const marks = [false, true].map((userxattr) =>
    plan.stepOf(plan.add('lgetxattr', [path, whiteoutName(userxattr), 0], { output: 0, tolerate: 'any' })),
  );
  return { path, plan, itself, marks };
}

function answer({ path, itself, marks }: Question, outputs: Outputs | StepFailure): boolean {
  if (outputs instanceof StepFailure) {
    const missing = outputs.errno === e.ENOENT || outputs.errno === e.ENOTDIR;
    throw new OverlayError({
      errno: outputs.errno,
      syscall: 'statx',
      path: pathString(path),
      reason: missing ? 'path-missing' : 'path-inaccessible',
      what: missing ? `${quotePath(path)} does not exist` : `${quotePath(path)} cannot be reached`,
    });
  }
  const found = readLook(itself, outputs);
  if (found.type !== k.S_IFREG || found.size !== 0) return isWhiteoutDevice(found);
  return marks.some((mark) => outputs.result(mark) >= 0);
}

/**
 * Whether a path in a layer directory is a whiteout: a character device 0:0, or (Linux 6.7) an empty file
 * with the attribute `trusted.overlay.whiteout` or `user.overlay.whiteout`. The first of these can be read
 * with CAP_SYS_ADMIN only. A link is not followed.
 *
 * @throws {OverlayError} `'path-missing'`, `'path-inaccessible'`
 */
export async function isWhiteout(path: PathLike): Promise<boolean> {
  const asked = question(path);
  return answer(asked, await perform(asked.plan));
}

/** `isWhiteout`, on the calling thread. */
export function isWhiteoutSync(path: PathLike): boolean {
  const asked = question(path);
  return answer(asked, performSync(asked.plan));
}
