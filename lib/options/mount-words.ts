/** The options of any file system, as mount(8) passes them to its helpers: words for the flags of mount(2). Pure. */
import * as k from '../kernel/constants.js';
import type { RawOption } from '../mount-strings.js';
import type { OverlayOptions } from './check.js';

export interface Words {
  /** MS_*, without propagation. */
  readonly flags: number;
  /** MS_*, with MS_REC for the words that begin with an r; 0 if none is given. */
  readonly propagation: number;
  /** The other options: the file system's own. */
  readonly rest: readonly RawOption[];
  readonly isStrict: boolean;
  /** `nofail`: a layer that does not exist is no error. */
  readonly isNofail: boolean;
}

/** Turns what would be a warning into an error. */
export const STRICT = 'x-overlayfs.strict';

/** The bits that a word sets, and those that it clears. */
const flagWords: Readonly<Record<string, readonly [set: number, cleared: number]>> = {
  defaults: [0, 0],
  ro: [k.MS_RDONLY, 0],
  rw: [0, k.MS_RDONLY],
  nosuid: [k.MS_NOSUID, 0],
  suid: [0, k.MS_NOSUID],
  nodev: [k.MS_NODEV, 0],
  dev: [0, k.MS_NODEV],
  noexec: [k.MS_NOEXEC, 0],
  exec: [0, k.MS_NOEXEC],
  nosymfollow: [k.MS_NOSYMFOLLOW, 0],
  symfollow: [0, k.MS_NOSYMFOLLOW],
  noatime: [k.MS_NOATIME, 0],
  atime: [0, k.MS_NOATIME],
  nodiratime: [k.MS_NODIRATIME, 0],
  diratime: [0, k.MS_NODIRATIME],
  relatime: [k.MS_RELATIME, k.MS_STRICTATIME],
  norelatime: [0, k.MS_RELATIME],
  strictatime: [k.MS_STRICTATIME, k.MS_RELATIME],
  nostrictatime: [0, k.MS_STRICTATIME],
  sync: [k.MS_SYNCHRONOUS, 0],
  async: [0, k.MS_SYNCHRONOUS],
  dirsync: [k.MS_DIRSYNC, 0],
  lazytime: [k.MS_LAZYTIME, 0],
  nolazytime: [0, k.MS_LAZYTIME],
  mand: [k.MS_MANDLOCK, 0],
  nomand: [0, k.MS_MANDLOCK],
  iversion: [k.MS_I_VERSION, 0],
  noiversion: [0, k.MS_I_VERSION],
  silent: [k.MS_SILENT, 0],
  loud: [0, k.MS_SILENT],
  remount: [k.MS_REMOUNT, 0],
  bind: [k.MS_BIND, 0],
  rbind: [k.MS_BIND, 0],
};

const propagationWords: Readonly<Record<string, number>> = {
  private: k.MS_PRIVATE,
  shared: k.MS_SHARED,
  slave: k.MS_SLAVE,
  unbindable: k.MS_UNBINDABLE,
  rprivate: k.MS_PRIVATE | k.MS_REC,
  rshared: k.MS_SHARED | k.MS_REC,
  rslave: k.MS_SLAVE | k.MS_REC,
  runbindable: k.MS_UNBINDABLE | k.MS_REC,
};

/** Words for mount(8) itself. It has already acted on `user` and the like before it calls a helper. */
const ignored = /^(?:no)?(?:auto|user|users|owner|group)$|^_r?netdev$|^(?:comment|u?helper)$|^[xX]-/;

export function readWords(options: readonly RawOption[]): Words {
  let flags = 0;
  let propagation = 0;
  let isStrict = false;
  let isNofail = false;
  const rest: RawOption[] = [];
  for (const option of options) {
    const { name } = option;
    const bits = Object.hasOwn(flagWords, name) ? flagWords[name] : undefined;
    if (bits !== undefined) flags = (flags & ~bits[1]) | bits[0];
    else if (Object.hasOwn(propagationWords, name)) propagation = propagationWords[name] as number;
    else if (name === STRICT) isStrict = true;
    else if (name === 'nofail' || name === 'fail') isNofail = name === 'nofail';
    else if (!ignored.test(name)) rest.push(option);
  }
  return { flags, propagation, rest, isStrict, isNofail };
}

const attributeBits = {
  readonly: k.MS_RDONLY,
  // mount(2) makes the superblock and the mount read-only at once.
  readonlySuperblock: k.MS_RDONLY,
  nosuid: k.MS_NOSUID,
  nodev: k.MS_NODEV,
  noexec: k.MS_NOEXEC,
  nosymfollow: k.MS_NOSYMFOLLOW,
  nodiratime: k.MS_NODIRATIME,
} as const;

/** Flags of the superblock for which the library has no option; a remount can set them. */
export const SUPERBLOCK_ONLY = k.MS_SYNCHRONOUS | k.MS_MANDLOCK | k.MS_DIRSYNC | k.MS_I_VERSION | k.MS_LAZYTIME;

const propagations = {
  [k.MS_PRIVATE]: 'private',
  [k.MS_SHARED]: 'shared',
  [k.MS_SLAVE]: 'slave',
  [k.MS_UNBINDABLE]: 'unbindable',
} as const;

/** Returns the flags as options of the library. */
export function toAttributes({ flags, propagation }: Words): Partial<OverlayOptions> {
  const set = Object.entries(attributeBits).filter(([, bit]) => (flags & bit) !== 0);
  const atime = (flags & k.MS_STRICTATIME && 'strictatime') || (flags & k.MS_NOATIME && 'noatime') || 'relatime';
  return {
    ...Object.fromEntries(set.map(([name]) => [name, true])),
    atime,
    ...(propagation !== 0 && { propagation: propagations[(propagation & ~k.MS_REC) as keyof typeof propagations] }),
  };
}
