/** Removes layer directories and work directories, even if the modes of directories inside deny access. */
import { toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { invalidArgumentValue, OverlayError } from '../errors.js';
import { isUsed } from '../in-use/probe.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close, type Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { addStat, readStat, type StatResult } from '../kernel/stat.js';
import { ask, run, type Task } from '../kernel/task.js';
import {
  joinPath,
  type Path,
  type PathLike,
  pathString,
  quotePath,
  splitPath,
  toAbsolute,
  toPath,
  withoutTrailingSlashes,
} from '../paths.js';
import { makeSubIdNamespace } from '../rootless/sub-ids.js';
import { text } from '../text.js';
import { findDenial } from '../trees/denial.js';
import { lockDirectory, unlock } from '../trees/lock.js';
import { inUse, refuseUsed, usedByOther, usedUnseen } from '../trees/used.js';
import { explainErrno, type Verdict } from '../verdicts.js';

export interface RemoveOptions {
  /** Throws what a removal would be refused for, and changes nothing. Default: false. */
  dryRun?: boolean;
}

const known: ReadonlySet<string> = new Set(['dryRun']);

/** The number of entries that one native call removes. An exiting program waits for the current call. */
const SLICE = 5000;
const PATH_ROOM = 4096;
const NEEDS_OWNER = 'run as the owner or as root; files with subordinate ids need newuidmap(1)';

interface Target {
  readonly path: Path;
  readonly name: Path;
  /** The directory that holds it. */
  readonly parent: Descriptor;
  readonly found: StatResult;
  /** The path without symbolic links. */
  readonly real: Path;
}

function toDirectory(dir: PathLike): Path {
  const path = withoutTrailingSlashes(toAbsolute(toPath(dir, 'dir')));
  const name = pathString(splitPath(path)[1]);
  if (name === '' || name === '.' || name === '..') {
    throw invalidArgumentValue('dir', dir, 'must end in the name of the directory to remove');
  }
  return path;
}

function* look(path: Path): Task<Target> {
  const [above, name] = splitPath(path);
  const plan = new Plan();
  const open = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
  const parent = plan.add(calls.openat2, [k.AT_FDCWD, above, open, 0], { keep: true, output: 0 });
  const directory = plan.add(calls.openat2, [parent, name, open | k.O_NOFOLLOW, 0]);
  const found = addStat(plan, '', { at: directory, flags: k.AT_EMPTY_PATH, tolerate: [] });
  const link = plan.stepOf(
    plan.add(calls.readlinkat, [k.AT_FDCWD, ['/proc/self/fd/', directory], PATH_ROOM], {
      output: PATH_ROOM,
      tolerate: 'any',
    }),
  );
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw explainRemoval(path, outcome.errno, '', 'open');
  const length = outcome.result(link);
  return {
    path,
    name,
    parent: outcome.result(plan.stepOf(parent)),
    found: readStat(found, outcome),
    real: length > 0 ? outcome.bytes(link, length) : path,
  };
}

function* refuseMountedOrUsed(target: Target): Task<void> {
  const { found, path } = target;
  if (found.isMountRoot) throw inUse(path, `${quotePath(path)} is a mount point`, 'mount-inside');
  yield* refuseUsed(target);
}

interface Failure {
  readonly errno: number;
  /** The path inside the directory; empty if it is not known. */
  readonly inside: Path;
}

/** Removes the directory in slices; in the user namespace `user`, if given. */
function* removeSlices({ path, parent, name }: Target, user?: Descriptor): Task<Failure | undefined> {
  for (let isFirst = true; ; isFirst = false) {
    const plan = new Plan();
    if (user !== undefined) {
      plan.isInChild = true;
      plan.add(calls.setns, [user, k.CLONE_NEWUSER]);
    }
    // The last argument makes the call keep a directory that an overlay uses.
    const args = [parent, name, 0, SLICE, PATH_ROOM, 1] as const;
    const step = plan.stepOf(plan.add(calls.remove, args, { output: PATH_ROOM, tolerate: 'any' }));
    const outcome = yield* ask(plan);
    if (outcome instanceof StepFailure) return { errno: outcome.errno, inside: '' };
    const result = outcome.result(step);
    if (result === 0) return undefined;
    if (result > 0) continue;
    // Another program has removed the rest.
    if (!isFirst && result === -e.ENOENT) return undefined;
    const bytes = outcome.bytes(step, PATH_ROOM);
    const inside = bytes.subarray(0, bytes.indexOf(0));
    if (outcome.guard(step) === undefined) return { errno: -result, inside };
    const place = placeOf(path, inside);
    if (yield* isUsed(place)) throw usedUnseen(place, leftOf(path, inside));
  }
}

const placeOf = (path: Path, inside: Path): Path => (inside.length === 0 ? path : joinPath(path, inside));

const leftOf = (path: Path, inside: Path): string =>
  inside.length === 0 ? '' : `; other files in ${quotePath(path)} may be gone`;

const isDenied = ({ errno }: Failure): boolean => errno === e.EACCES || errno === e.EPERM;

/** Returns a user namespace with the user's subordinate ids; undefined if the user cannot map any. */
function* subIdNamespace(): Task<Descriptor | undefined> {
  try {
    return yield* makeSubIdNamespace();
  } catch (error) {
    if (error instanceof OverlayError) return undefined;
    throw error;
  }
}

/** Removes it, files of the user's subordinate ids too. */
function* removeAll(target: Target): Task<void> {
  let failure = yield* removeSlices(target);
  if (failure !== undefined && isDenied(failure)) {
    const user = yield* subIdNamespace();
    if (user !== undefined) {
      try {
        failure = yield* removeSlices(target, user);
      } finally {
        close({ descriptor: user });
      }
    }
  }
  if (failure === undefined) return;
  const { errno, inside } = failure;
  const denial = isDenied(failure) ? yield* findDenial([placeOf(target.path, inside)], NEEDS_OWNER) : undefined;
  throw explainRemoval(target.path, errno, inside, 'unlink', denial);
}

interface Removal {
  /** The caller has locked the directory. */
  readonly isLocked?: boolean;
  /** Makes the checks only. */
  readonly isDry?: boolean;
}

/** Removes a directory by its absolute path. */
export function* removeDirectory(path: Path, { isLocked = false, isDry = false }: Removal = {}): Task<void> {
  const target = yield* look(path);
  let lock: Held | 'taken' | undefined;
  try {
    yield* refuseMountedOrUsed(target);
    lock = isLocked ? undefined : yield* lockDirectory(target.name, target.parent);
    if (lock === 'taken') throw usedByOther(path);
    if (!isDry) yield* removeAll(target);
  } finally {
    if (typeof lock === 'object') yield* unlock(lock);
    close({ descriptor: target.parent });
  }
}

export interface Aside {
  /** The new path of the directory, on the same file system. */
  readonly path: Path;
  /** True when the new name has to be on the disk before the removal: fsync(2). */
  readonly isSynced: boolean;
  /** Called while the directory is locked. Nothing happens if it returns false. */
  readonly isWanted: () => boolean;
  /** Called when the directory has its new name. */
  readonly onMoved: () => void;
}

/**
 * Renames a directory and then removes it, unless something uses it: then it throws as `remove`. Returns why it did
 * not: another program has locked the directory, or it is not wanted.
 */
export function* removeAside(path: Path, aside: Aside): Task<'removed' | 'locked' | 'unwanted'> {
  const target = yield* look(path);
  let lock: Held | 'taken' | undefined;
  let place: Descriptor | undefined;
  try {
    yield* refuseMountedOrUsed(target);
    lock = yield* lockDirectory(target.name, target.parent);
    if (lock === 'taken') return 'locked';
    if (!aside.isWanted()) return 'unwanted';
    const [above, name] = splitPath(aside.path);
    const plan = new Plan();
    const flags = k.O_DIRECTORY | k.O_CLOEXEC;
    const opened = plan.add(calls.openat2, [k.AT_FDCWD, above, flags, 0], { keep: true, output: 0 });
    plan.add(calls.renameat2, [target.parent, target.name, opened, name, k.RENAME_NOREPLACE]);
    if (aside.isSynced) {
      plan.add(calls.fsync, [opened]);
      plan.add(calls.fsync, [plan.add(calls.openat2, [target.parent, '.', flags, 0])]);
    }
    const outcome = yield* ask(plan);
    if (outcome instanceof StepFailure) throw explainRemoval(path, outcome.errno, '', 'rename');
    place = outcome.result(plan.stepOf(opened));
    aside.onMoved();
    yield* removeAll({ ...target, path: aside.path, parent: place, name });
    return 'removed';
  } finally {
    if (typeof lock === 'object') yield* unlock(lock);
    close({ descriptor: target.parent });
    if (place !== undefined) close({ descriptor: place });
  }
}

/** Explains the errors that removals have of their own. explainErrno covers the rest. */
function findVerdict(path: Path, place: Path, errno: number, isOpening: boolean): Verdict | undefined {
  switch (errno) {
    case e.ENOTDIR:
      return { reason: 'path-not-directory', what: `${quotePath(path)} is not a directory` };
    case e.EBUSY:
    case e.EXDEV:
      return { reason: 'mount-inside', what: `something is mounted at ${quotePath(place)}` };
    case e.EACCES:
    case e.EPERM:
      return isOpening
        ? { reason: 'path-inaccessible', what: `the directory ${quotePath(path)} cannot be reached` }
        : {
            reason: 'permission-denied',
            what: `this process may not remove ${quotePath(place)}`,
            hint: NEEDS_OWNER,
          };
    case e.ENOTEMPTY:
    case e.EEXIST:
      return {
        reason: 'path-exists',
        what: `another program creates files in ${quotePath(place)} while they are removed`,
        hint: 'end that program first',
      };
    default:
      return undefined;
  }
}

/** Explains why a directory could not be removed. Pure. */
function explainRemoval(path: Path, errno: number, inside: Path, syscall: string, denial?: Verdict): OverlayError {
  const place = placeOf(path, inside);
  const failed = { name: `the directory ${quotePath(path)}`, purpose: `remove ${quotePath(place)}` };
  const verdict = denial ?? findVerdict(path, place, errno, syscall === 'open') ?? explainErrno(errno, failed);
  const what = text`${verdict.what}${leftOf(path, inside)}`;
  return new OverlayError({ errno, syscall, path: pathString(place), ...verdict, what });
}

/**
 * Removes a layer directory or a workdir with all that it holds: unlinkat(2). If the mode of a directory denies access,
 * as that of the kernel's `work/work` (mode 000) does, the call first changes the mode, as the owner may: chmod(2). For a
 * user with subordinate ids, it removes files of these ids in a user namespace: newuidmap(1). It follows no symbolic link
 * and enters no mount. A removal that fails midway leaves the rest.
 *
 * The call refuses a directory that is a mount point or has one inside. It refuses a directory that is or holds a layer
 * or workdir of an overlay in the mount table of this thread, or that an `overlayfs run` uses. It also refuses the
 * upperdir and the workdir of an overlay that this process has mounted elsewhere, such as a detached one. If one of these
 * is further down, the removal ends when it reaches it. The call cannot detect, and so removes, the lower layers of such
 * an overlay and the layers of overlays that other processes have in another mount namespace.
 *
 * @throws {OverlayError} `reason` is `'path-missing'`, `'path-not-directory'` (also for a symbolic link),
 * `'path-inaccessible'`, `'mount-inside'`, `'layer-in-use'`, `'permission-denied'` or `'read-only'`
 */
export async function remove(dir: PathLike, options?: RemoveOptions): Promise<void> {
  const { dryRun = false } = toBooleanOptions(options, known);
  await run(removeDirectory(toDirectory(dir), { isDry: dryRun }));
}
