/** The launcher's orders, which show mounts at places to a program; native/launch.cc lists them. Pure. */
import * as k from '../kernel/constants.js';
import { type Ids, idMaps } from '../namespaces/user-namespace.js';
import { isAtOrBelow, type Path, toBytes } from '../paths.js';

/** A path, and the real path by which it is compared with others. */
export interface Place {
  readonly path: Path;
  readonly real: Path;
}

/** A mount and the place where the program sees it. */
export interface Placed {
  /** The descriptor in the launcher, or the path and the id of a mount that has a place already; or a path to bind. */
  readonly mount: number | { readonly path: Path; readonly id: number } | { readonly tree: Path };
  readonly at: Place;
}

export interface Launch {
  /** The descriptor to which the launcher writes a failure. */
  readonly report: number;
  readonly mounts: readonly Placed[];
  /** Trees that the program can only read, and paths that it finds empty. */
  readonly readonly: readonly Place[];
  readonly hidden: readonly Path[];
  /** The paths that the program can write to, by their real paths; all else is read-only. Undefined: no such limit. */
  readonly writable: readonly Path[] | undefined;
  /** The namespaces of its own, besides that of mounts. */
  readonly apart: readonly Apart[];
  /** The maps of the user namespace in which the program has uid 0. */
  readonly root: { readonly uids: string; readonly gids: string } | undefined;
  /** The ids of the program. Undefined: those of the caller. */
  readonly ids: ProgramIds | undefined;
  /**
   * The user namespace of a program without privilege: the ids to map in a new one, or the launcher's descriptor of an
   * existing one. Undefined: the process has the capabilities.
   */
  readonly user: Ids | { readonly joined: number } | undefined;
  readonly cwd: Path;
  readonly argv0: string | undefined;
  readonly command: readonly string[];
}

/** Kinds of namespaces: the option that asks for one, and the flag of unshare(2). */
export const namespaceFlags = {
  pids: k.CLONE_NEWPID,
  network: k.CLONE_NEWNET,
  ipc: k.CLONE_NEWIPC,
  uts: k.CLONE_NEWUTS,
} as const;

export type Apart = keyof typeof namespaceFlags;

export interface ProgramIds extends Ids {
  /** The supplementary groups. Undefined: they stay as they are. */
  readonly groups: readonly number[] | undefined;
}

/** One action of the launcher: a word and its arguments. */
export interface Order {
  readonly word: string;
  readonly args: readonly string[];
  /** The path as it was passed, for an error. */
  readonly path?: Path;
}

/** Encodes a path as an argument, which is text. */
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

const toNamespace = (kind: Apart): Order => ({ word: 'unshare', args: [String(namespaceFlags[kind])] });

const toLock = ({ uids, gids }: NonNullable<Launch['root']>): Order => ({
  word: 'lock',
  args: [String(k.CLONE_NEWUSER | k.CLONE_NEWNS), uids, gids],
});

const toIds = ({ uid, gid, groups }: ProgramIds): Order => ({
  word: 'ids',
  args: [String(uid), String(gid), groups === undefined ? '-' : groups.join(',')],
});

/** Without privilege, no mount can be cloned before there is a user namespace. */
function toPassing({ mount, at }: Placed, user: Launch['user']): Order[] {
  if (typeof mount !== 'number') return [];
  return [{ word: user === undefined ? 'copy' : 'cloexec', args: [String(mount)], path: at.path }];
}

function toTaking({ mount, at }: Placed): Order {
  if (typeof mount === 'number') return { word: 'clone', args: [String(mount)], path: at.path };
  return 'tree' in mount ? about('take', mount.tree) : about('tree', mount.path);
}

/** Files of the kernel in /proc that a program with uid 0 may write to, and that a contained one can only read. */
export const kernelPaths = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'] as const;

/**
 * Returns the orders of a launch. The launcher takes all mounts before it attaches one, which may hide another. A
 * read-only or hidden path may be inside a mount, so those orders come after. But a tree in which mounts are shown
 * becomes read-only before these, and after the last mount that contains it. Everything becomes read-only before the
 * mounts if only some paths are writable: these are taken before, and attached again.
 */
export function orders(launch: Launch): Order[] {
  const { report, mounts, cwd, argv0, command, user, writable, apart, root, ids } = launch;
  const isAround = ({ real }: Place) =>
    mounts.some(({ at }) => isAtOrBelow(at.real, real) && !isAtOrBelow(real, at.real));
  const around = launch.readonly.filter(isAround);
  const others = launch.readonly.filter((place) => !isAround(place));
  const mountsBefore = ({ real }: Place) => mounts.findLastIndex(({ at }) => isAtOrBelow(real, at.real)) + 1;
  const readonlyAfter = (count: number) =>
    around.filter((place) => mountsBefore(place) === count).map(({ path }) => about('readonly', path));
  const places = mounts.flatMap(({ mount }) => (typeof mount === 'number' || 'tree' in mount ? [] : [mount]));
  const isShown = (path: Path) => mounts.some(({ at }) => isAtOrBelow(path, at.real));
  const open = (writable ?? []).filter((path) => !isShown(path));
  const hasOwnPids = apart.includes('pids');
  const namespaces = apart.filter((kind) => kind !== 'pids').map(toNamespace);
  return [
    { word: 'report', args: [String(report)] },
    ...mounts.flatMap((placed) => toPassing(placed, user)),
    ...places.map(({ path, id }) => ({ word: 'mounted', args: [encodePath(path), String(id)], path })),
    ...toNamespaces(launch),
    ...(root === undefined ? namespaces : []),
    ...(hasOwnPids ? [toNamespace('pids'), { word: 'init', args: [] }] : []),
    // With `slave`, the program loses a mount when its owner unmounts it, and does not keep its file system alive. A
    // read-only tree needs `private`: it would otherwise receive mounts that are not read-only.
    { word: launch.readonly.length > 0 || writable !== undefined ? 'private' : 'slave', args: [] },
    ...(hasOwnPids || root !== undefined ? [{ word: 'proc', args: [hasOwnPids ? 'new' : 'own'] }] : []),
    ...open.map((path) => about('take', path)),
    ...mounts.map(toTaking),
    ...(writable === undefined ? [] : [about('readonly', '/')]),
    ...open.map((path) => about('attach', path)),
    ...readonlyAfter(0),
    ...mounts.flatMap(({ at }, i) => [about('attach', at.path), ...readonlyAfter(i + 1)]),
    ...(hasOwnPids ? [{ word: 'show-proc', args: [] }] : []),
    ...(hasOwnPids && writable !== undefined ? kernelPaths.map((path) => about('readonly-any', path)) : []),
    ...others.map(({ path }) => about('readonly', path)),
    ...launch.hidden.map((path) => about('hide', path)),
    // The program has all capabilities over the namespaces that come after the lock, and none over those before.
    ...(root === undefined ? [] : [toLock(root), ...namespaces]),
    ...(apart.includes('network') ? [{ word: 'network', args: [] }] : []),
    ...(user === undefined || root !== undefined ? [] : [{ word: 'drop', args: [] }]),
    ...(ids === undefined ? [] : [toIds(ids)]),
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

/**
 * Parses the launcher's report: the position of the word that failed, counted from the launcher's own name, and an
 * errno.
 */
export function readReport(given: readonly Order[], text: string): LaunchFailure | undefined {
  const [position = Number.NaN, errno = Number.NaN] = text.split(' ').map(Number);
  let at = 1;
  for (const order of given) {
    if (at === position) return { order, errno };
    at += 1 + order.args.length;
  }
  return undefined;
}
