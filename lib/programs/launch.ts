/** The launcher's orders, which show mounts at places to a program; native/launch.cc lists them. Pure. */
import * as k from '../kernel/constants.js';
import { type Ids, idMaps } from '../namespaces/user-namespace.js';
import type { TmpfsLimits } from '../options/tmpfs-limits.js';
import { isAtOrBelow, type Path, toBytes } from '../paths.js';

/** A path, and the real path by which it is compared with others. */
export interface Place {
  readonly path: Path;
  readonly real: Path;
}

/** A mount and the place where the program sees it. */
export interface Placed {
  /** The descriptor in the launcher; the path and the id of a mount that has a place; a path to bind; or a new tmpfs. */
  readonly mount:
    | number
    | { readonly path: Path; readonly id: number }
    | { readonly tree: Path }
    | { readonly tmpfs: TmpfsLimits };
  readonly at: Place;
}

/** The maps of a user namespace. */
export interface Maps {
  readonly uids: string;
  readonly gids: string;
}

export interface Lock {
  readonly maps: Maps;
  /** False: if there can be no such namespace, as in a chroot, the program has no capability instead. */
  readonly isNeeded: boolean;
}

export interface Launch {
  /** The descriptor to which the launcher writes a failure. */
  readonly report: number;
  /** The descriptors that the caller has not named, as ranges, both ends included. */
  readonly closed: readonly (readonly [first: number, last: number])[];
  readonly mounts: readonly Placed[];
  /** Trees that the program can only read, and paths that it finds empty. */
  readonly readonly: readonly Place[];
  readonly hidden: readonly Path[];
  /** The paths that the program can write to, by their real paths; all else is read-only. Undefined: no such limit. */
  readonly writable: readonly Path[] | undefined;
  /** The program has uid 0 in a namespace of its own, as in a container: the caller's keys and files are not for it. */
  readonly isContained: boolean;
  /** There is something that the program must not undo. */
  readonly isRestricted: boolean;
  /** The program has a small /dev, and no device node works elsewhere. */
  readonly hasOwnDev: boolean;
  /** The namespaces of its own, besides that of mounts. */
  readonly unshared: ReadonlySet<Unshared>;
  readonly hostname: string | undefined;
  /** The user namespace in which the program cannot undo its mounts. */
  readonly lock: Lock | undefined;
  /** The ids of the program. Undefined: those of the caller. */
  readonly ids: ProgramIds | undefined;
  /**
   * The user namespace of a program without privilege: the ids to map in a new one, or the launcher's descriptor of an
   * existing one. Undefined: the process has the capabilities.
   */
  readonly user: Ids | { readonly joined: number } | undefined;
  /** The process with which the program ends. */
  readonly parent: number | undefined;
  /** True if the program keeps the capabilities over its user namespace, and so can mount. */
  readonly keepsCapabilities: boolean;
  readonly cwd: Path;
  readonly argv0: string | undefined;
  readonly command: readonly string[];
}

/** Kinds of namespaces: the word of unshare(1), and the flag of unshare(2). */
export const namespaceFlags = {
  pid: k.CLONE_NEWPID,
  net: k.CLONE_NEWNET,
  ipc: k.CLONE_NEWIPC,
  uts: k.CLONE_NEWUTS,
} as const;

/** A kind of namespace: unshare(1). */
export type Unshared = keyof typeof namespaceFlags;

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

const toNamespace = (kind: Unshared): Order => ({ word: 'unshare', args: [String(namespaceFlags[kind])] });

const toLock = ({ maps: { uids, gids }, isNeeded }: Lock): Order => ({
  word: isNeeded ? 'lock' : 'confine',
  args: [String(k.CLONE_NEWUSER | k.CLONE_NEWNS), uids, gids],
});

const toIds = ({ uid, gid, groups }: ProgramIds): Order => ({
  word: 'ids',
  args: [String(uid), String(gid), groups === undefined ? '-' : groups.join(',')],
});

/** The descriptors that the launcher needs only until the program starts. */
const toPassed = ({ mounts, user }: Launch): number[] => [
  ...mounts.flatMap(({ mount }) => (typeof mount === 'number' ? [mount] : [])),
  ...(user !== undefined && 'joined' in user ? [user.joined] : []),
];

const toClose = ([first, last]: readonly [number, number]): Order => ({
  word: 'close',
  args: [String(first), String(last)],
});

/** Without privilege, no mount can be cloned before there is a user namespace. */
function toPassing({ mount, at }: Placed, user: Launch['user']): Order[] {
  if (typeof mount !== 'number') return [];
  return [{ word: user === undefined ? 'copy' : 'cloexec', args: [String(mount)], path: at.path }];
}

function toTaking({ mount, at }: Placed): Order {
  if (typeof mount === 'number') return { word: 'clone', args: [String(mount)], path: at.path };
  if ('tmpfs' in mount) {
    const { size, inodes } = mount.tmpfs;
    return { word: 'tmpfs', args: [`${size ?? '-'}`, `${inodes ?? '-'}`], path: at.path };
  }
  return 'tree' in mount ? about('take', mount.tree) : about('tree', mount.path);
}

const isInDev = (path: Path): boolean => isAtOrBelow(path, '/dev');

/** Returns the order for a path. A path that only the host's /dev has is neither written nor seen. */
const aboutAny = (word: string, path: Path, { hasOwnDev }: Launch): Order =>
  about(hasOwnDev && isInDev(path) ? `${word}-any` : word, path);

/**
 * Files of the kernel in /proc that uid 0 may write to, and that a contained or restricted program can only read: it
 * would reach all else by core(5), which starts programs outside.
 */
