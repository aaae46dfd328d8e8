/** Files in the root of a container. No symbolic link in it leads out: openat2(2) with RESOLVE_IN_ROOT (5.6). */
import { fstatSync, readFileSync } from 'node:fs';
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close } from '../kernel/held.js';
import { perform, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { joinPath, type Path, quotePath } from '../paths.js';
import { ImageError } from './errors.js';

/** The most bytes of a file that is read. */
const MOST = 16 * 2 ** 20;

function refused(path: string, errno: number): OverlayError {
  const what = `${quotePath(path)} in the container cannot be used`;
  return new OverlayError({ errno, reason: 'path-inaccessible', what, path });
}

/** Opens a path below the root. Comes to undefined if there is nothing. */
async function open(root: Path, path: string, flags: number): Promise<number | undefined> {
  const plan = new Plan();
  const top = plan.add(calls.openat2, [k.AT_FDCWD, root, k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0]);
  const found = plan.add(calls.openat2, [top, path, flags | k.O_CLOEXEC, k.RESOLVE_IN_ROOT], {
    keep: true,
    output: 0,
  });
  const outcome = await perform(plan);
  if (!(outcome instanceof StepFailure)) return outcome.result(plan.stepOf(found));
  if (outcome.errno === e.ENOENT) return undefined;
  throw refused(path, outcome.errno);
}

/** Returns true if there is something at a path of the container. */
export async function isInRoot(root: Path, path: string): Promise<boolean> {
  const descriptor = await open(root, path, k.O_PATH);
  if (descriptor !== undefined) close({ descriptor });
  return descriptor !== undefined;
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
export async function makeInRoot(root: Path, path: string, kind: 'directory' | 'file' = 'directory'): Promise<void> {
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
      if (outcome instanceof StepFailure) throw refused(here, outcome.errno);
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
