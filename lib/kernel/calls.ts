/**
 * The calls that a plan may hold, with the kinds of their arguments. Plans are encoded and printed from this one table.
 * native/plan.h holds the list of the calls, and says which of their arguments are file descriptors.
 */
import { addon } from '../native.js';
import type { Path } from '../paths.js';
import * as k from './constants.js';

/** A file descriptor: the kernel's number, or the number of an earlier step, from `Plan.add`. */
export type Descriptor = number;

/** A path or a value. An array is concatenated when its step is reached; its numbers are file descriptors. */
export type Text = Path | readonly (Path | Descriptor)[] | null;

/** A 64-bit number in two, from `idHalves`. */
export type IdHalves = readonly [low: number, high: number];

/** The arguments of each call, in order. Those at the end that a step leaves out are 0 or NULL. */
interface Arguments {
  openat2: [dirfd: Descriptor, path: Text, flags: number, resolve?: number];
  close: [fd: Descriptor];
  read: [fd: Descriptor, room: number];
  fsopen: [type: Text, flags: number];
  fsconfig: [context: Descriptor, command: number, key: Text, value: Text, aux?: Descriptor];
  fsmount: [context: Descriptor, flags: number, attributes?: number];
  fspick: [dirfd: Descriptor, path: Text, flags: number];
  fstatfs: [fd: Descriptor];
  statfs: [path: Text];
  statx: [dirfd: Descriptor, path: Text, flags: number, mask: number];
  guard: [guard: number, low?: number, high?: number];
  mount_setattr: [
    dirfd: Descriptor,
    path: Text,
    flags: number,
    set?: number,
    clear?: number,
    propagation?: number,
    namespace?: Descriptor,
  ];
  open_tree: [dirfd: Descriptor, path: Text, flags: number];
  move_mount: [from: Descriptor, path: Text, to: Descriptor, target: Text, flags: number, undoesInside?: number];
  mount: [source: Text, target: Text, type: Text, flags: number, data?: Text, undoneBy?: Descriptor];
  umount2: [target: Text, flags: number];
  mkdirat: [dirfd: Descriptor, path: Text, mode: number];
  resemble: [dirfd: Descriptor, made: Text, making: Descriptor, other: Text, withOwner: number];
  mknodat: [dirfd: Descriptor, path: Text, mode: number, device?: number];
  linkat: [from: Descriptor, path: Text, to: Descriptor, target: Text, flags: number];
  unlinkat: [dirfd: Descriptor, path: Text, flags: number, unlessFailed?: Descriptor];
  renameat2: [from: Descriptor, path: Text, to: Descriptor, target: Text, flags: number];
  setxattr: [path: Text, name: Text, value: Text, flags: number];
  getxattr: [path: Text, name: Text, room: number];
  lgetxattr: [path: Text, name: Text, room: number];
  faccessat2: [dirfd: Descriptor, path: Text, mode: number, flags: number];
  readlinkat: [dirfd: Descriptor, path: Text, room: number];
  name_to_handle_at: [dirfd: Descriptor, path: Text, flags: number];
  open_by_handle_at: [mount: Descriptor, type: number, handle: Text, flags: number];
  reserve: [directory: Descriptor, role: number, against: number, making: Descriptor];
  reserve_target: [directory: Descriptor];
  apart: [upper: Descriptor, work: Descriptor, dirfd: Descriptor, lower: Text];
  record: [root: Descriptor];
  sees: [target: Text, directory: Text, role: number, ...mountAndDevice: [...IdHalves, ...IdHalves], waits?: number];
  use_of: [dirfd: Descriptor, path: Text];
  forget: [dirfd: Descriptor, path: Text, ...mountAndDevice: [...IdHalves, ...IdHalves]];
  news: [];
  seen: [ids: Text];
  whiteout: [dirfd: Descriptor, path: Text];
  replace: [dirfd: Descriptor, path: Text, aside: Text, recursive: number];
  remove: [
    dirfd: Descriptor,
    path: Text,
    onlyKernels?: number,
    limit?: number,
    room?: number,
    sparesUsed?: number,
    unlessFailed?: Descriptor,
  ];
  scan: [dirfd: Descriptor, path: Text, mask: number, ids: Text, room: number, thread?: number, leader?: number];
  write_tree: [
    root: Descriptor,
    others: Text,
    batch: Text,
    staging: Text,
    followsInside: number,
    firstLent: number,
    turn: number,
  ];
  unshare: [flags: number];
  setns: [fd: Descriptor, type: number];
  write: [path: Text, value: Text];
  userns: [uidMap: Text, gidMap: Text];
  userns_by: [holder: Text, ...programs: Text[]];
  userns_own: [holder: Text, uidMap: Text, gidMap: Text];
  chdir: [path: Text];
  pivot: [mount: Descriptor];
  flock: [fd: Descriptor, operation: number];
  fsync: [fd: Descriptor];
  fchownat: [dirfd: Descriptor, path: Text, uid: number, gid: number, flags: number];
  set_project: [fd: Descriptor, project: number];
  set_flags: [fd: Descriptor, flags: number];
  quotactl_fd: [fd: Descriptor, command: number, id: number];
  fanotify_init: [flags: number, eventFlags?: number];
  listmount: [room: number, ...after: IdHalves];
  statmount: [...id: IdHalves, mask: number, room: number];
  open_tree_attr: [];
  fanotify_mark: [group: Descriptor, flags: number, mask: number, namespace: Descriptor];
  read_file: [dirfd: Descriptor, path: Text];
  mount_ids: [namespace: Descriptor];
  mount_table: [namespace: Descriptor, mask: number, ids: Text];
  mount_of: [dirfd: Descriptor, path: Text, flags: number, mask: number, attributes?: number];
  namespace_tables: [namespace: Descriptor, mask: number, known: Text];
  walk: [dirfd: Descriptor, path: Text, id: number, size: number, skipped: number];
  examine: [dirfd: Descriptor, flags: number, paths: Text];
  compare: [dirfd: Descriptor, path: Text, otherDirfd: Descriptor, otherPath: Text];
  read_files: [batch: Text];
  hash: [state: Text, isEnd: number];
  wait_for: [fd: Descriptor, events: number];
  notify: [address: Text, message: Text];
  exit_after: [milliseconds: number, code: number];
  probe: [name: Text];
}

