/**
 * The calls that a plan may hold, with the kinds of their arguments. Plans are encoded and printed from this one table.
 * native/plan.h holds the same list and assigns the numbers.
 */
import * as k from './constants.js';

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

const descriptor: Argument = { kind: 'descriptor' };
const text: Argument = { kind: 'text' };
const value: Argument = { kind: 'value' };
const number: Argument = { kind: 'number' };
const octal: Argument = { kind: 'octal' };
const hiddenNumber: Argument = { kind: 'number', hidden: true };
const hiddenDescriptor: Argument = { kind: 'descriptor', hidden: true };
const hiddenValue: Argument = { kind: 'value', hidden: true };
const bits = (names: Names): Argument => ({ kind: 'number', bits: names });
const words = (names: Names): Argument => ({ kind: 'number', words: names });

/** The constants whose names begin with one of the prefixes. */
const named =
  (...prefixes: string[]): Names =>
  () =>
    Object.fromEntries(Object.entries(k).filter(([name]) => prefixes.some((prefix) => name.startsWith(prefix))));

const at = bits(named('AT_SYMLINK', 'AT_EMPTY', 'AT_REMOVEDIR', 'AT_STATX'));
const attributes = bits(named('MOUNT_ATTR_'));

const described = {
  openat2: [descriptor, text, bits(named('O_')), number],
  close: [descriptor],
  read: [descriptor, number],
  fsopen: [text, bits(named('FSOPEN_'))],
  fsconfig: [descriptor, words(named('FSCONFIG_')), text, text, descriptor],
  fsmount: [descriptor, bits(named('FSMOUNT_')), attributes],
  fspick: [descriptor, text, bits(named('FSPICK_'))],
  fstatfs: [descriptor, hiddenNumber, hiddenNumber, hiddenNumber],
  statfs: [text, hiddenNumber, hiddenNumber, hiddenNumber],
  statx: [
    descriptor,
    text,
    at,
    bits(named('STATX_TYPE', 'STATX_NLINK', 'STATX_INO', 'STATX_SIZE', 'STATX_MNT')),
    hiddenNumber,
    hiddenNumber,
    hiddenNumber,
    hiddenNumber,
  ],
  mount_setattr: [descriptor, text, at, attributes, attributes, number, descriptor],
  open_tree: [descriptor, text, bits(named('OPEN_TREE_'))],
  move_mount: [descriptor, text, descriptor, text, bits(named('MOVE_MOUNT_'))],
  mount: [text, text, text, bits(named('MS_')), text, hiddenDescriptor],
  umount2: [text, bits(named('MNT_', 'UMOUNT_'))],
  mkdirat: [descriptor, text, octal],
  mknodat: [descriptor, text, octal, number],
  linkat: [descriptor, text, descriptor, text, at],
  unlinkat: [descriptor, text, at, hiddenDescriptor],
  renameat2: [descriptor, text, descriptor, text, number],
  setxattr: [text, text, value, number],
  getxattr: [text, text, number],
  lgetxattr: [text, text, number],
  faccessat2: [descriptor, text, number, number],
  readlinkat: [descriptor, text, hiddenNumber],
  name_to_handle_at: [descriptor, text, at],
  open_by_handle_at: [descriptor, number, hiddenValue, bits(named('O_'))],
  reserve: [descriptor, hiddenNumber, hiddenNumber, hiddenDescriptor],
  reserve_target: [descriptor],
  record: [descriptor],
  sees: [text, text, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber],
  use_of: [descriptor, text],
  forget: [descriptor, text, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber],
  news: [],
  seen: [hiddenValue],
  whiteout: [descriptor, text],
  replace: [descriptor, text, text, number],
  remove: [descriptor, text, hiddenNumber, hiddenNumber, hiddenNumber, hiddenNumber],
  scan: [descriptor, text, bits(named('STATX_MNT')), value, number],
  write_tree: [descriptor, descriptor, value, text, hiddenNumber],
  unshare: [bits(named('CLONE_'))],
  setns: [descriptor, bits(named('CLONE_'))],
  write: [text, value],
  userns: [value, value],
  userns_by: [text, value, value],
  userns_own: [text, value, value],
  chdir: [text],
  flock: [descriptor, bits(named('LOCK_'))],
  fanotify_init: [bits(named('FAN_CLOEXEC', 'FAN_NONBLOCK', 'FAN_UNLIMITED', 'FAN_REPORT')), number],
  listmount: [number, hiddenNumber, hiddenNumber],
  statmount: [number, number, number, hiddenNumber],
  open_tree_attr: [],
  fanotify_mark: [descriptor, bits(named('FAN_MARK_')), bits(named('FAN_MNT_')), descriptor],
  read_file: [descriptor, text],
  mount_ids: [descriptor],
  mount_table: [descriptor, bits(named('STATMOUNT_')), value],
  mount_of: [descriptor, text, at, bits(named('STATMOUNT_')), hiddenNumber],
  namespace_tables: [descriptor, bits(named('STATMOUNT_')), value],
  walk: [descriptor, text, hiddenNumber, hiddenNumber, hiddenNumber],
  examine: [descriptor, hiddenNumber, hiddenValue],
  compare: [descriptor, text, descriptor, text],
  read_files: [hiddenValue],
  wait_for: [descriptor, bits(named('POLL'))],
} as const satisfies Readonly<Record<string, readonly Argument[]>>;

export interface Call {
  readonly name: string;
  readonly args: readonly Argument[];
  /** By position: true when the argument is a text or a value. */
  readonly isText: readonly boolean[];
  /** The number that the addon assigns to the call, set by learnNumbers; -1 until then. */
  number: number;
}

export const calls = Object.fromEntries(
  Object.entries(described).map(([name, args]: [string, readonly Argument[]]): [string, Call] => [
    name,
    { name, args, isText: args.map(({ kind }) => kind === 'text' || kind === 'value'), number: -1 },
  ]),
) as { readonly [Name in keyof typeof described]: Call };

/** Copies the numbers of the calls from the addon. */
export function learnNumbers(numbers: Readonly<Record<string, number>>): void {
  for (const call of Object.values(calls)) call.number = numbers[call.name] as number;
}
