/** Files in the root of a container. No symbolic link in it leads out: openat2(2) with RESOLVE_IN_ROOT (5.6). */
import { fstatSync, readFileSync, readlinkSync } from 'node:fs';
import * as e from '../errnos.js';
import { explainProc, OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import { close } from '../kernel/held.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { joinPath, type Path, quotePath } from '../paths.js';
import { explainErrno } from '../verdicts.js';
import { ImageError } from './errors.js';

/** The most bytes of a file that is read. */
const MOST = 16 * 2 ** 20;

function refused(path: string, failure: StepFailure): OverlayError {
  const { errno } = failure;
  const name = `${quotePath(path)} in the container`;
  const verdict =
    errno === e.ENOSYS
      ? explainErrno(errno, { name, purpose: `use ${name}`, syscall: failure.step?.call.name })
      : ({ reason: 'path-inaccessible', what: `${name} cannot be used` } as const);
  return new OverlayError({ errno, path, ...(explainFiltered(failure) ?? verdict) });
}

/** Opens a path below the root. Comes to undefined if there is nothing. */
async function open(root: Path, path: string, flags: number, resolve = 0): Promise<number | undefined> {
  const plan = new Plan();
  const top = plan.add(calls.openat2, [k.AT_FDCWD, root, k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0]);
  const found = plan.add(calls.openat2, [top, path, flags | k.O_CLOEXEC, k.RESOLVE_IN_ROOT | resolve], {
    keep: true,
    output: 0,
  });
  const outcome = await perform(plan);
  if (!(outcome instanceof StepFailure)) return outcome.result(plan.stepOf(found));
  if (outcome.errno === e.ENOENT) return undefined;
  throw refused(path, outcome);
}

/** Returns true if there is something at a path of the container. */
async function isInRoot(root: Path, path: string): Promise<boolean> {
  const descriptor = await open(root, path, k.O_PATH);
  if (descriptor !== undefined) close({ descriptor });
  return descriptor !== undefined;
}

/** The kind of a mount's place; a file is anything but a directory. */
export type PlaceKind = 'directory' | 'file';

function unusable(path: string, is: string, kind: PlaceKind): ImageError {
  return new ImageError({
    code: 'ERR_IMAGE_INVALID',
    what: `the image cannot be run: its ${quotePath(path)} ${is}, and the container needs a ${kind} there`,
    hint: `have the image hold a ${kind} at ${quotePath(path)}, or nothing`,
    path,
  });
}

/**
 * Checks that a place of a mount is a real directory or file, and no symbolic link is on the way to it. Programs that
 * make the mount would follow it, some out of the root.
 *
 * @throws {ImageError} `ERR_IMAGE_INVALID`
 */
export async function checkPlaceInRoot(root: Path, path: string, kind: PlaceKind): Promise<void> {
  let descriptor: number | undefined;
  try {
    descriptor = await open(root, path, k.O_PATH, k.RESOLVE_NO_SYMLINKS);
  } catch (error) {
    if ((error as OverlayError).code === 'ELOOP') throw unusable(path, 'is a symbolic link, or below one', kind);
    throw error;
  }
  if (descriptor === undefined) throw unusable(path, 'is missing', kind);
  try {
    const isDirectory = fstatSync(descriptor).isDirectory();
    if (isDirectory !== (kind === 'directory')) throw unusable(path, `is ${isDirectory ? 'a' : 'no'} directory`, kind);
  } finally {
    close({ descriptor });
  }
}

function pathOf(descriptor: number): string {
  const path = `/proc/self/fd/${descriptor}`;
  try {
    return readlinkSync(path);
  } catch (error) {
    throw explainProc(error, path);
  }
}

/** Returns the path without symbolic links of what a path of the container leads to, or undefined for nothing. */
export async function toRealInRoot(root: Path, path: string): Promise<string | undefined> {
  const top = await open(root, '/', k.O_PATH);
  const found = await open(root, path, k.O_PATH);
  try {
    if (top === undefined || found === undefined) return undefined;
    // The root of a detached mount has the path /.
    const [above, whole] = [top, found].map(pathOf) as [string, string];
    return above === '/' ? whole : whole.slice(above.length) || '/';
  } finally {
    for (const descriptor of [top, found]) if (descriptor !== undefined) close({ descriptor });
  }
}

/** Reads a text file of the container. A missing one is empty. */
async function read(root: Path, path: string): Promise<string> {
  const descriptor = await open(root, path, k.O_NONBLOCK);
  if (descriptor === undefined) return '';
  try {
    const found = fstatSync(descriptor);
    return found.isFile() && found.size <= MOST ? readFileSync(descriptor, 'utf8') : '';
  } finally {
    close({ descriptor });
  }
}

/** Makes a directory of the container, and those above it; or an empty file, which a file can be mounted on. */
export async function makeInRoot(root: Path, path: string, kind: PlaceKind = 'directory'): Promise<void> {
  const names = path.split('/').filter((name) => name !== '' && name !== '.');
  let above = '/';
  for (const [i, name] of names.entries()) {
    const isFile = kind === 'file' && i === names.length - 1;
    const here = String(joinPath(above, name));
    if (!(await isInRoot(root, here))) {
      const plan = new Plan();
      const top = plan.add(calls.openat2, [k.AT_FDCWD, root, k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0]);
      const directory = plan.add(calls.openat2, [
        top,
        above,
        k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC,
        k.RESOLVE_IN_ROOT,
      ]);
      if (isFile) plan.add(calls.mknodat, [directory, name, k.S_IFREG | 0o644, 0], { tolerate: [e.EEXIST] });
      else plan.add(calls.mkdirat, [directory, name, 0o755], { tolerate: [e.EEXIST] });
      const outcome = await perform(plan);
      if (outcome instanceof StepFailure) throw refused(here, outcome);
    }
    above = here;
  }
}

/** The ids of a program, and its home directory. */
export interface ContainerUser {
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly home: string;
}

const linesOf = (text: string): string[][] => text.split('\n').map((line) => line.split(':'));

const toId = (text: string | undefined): number | undefined =>
  text !== undefined && /^\d{1,10}$/.test(text) && Number(text) < 2 ** 32 - 1 ? Number(text) : undefined;

function missing(kind: 'user' | 'group', name: string): ImageError {
  return new ImageError({
    code: 'ERR_IMAGE_USER_MISSING',
    what: `the image has no ${kind} ${quotePath(name)}`,
    hint: `name one of /etc/${kind === 'user' ? 'passwd' : 'group'} in the image, or an id`,
  });
}

/**
 * Returns the user of a container. `user` is that of the image's configuration: `NAME`, `ID`, and either with `:GROUP`.
 *
 * @throws {ImageError} `ERR_IMAGE_USER_MISSING`
 */
export async function findUser(root: Path, user: string): Promise<ContainerUser> {
  const [name = '', group, ...more] = (user === '' ? '0' : user).split(':');
  if (more.length > 0 || name === '' || group === '') throw missing('user', user);
  const [passwd, groups] = [linesOf(await read(root, '/etc/passwd')), linesOf(await read(root, '/etc/group'))];
  // A number is an id, even if there is a user or group of that name.
  const given = toId(name);
  const entry = passwd.find((line) => (given === undefined ? line[0] === name : toId(line[2]) === given));
  const uid = given ?? toId(entry?.[2]);
  if (uid === undefined) throw missing('user', name);
  const home = entry?.[5] === undefined || entry[5] === '' ? '/' : entry[5];
  if (group !== undefined) {
    const gid = toId(group) ?? toId(groups.find((line) => line[0] === group)?.[2]);
    if (gid === undefined) throw missing('group', group);
    return { uid, gid, groups: [], home };
  }
  const gid = toId(entry?.[3]) ?? 0;
  const others = groups.flatMap(([, , id, members]) => {
    const isMember = entry?.[0] !== undefined && members?.split(',').includes(entry[0]);
    const found = toId(id);
    return isMember && found !== undefined && found !== gid ? [found] : [];
  });
  return { uid, gid, groups: [...new Set(others)], home };
}