/** A function, because the names are needed only when a plan is printed, which is rare. */
type Names = () => Readonly<Record<string, number>>;

/** The kind of an argument: a file descriptor, a text (bytes without NUL), a value (any bytes), or a number. */
export type ArgumentKind = 'descriptor' | 'text' | 'value' | 'number' | 'octal';

export interface Argument {
  readonly kind: ArgumentKind;
  /** Set when the argument is not passed to the system call: it tells the executor what to do with the result. */
  readonly hidden?: true;
  /** The names of the number's bits. */
  readonly bits?: Names;
  /** The names of the number's values. */
  readonly words?: Names;
}

/** An argument that is no file descriptor. */
type Described = Argument & { readonly kind: Exclude<ArgumentKind, 'descriptor'> };

const text: Described = { kind: 'text' };
const value: Described = { kind: 'value' };
const number: Described = { kind: 'number' };
const octal: Described = { kind: 'octal' };
const hiddenNumber: Described = { kind: 'number', hidden: true };
const hiddenValue: Described = { kind: 'value', hidden: true };
const bits = (names: Names): Described => ({ kind: 'number', bits: names });
const words = (names: Names): Described => ({ kind: 'number', words: names });

/** The constants whose names begin with one of the prefixes. */
const named =
  (...prefixes: string[]): Names =>
  () =>
    Object.fromEntries(Object.entries(k).filter(([name]) => prefixes.some((prefix) => name.startsWith(prefix))));

const at = bits(named('AT_SYMLINK', 'AT_EMPTY', 'AT_REMOVEDIR', 'AT_STATX'));
const attributes = bits(named('MOUNT_ATTR_'));