export const kernelPaths = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'] as const;

/**
 * Returns the orders of a launch. The launcher takes all mounts before it attaches one, which may hide another. A
 * read-only or hidden path may be inside a mount, so those orders come after. But a tree in which mounts are shown
 * becomes read-only before these, and after the last mount that contains it. Everything becomes read-only before the
 * mounts if only some paths are writable: these are taken before, and attached again.
 */
export function orders(launch: Launch): Order[] {
  const { mounts, user, writable, unshared, lock, ids } = launch;
  const isAround = ({ real }: Place) =>
    mounts.some(({ at }) => isAtOrBelow(at.real, real) && !isAtOrBelow(real, at.real));
  const around = launch.readonly.filter(isAround);
  const others = launch.readonly.filter((place) => !isAround(place));
  const mountsBefore = ({ real }: Place) => mounts.findLastIndex(({ at }) => isAtOrBelow(real, at.real)) + 1;
  const readonlyAfter = (count: number) =>
    around.filter((place) => mountsBefore(place) === count).map(({ path }) => about('readonly', path));
  const places = mounts.flatMap(({ mount }) => (typeof mount === 'object' && 'id' in mount ? [mount] : []));
  const isShown = (path: Path) => mounts.some(({ at }) => isAtOrBelow(path, at.real));
  const open = (writable ?? []).filter((path) => !isShown(path));
  // The caller has chosen the nodes in /dev.
  const taking = (order: Order, to: Path): Order[] =>
    launch.hasOwnDev && !isInDev(to) ? [order, { word: 'nodev', args: [], path: to }] : [order];
  const isPrivate = launch.readonly.length > 0 || writable !== undefined || launch.hasOwnDev;
  const hasOwnPids = unshared.has('pid');
  const dying = launch.parent === undefined ? [] : [{ word: 'die-with', args: [String(launch.parent)] }];
  const namespaces = [...unshared].filter((kind) => kind !== 'pid').map(toNamespace);
  return [
    { word: 'report', args: [String(launch.report)] },
    ...(launch.isContained ? [{ word: 'seal', args: [] }] : []),
    ...launch.closed.map(toClose),
    ...mounts.flatMap((placed) => toPassing(placed, user)),
    ...places.map(({ path, id }) => ({ word: 'mounted', args: [encodePath(path), String(id)], path })),
    ...toNamespaces(launch),
    ...(launch.isRestricted ? [{ word: 'terminal', args: [] }] : []),
    ...(lock === undefined ? namespaces : []),
    // The process that waits dies, and with it all others.
    ...(hasOwnPids ? [toNamespace('pid'), ...dying, { word: 'init', args: [] }] : []),
    // With `slave`, the program loses a mount when its owner unmounts it, and does not keep its file system alive. A
    // read-only tree needs `private`: it would otherwise receive mounts that are not read-only, or have device nodes.
    { word: isPrivate ? 'private' : 'slave', args: [] },
    ...(hasOwnPids || lock !== undefined || launch.isRestricted
      ? [{ word: 'proc', args: [hasOwnPids ? 'new' : 'own'] }]
      : []),
    ...open.flatMap((path) => taking(about('take', path), path)),
    ...mounts.flatMap((placed) => taking(toTaking(placed), placed.at.real)),
    ...(writable === undefined ? [] : [about('readonly', '/')]),
    ...(launch.hasOwnDev ? [{ word: 'dev', args: [] }] : []),
    ...open.map((path) => about('attach', path)),
    ...readonlyAfter(0),
    ...mounts.flatMap(({ at }, i) => [about('attach', at.path), ...readonlyAfter(i + 1)]),
    ...(hasOwnPids ? [{ word: 'show-proc', args: [] }] : []),
    ...(launch.isRestricted
      ? [...[...kernelPaths, '/sys'].map((path) => about('readonly-any', path)), { word: 'readonly-kernel', args: [] }]
      : []),
    ...others.map(({ path }) => aboutAny('readonly', path, launch)),
    ...launch.hidden.map((path) => aboutAny('hide', path, launch)),
    // The program has all capabilities over the namespaces that come after the lock, and none over those before.
    ...(lock === undefined ? [] : [toLock(lock), ...namespaces]),
    // A cgroup2 file system of its own would be writable, with the same cgroups as the one that is read-only.
    ...(launch.isRestricted ? [{ word: 'limit', args: ['max_cgroup_namespaces', '0'] }] : []),
    ...(unshared.has('net') ? [{ word: 'network', args: [] }] : []),
    ...(launch.hostname === undefined ? [] : [{ word: 'hostname', args: [launch.hostname] }]),
    ...(user === undefined || lock !== undefined || launch.keepsCapabilities ? [] : [{ word: 'drop', args: [] }]),
    ...(launch.keepsCapabilities ? [{ word: 'ambient', args: [] }] : []),
    ...(ids === undefined ? [] : [toIds(ids)]),
    ...(launch.isContained ? [{ word: 'keyring', args: [] }] : []),
    // A change of ids or capabilities clears it, prctl(2).
    ...(hasOwnPids ? [] : dying),
    // A working directory of /proc/self/fd/N would lead to what the launcher has opened, such as a writable /proc.
    ...[...launch.closed, ...toPassed(launch).map((fd) => [fd, fd] as const)].map(toClose),
    about('chdir', launch.cwd),
    ...(launch.argv0 === undefined ? [] : [{ word: 'argv0', args: [launch.argv0] }]),
    { word: 'exec', args: launch.command },
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
