/** Attributes of a mount, independent of its file system: the option names, and the bits of both kernel interfaces. */
import { checkBoolean, checkWord } from '../arguments.js';
import * as k from '../kernel/constants.js';

export type MountAttribute = 'readonly' | 'nosuid' | 'nodev' | 'noexec' | 'nosymfollow' | 'nodiratime';
export type AccessTimes = 'relatime' | 'noatime' | 'strictatime';
export type Propagation = 'private' | 'shared' | 'slave' | 'unbindable';

export const mountAttributes = ['readonly', 'nosuid', 'nodev', 'noexec', 'nosymfollow', 'nodiratime'] as const;
const accessTimes = ['relatime', 'noatime', 'strictatime'] as const;
export const propagations = ['private', 'shared', 'slave', 'unbindable'] as const;

const bits = {
  readonly: [k.MOUNT_ATTR_RDONLY, k.MS_RDONLY],
  nosuid: [k.MOUNT_ATTR_NOSUID, k.MS_NOSUID],
  nodev: [k.MOUNT_ATTR_NODEV, k.MS_NODEV],
  noexec: [k.MOUNT_ATTR_NOEXEC, k.MS_NOEXEC],
  nosymfollow: [k.MOUNT_ATTR_NOSYMFOLLOW, k.MS_NOSYMFOLLOW],
  nodiratime: [k.MOUNT_ATTR_NODIRATIME, k.MS_NODIRATIME],
  relatime: [0, 0],
  noatime: [k.MOUNT_ATTR_NOATIME, k.MS_NOATIME],
  strictatime: [k.MOUNT_ATTR_STRICTATIME, k.MS_STRICTATIME],
} as const satisfies Readonly<Record<MountAttribute | AccessTimes, readonly [attribute: number, flag: number]>>;

export interface AttributeSet {
  readonly attributes: readonly MountAttribute[];
  readonly atime?: AccessTimes | undefined;
}

function sum({ attributes, atime }: AttributeSet, which: 0 | 1): number {
  let set: number = atime === undefined ? 0 : bits[atime][which];
  for (const name of attributes) set |= bits[name][which];
  return set;
}

/** MOUNT_ATTR_*, of fsmount(2) and mount_setattr(2). */
export const attributeBits = (set: AttributeSet): number => sum(set, 0);

/** MS_*, of mount(2). */
export const flagBits = (set: AttributeSet): number => sum(set, 1);

export const propagationBits: Readonly<Record<Propagation, number>> = {
  private: k.MS_PRIVATE,
  shared: k.MS_SHARED,
  slave: k.MS_SLAVE,
  unbindable: k.MS_UNBINDABLE,
};

/** Checks a caller's options and returns the attributes among them. */
export function checkAttributes(options: Readonly<Partial<Record<MountAttribute | 'atime', unknown>>>): AttributeSet {
  return {
    attributes: mountAttributes.filter((name) => checkBoolean(options[name], name)),
    atime: checkWord(options.atime, 'atime', accessTimes),
  };
}
