/** What the launcher is told, so that a program sees mounts at places: native/launch.cc says how. Pure. */
import * as k from '../kernel/constants.js';
import { type Ids, idMaps } from '../kernel/namespaces.js';
import { isAtOrBelow, type Path, toBytes } from '../paths.js';

/** A path, and where it leads, by which it is compared with others. */
export interface Place {
  readonly path: Path;
  readonly real: Path;
}

/** A mount and where it is to be seen. */
export interface Placed {
  /** The descriptor in the launcher, or where a mount is that has a place already. */
  readonly mount: number | { readonly path: Path; readonly id: number };
  readonly at: Place;
}

export interface Launch {
  /** Where the launcher writes what failed. */
  readonly report: number;
  readonly mounts: readonly Placed[];
  /** Trees that the program can only read, and what it finds empty. */
  readonly readonly: readonly Place[];
  readonly hidden: readonly Path[];
  /**
   * For a program without privilege: the ids of its user namespace, or the descriptor in the launcher of one that is
   * there. Undefined: the capabilities are there.
   */
  readonly user: Ids | { readonly joined: number } | undefined;
  readonly cwd: Path;
  readonly argv0: string | undefined;
  readonly command: readonly string[];
}

/** One thing that the launcher does: a word and what it is about. */
export interface Order {
  readonly word: string;
  readonly args: readonly string[];
  /** As it was passed, for an error. */
  readonly path?: Path;
}

/** A path as an argument, which is text. */
function encodePath(path: Path): string {
  const isPlain = (byte: number) => byte > 0x20 && byte < 0x7f && byte !== 0x25;
  return Array.from(toBytes(path), (byte) =>
    isPlain(byte) ? String.fromCharCode(byte) : `%${byte.toString(16).padStart(2, '0')}`,
  ).join('');
}

const about = (word: string, path: Path): Order => ({ word, args: [encodePath(path)], path });

function toNamespaces({ user }: Launch): Order[] {
  const newMounts = { word: 'unshare', args: [String(k.CLONE_NEWNS)] };
  if (user === undefined) return [newMounts];
  if ('joined' in user) {
    const args = [String(user.joined)];
    return [{ word: 'cloexec', args }, { word: 'join', args }, newMounts];
  }
  return [
    { word: 'unshare', args: [String(k.CLONE_NEWUSER | k.CLONE_NEWNS)] },
    ...idMaps(user).map((args) => ({ word: 'write', args })),
  ];
}

/**
 * All mounts are taken hold of before one is attached, which may hide another. What is to be read-only or hidden may
 * be inside of one, and so comes after that; but a tree in which a mount is shown becomes read-only without it.
 */
export function orders(launch: Launch): Order[] {
  const { report, mounts, cwd, argv0, command, user } = launch;
  const isAround = ({ real }: Place) =>
    mounts.some(({ at }) => isAtOrBelow(at.real, real) && !isAtOrBelow(real, at.real));
  const around = launch.readonly.filter(isAround);
  const others = launch.readonly.filter((place) => !isAround(place));
  const places = mounts.flatMap(({ mount }) => (typeof mount === 'number' ? [] : [mount]));
  const descriptors = mounts.flatMap(({ mount }) => (typeof mount === 'number' ? [mount] : []));
  return [
    { word: 'report', args: [String(report)] },
    ...descriptors.map((descriptor) => ({ word: 'cloexec', args: [String(descriptor)] })),
    ...places.map(({ path, id }) => ({ word: 'mounted', args: [encodePath(path), String(id)], path })),
    ...toNamespaces(launch),
    // As a slave the program loses a mount when its owner unmounts it, and does not keep its file system alive. A tree
    // that is read-only would get mounts that are not.
    { word: launch.readonly.length > 0 ? 'private' : 'slave', args: [] },
    ...mounts.map(({ mount, at }) =>
      typeof mount === 'number' ? { word: 'clone', args: [String(mount)], path: at.path } : about('tree', mount.path),
    ),
    ...around.map(({ path }) => about('readonly', path)),
    ...mounts.map(({ at }) => about('attach', at.path)),
    ...others.map(({ path }) => about('readonly', path)),
    ...launch.hidden.map((path) => about('hide', path)),
    ...(user === undefined ? [] : [{ word: 'drop', args: [] }]),
    about('chdir', cwd),
    ...(argv0 === undefined ? [] : [{ word: 'argv0', args: [argv0] }]),
    { word: 'exec', args: command },
  ];
}

export const toArguments = (given: readonly Order[]): string[] => given.flatMap(({ word, args }) => [word, ...args]);

export interface LaunchFailure {
  readonly order: Order;
  /** A positive number. */
  readonly errno: number;
}

/** What the launcher has reported: the position of the word that failed, counted from its own name, and an errno. */
export function readReport(given: readonly Order[], text: string): LaunchFailure | undefined {
  const [position = Number.NaN, errno = Number.NaN] = text.split(' ').map(Number);
  let at = 1;
  for (const order of given) {
    if (at === position) return { order, errno };
    at += 1 + order.args.length;
  }
  return undefined;
}
