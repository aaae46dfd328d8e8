/** Removal of layer directories and work directories, with whatever modes the kernel has left in them. */

import * as e from '../errnos.js';
import { explainShortage, invalidArgumentValue, OverlayError } from '../errors.js';
import { askUse } from '../in-use/probe.js';
import { findUser, forgetUser } from '../in-use/registry.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { close, type Held } from '../kernel/held.js';
import { addLook, type Found, readLook } from '../kernel/look.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { layersOf } from '../mount-table/layers-of.js';
import { listRaw } from '../mount-table/table.js';
import {
  isAtOrBelow,
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
import type { Reason } from '../reasons.js';
import { makeSubIdNamespace } from '../rootless/sub-ids.js';
import { lockDirectory } from './lock.js';

/** Entries removed in one native call: a program that ends waits for the call under way. */
const SLICE = 5000;
const PATH_ROOM = 4096;

interface Target {
  readonly path: Path;
  readonly name: Path;
  /** The directory that it is in. */
  readonly parent: Descriptor;
  readonly found: Found;
  /** Without symbolic links. */
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

function* look(path: Path): Dialogue<Target> {
  const [above, name] = splitPath(path);
  const plan = new Plan();
  const open = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC;
  const parent = plan.add(calls.openat2, [k.AT_FDCWD, above, open, 0], { keep: true, output: 0 });
  const directory = plan.add(calls.openat2, [parent, name, open | k.O_NOFOLLOW, 0]);
  const found = addLook(plan, '', { at: directory, flags: k.AT_EMPTY_PATH, tolerate: [] });
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
    found: readLook(found, outcome),
    real: length > 0 ? outcome.bytes(link, length) : path,
  };
}

const inUse = (path: Path, what: string, reason: Reason = 'layer-in-use'): OverlayError =>
  new OverlayError({ errno: e.EBUSY, reason, what, path: pathString(path) });

/** Throws where the directory is a mount point or has one inside, or where an overlay is known to use it. */
function* refuseUsed({ path, found, real }: Target): Dialogue<void> {
  const shown = quotePath(path);
  if (found.isMountRoot) throw inUse(path, `${shown} is a mount point`, 'mount-inside');
  const isInside = (raw: string): boolean => isAtOrBelow(Buffer.from(raw, 'latin1'), real);
  const mounts = yield* listRaw({ select: ({ type, target }) => type === 'overlay' || isInside(target) });
  for (const { type, target, options } of mounts) {
    const place = quotePath(Buffer.from(target, 'latin1'));
    if (isInside(target)) throw inUse(path, `something is mounted inside ${shown}, at ${place}`, 'mount-inside');
    if (type === 'overlay' && layersOf(options).some(isInside)) {
      throw inUse(path, `the overlay at ${place} has a layer or its workdir in ${shown}`);
    }
  }
  if ((yield* askRecord(path)) === 'used') throw usedUnseen(path);
}

const usedUnseen = (path: Path, left = ''): OverlayError =>
  inUse(path, `an overlay that this process has mounted uses ${quotePath(path)}${left}`);

/**
 * Whether a mount that this process has made or seen uses the directory, such as a detached one. `'forgotten'`: one
 * that the record had does so no more.
 */
function* askRecord(path: Path): Dialogue<'used' | 'free' | 'forgotten'> {
  const user = yield* findUser(path);
  if (user === undefined) return 'free';
  if (user.isCertain || (yield* askUse(path, '/')) !== false) return 'used';
  yield* forgetUser(path, user);
  return 'forgotten';
}

interface Failure {
  readonly errno: number;
  /** The path inside the directory, where it is known. */
  readonly inside: Path;
}

/** Removes it in slices; `user` is a user namespace to do so in. */
function* remove({ path, parent, name }: Target, user?: Descriptor): Dialogue<Failure | undefined> {
  for (let isFirst = true; ; isFirst = false) {
    const plan = new Plan();
    if (user !== undefined) {
      plan.isInChild = true;
      plan.add(calls.setns, [user, k.CLONE_NEWUSER]);
    }
    // The last one spares a directory that an overlay uses.
    const args = [parent, name, 0, SLICE, PATH_ROOM, 1];
    const step = plan.stepOf(plan.add(calls.remove, args, { output: PATH_ROOM, tolerate: 'any' }));
    const outcome = yield* ask(plan);
    if (outcome instanceof StepFailure) return { errno: outcome.errno, inside: '' };
    const result = outcome.result(step);
    if (result === 0) return undefined;
    if (result > 0) continue;
    // Another program has been quicker.
    if (!isFirst && result === -e.ENOENT) return undefined;
    const bytes = outcome.bytes(step, PATH_ROOM);
    const inside = bytes.subarray(0, bytes.indexOf(0));
    if (result === -e.EBUSY || result === -e.ESTALE) {
      const place = placeOf(path, inside);
      const use = yield* askRecord(place);
      if (use === 'used') throw usedUnseen(place, leftOf(path, inside));
      if (use === 'forgotten') continue;
    }
    return { errno: -result, inside };
  }
}

const placeOf = (path: Path, inside: Path): Path => (inside.length === 0 ? path : joinPath(path, inside));

const leftOf = (path: Path, inside: Path): string =>
  inside.length === 0 ? '' : `; other contents of ${quotePath(path)} may be gone`;

const isDenied = ({ errno }: Failure): boolean => errno === e.EACCES || errno === e.EPERM;

/** Those of the user, where it has subordinate ids that it can map. */
function* subIdNamespace(): Dialogue<Descriptor | undefined> {
  try {
    return yield* makeSubIdNamespace();
  } catch (error) {
    if (error instanceof OverlayError) return undefined;
    throw error;
  }
}

function* removeDirectory(path: Path): Dialogue<void> {
  const target = yield* look(path);
  let lock: Held | 'taken' | undefined;
  try {
    yield* refuseUsed(target);
    lock = yield* lockDirectory(target.name, target.parent);
    if (lock === 'taken') throw inUse(path, `the overlay of an \`overlayfs run\` uses ${quotePath(path)}`);
    let failure = yield* remove(target);
    if (failure !== undefined && isDenied(failure)) {
      const user = yield* subIdNamespace();
      if (user !== undefined) {
        try {
          failure = yield* remove(target, user);
        } finally {
          close({ descriptor: user });
        }
      }
    }
    if (failure !== undefined) throw explainRemoval(path, failure.errno, failure.inside);
  } finally {
    if (typeof lock === 'object') close(lock);
    close({ descriptor: target.parent });
  }
}

/** The reason for a directory that could not be removed. Pure. */
export function explainRemoval(path: Path, errno: number, inside: Path, syscall = 'unlink'): OverlayError {
  const shown = quotePath(path);
  const place = placeOf(path, inside);
  const left = leftOf(path, inside);
  const fields = (reason: Reason, what: string, hint?: string): OverlayError =>
    new OverlayError({ errno, syscall, path: pathString(place), reason, what: what + left, hint });
  const isOpening = syscall === 'open';
  switch (errno) {
    case e.ENOENT:
      return fields('path-missing', `the directory ${shown} does not exist`);
    case e.ENOTDIR:
      return fields('path-not-directory', `${shown} is not a directory`);
    case e.EBUSY:
    case e.EXDEV:
      return fields('mount-inside', `something is mounted at ${quotePath(place)}`);
    case e.EROFS:
      return fields('read-only', `the file system of ${shown} is read-only`);
    case e.EACCES:
    case e.EPERM:
      if (isOpening) return fields('path-inaccessible', `the directory ${shown} cannot be reached`);
      return fields(
        'permission-denied',
        `this process may not remove ${quotePath(place)}`,
        'run as the owner or as root; for files of subordinate ids the user needs newuidmap(1); see lsattr(1) for what is immutable',
      );
    case e.ELOOP:
    case e.ENAMETOOLONG:
      return fields('path-inaccessible', `the directory ${shown} cannot be reached`);
    case e.ENOTEMPTY:
    case e.EEXIST:
      return fields(
        'path-exists',
        `another program makes files in ${quotePath(place)} as fast as they are removed`,
        'end that program first',
      );
    default:
      return (
        explainShortage(errno, `remove ${shown}`) ?? fields('unexplained', `${quotePath(place)} could not be removed`)
      );
  }
}

/**
 * Removes a layer directory or a workdir with all that it holds: unlinkat(2). Directories that their mode closes, as
 * the kernel's `work/work` of mode 000, are opened up first by their owner, chmod(2). A user with subordinate ids
 * removes files of these ids in a user namespace, by newuidmap(1). Symbolic links are not followed, and no mount is
 * entered. A removal that fails midway leaves the rest.
 *
 * A directory that is a mount point or has one inside is refused, and so is one that is or holds a layer or workdir of
 * an overlay in the mount table of this thread, or that an `overlayfs run` uses. The upperdir and the workdir of an
 * overlay that this process has mounted elsewhere, such as a detached one, are refused too. If they are further down, the
 * removal ends when it comes to them. Nothing tells of lower layers of such an overlay, or of overlays that other
 * processes have in another mount namespace: these are removed.
 *
 * @throws {OverlayError} `reason` is `'path-missing'`, `'path-not-directory'` (a symbolic link, too),
 * `'path-inaccessible'`, `'mount-inside'`, `'layer-in-use'`, `'permission-denied'` or `'read-only'`
 */
export async function removeLayer(dir: PathLike): Promise<void> {
  await hold(removeDirectory(toDirectory(dir)));
}

/** `removeLayer`, on the calling thread. */
export function removeLayerSync(dir: PathLike): void {
  holdSync(removeDirectory(toDirectory(dir)));
}