/** The arguments of each call that are no file descriptors, in order. */
const described = {
  openat2: [text, bits(named('O_')), number],
  close: [],
  read: [number],
  fsopen: [text, bits(named('FSOPEN_'))],
  fsconfig: [words(named('FSCONFIG_')), text, text],
  fsmount: [bits(named('FSMOUNT_')), attributes],
  fspick: [text, bits(named('FSPICK_'))],
  fstatfs: [],
  statfs: [text],
  statx: [text, at, bits(named('STATX_TYPE', 'STATX_NLINK', 'STATX_INO', 'STATX_SIZE', 'STATX_MNT'))],
  guard: [hiddenNumber, hiddenNumber, hiddenNumber],
  mount_setattr: [text, at, attributes, attributes, number],
  open_tree: [text, bits(named('OPEN_TREE_'))],
  move_mount: [text, text, bits(named('MOVE_MOUNT_'))],
  mount: [text, text, text, bits(named('MS_')), text],
  umount2: [text, bits(named('MNT_', 'UMOUNT_'))],
  mkdirat: [text, octal],
  resemble: [text, hiddenNumber, text, hiddenNumber],
  mknodat: [text, octal, number],
  linkat: [text, text, at],
  unlinkat: [text, at, hiddenNumber],
  renameat2: [text, text, number],
  setxattr: [text, text, value, number],
  getxattr: [text, text, number],
  lgetxattr: [text, text, number],
  faccessat2: [text, number, number],
  readlinkat: [text, hiddenNumber],
  name_to_handle_at: [text, at],
  open_by_handle_at: [number, hiddenValue, bits(named('O_'))],
  reserve: [hiddenNumber, hiddenNumber, hiddenNumber],
  reserve_target: [],
  apart: [text],
  record: [],
  sees: [text, text, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber],
  use_of: [text],
  forget: [text, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber],
  news: [],
  seen: [hiddenValue],
  whiteout: [text],
  replace: [text, text, number],
  remove: [text, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber],
  scan: [text, bits(named('STATX_MNT')), value, number, hiddenNumber, hiddenNumber],
  write_tree: [hiddenValue, hiddenValue, text, hiddenNumber, hiddenNumber, hiddenNumber],
  unshare: [bits(named('CLONE_'))],
  setns: [bits(named('CLONE_'))],
  write: [text, value],
  userns: [value, value],
  userns_by: [text, value, value],
  userns_own: [text, value, value],
  chdir: [text],
  pivot: [],
  flock: [bits(named('LOCK_'))],
  fsync: [],
  fchownat: [text, number, number, at],
  set_project: [number],
  set_flags: [number],
  quotactl_fd: [number, number],
  fanotify_init: [bits(named('FAN_CLOEXEC', 'FAN_NONBLOCK', 'FAN_UNLIMITED', 'FAN_REPORT')), number],
  listmount: [number, hiddenNumber, hiddenNumber],
  statmount: [number, number, number, hiddenNumber],
  open_tree_attr: [],
  fanotify_mark: [bits(named('FAN_MARK_')), bits(named('FAN_MNT_'))],
  read_file: [text],
  mount_ids: [],
  mount_table: [bits(named('STATMOUNT_')), value],
  mount_of: [text, at, bits(named('STATMOUNT_')), hiddenNumber],
  namespace_tables: [bits(named('STATMOUNT_')), value],
  walk: [text, hiddenNumber, hiddenNumber, hiddenNumber],
  examine: [hiddenNumber, hiddenValue],
  compare: [text, text],
  read_files: [hiddenValue],
  hash: [hiddenValue, hiddenNumber],
  wait_for: [bits(named('POLL'))],
  notify: [text, text],
  exit_after: [number, number],
  probe: [text],
} as const satisfies Readonly<Record<keyof Arguments, readonly Described[]>>;

export interface Call {
  readonly name: string;
  /** The number that the addon assigns to the call; -1 until learnCalls has run, like the next three. */
  number: number;
  args: readonly Argument[];
  /** By position: true when the argument is a text or a value. */
  isText: readonly boolean[];
  makesDescriptor: boolean;
}

/** A call with the types of its arguments, which exist for the compiler only. */
export interface CallOf<Args extends readonly unknown[]> extends Call {
  readonly takes?: Args;
}

export const calls = Object.fromEntries(
  Object.keys(described).map((name): [string, Call] => [
    name,
    { name, number: -1, args: [], isText: [], makesDescriptor: false },
  ]),
) as unknown as { readonly [Name in keyof Arguments]: CallOf<Arguments[Name]> };

/** Adds the file descriptors of a call to its other arguments. They are at the positions of the bits that are set. */
function toArguments(name: string, others: readonly Described[], positions: number): readonly Argument[] {
  // mount(2) takes no file descriptor. The executor undoes the mount by this one.
  const descriptor: Argument = { kind: 'descriptor', ...(name === 'mount' ? { hidden: true } : {}) };
  const args: Argument[] = [];
  const rest = [...others];
  while (rest.length > 0 || positions >> args.length > 0) {
    const isDescriptor = ((positions >> args.length) & 1) !== 0;
    args.push(isDescriptor ? descriptor : (rest.shift() as Described));
  }
  return args;
}

/** Reads the numbers of the calls and their file descriptors from the addon. */
export function learnCalls(): void {
  if (calls.openat2.number >= 0) return;
  const native = addon();
  for (const [name, call] of Object.entries(calls)) {
    const descriptors = native.descriptors[name] as number;
    call.number = native.calls[name] as number;
    call.args = toArguments(name, described[name as keyof typeof described], descriptors & ~native.makesDescriptor);
    call.isText = call.args.map(({ kind }) => kind === 'text' || kind === 'value');
    call.makesDescriptor = (descriptors & native.makesDescriptor) !== 0;
  }
}
