/** A mount as the kernel reports it, independent of the interface that was used. */
import * as k from '../kernel/constants.js';
import type { MountinfoLine } from './mountinfo.js';

/** The propagation of mounts and unmounts below this mount, to others and from others: mount_namespaces(7). */
export interface MountPropagation {
  /** The number of its peer group, when the mount is shared. */
  readonly peerGroup?: number;
  /** The number of the peer group that it receives mounts from, when the mount is a slave. */
  readonly master?: number;
  /** The nearest peer group above its master that is visible here, when the master itself is not. */
  readonly propagateFrom?: number;
  readonly unbindable: boolean;
}

/** A mount as the kernel reports it. Each character of a string is one byte. */
export interface RawMount {
  readonly id: number;
  readonly uniqueId: number | undefined;
  readonly parent: number;
  readonly device: string;
  readonly target: string;
  readonly root: string;
  readonly source: string;
  readonly type: string;
  /** MOUNT_ATTR_* */
  readonly attributes: number;
  readonly propagation: MountPropagation;
  /** As in the table, still escaped: `rw,size=1k` */
  readonly options: string;
}

export const PRIVATE: MountPropagation = Object.freeze({ unbindable: false });
export const UNBINDABLE: MountPropagation = Object.freeze({ unbindable: true });

const attributeWords: Readonly<Record<string, number>> = {
  ro: k.MOUNT_ATTR_RDONLY,
  nosuid: k.MOUNT_ATTR_NOSUID,
  nodev: k.MOUNT_ATTR_NODEV,
  noexec: k.MOUNT_ATTR_NOEXEC,
  noatime: k.MOUNT_ATTR_NOATIME,
  nodiratime: k.MOUNT_ATTR_NODIRATIME,
  nosymfollow: k.MOUNT_ATTR_NOSYMFOLLOW,
  idmapped: k.MOUNT_ATTR_IDMAP,
};

function readAttributes(text: string): number {
  const words = text.split(',');
  let attributes = 0;
  for (const word of words) attributes |= attributeWords[word] ?? 0;
  // The kernel has no word for strictatime: without `noatime` and `relatime`, it always updates access times.
  const isStrict = !words.includes('noatime') && !words.includes('relatime');
  return isStrict ? attributes | k.MOUNT_ATTR_STRICTATIME : attributes;
}

function readTags(text: string): MountPropagation {
  if (text === '') return PRIVATE;
  const names = { shared: 'peerGroup', master: 'master', propagate_from: 'propagateFrom' } as const;
  const propagation: { -readonly [Name in keyof MountPropagation]: MountPropagation[Name] } = { unbindable: false };
  for (const tag of text.split(' ')) {
    const [word = '', number] = tag.split(':');
    if (word === 'unbindable') propagation.unbindable = true;
    else if (Object.hasOwn(names, word)) propagation[names[word as keyof typeof names]] = Number(number);
  }
  return propagation;
}

/** Caches a function's results, for texts that take few different values in a table. */
function remembering<T>(read: (text: string) => T): (text: string) => T {
  const known = new Map<string, T>();
  return (text) => {
    let value = known.get(text);
    if (value === undefined) {
      value = read(text);
      known.set(text, value);
    }
    return value;
  };
}

/** Returns a function that makes mounts from the lines of one table. */
export function mountinfoReader(): (line: MountinfoLine, uniqueId?: number) => RawMount {
  const toAttributes = remembering(readAttributes);
  return ({ id, parent, device, root, target, mountOptions, tags, type, source, superOptions }, uniqueId) => ({
    id,
    uniqueId,
    parent,
    device,
    target,
    root,
    source,
    type,
    attributes: toAttributes(mountOptions),
    propagation: readTags(tags),
    // The option `mand` has no effect since 5.15, and statmount(2) leaves it out.
    options: superOptions.includes(',mand')
      ? superOptions.replace(/^(r[ow](?:,sync)?(?:,dirsync)?),mand(?=,|$)/, '$1')
      : superOptions,
  });
}
