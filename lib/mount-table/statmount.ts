/** Parses the mount table that statmount(2) reports, in the block that native/mount_table.cc describes. */
import * as k from '../kernel/constants.js';
import { type MountPropagation, PRIVATE, type RawMount, UNBINDABLE } from './raw-mount.js';

/** Everything that an entry consists of. */
export const WHOLE_MOUNT =
  k.STATMOUNT_SB_BASIC |
  k.STATMOUNT_MNT_BASIC |
  k.STATMOUNT_PROPAGATE_FROM |
  k.STATMOUNT_MNT_ROOT |
  k.STATMOUNT_MNT_POINT |
  k.STATMOUNT_FS_TYPE |
  k.STATMOUNT_FS_SUBTYPE |
  k.STATMOUNT_SB_SOURCE |
  k.STATMOUNT_MNT_OPTS;

/** The same without the most expensive parts. */
export const MOUNT_BASICS = WHOLE_MOUNT & ~(k.STATMOUNT_MNT_OPTS | k.STATMOUNT_SB_SOURCE);

const HEAD_WORDS = 2;
const RECORD_WORDS = 20;
const at = {
  id: 0,
  mask: 2,
  tableId: 3,
  tableParent: 4,
  major: 5,
  minor: 6,
  superblockFlags: 7,
  attributes: 8,
  propagation: 9,
  peerGroup: 10,
  master: 11,
  propagateFrom: 12,
  text: 13,
  sizes: 14,
} as const;

function toPropagation(kind: number, peerGroup: number, master: number, from: number): MountPropagation {
  if (kind & k.MS_UNBINDABLE) return UNBINDABLE;
  if ((kind & (k.MS_SHARED | k.MS_SLAVE)) === 0) return PRIVATE;
  return {
    ...(kind & k.MS_SHARED && { peerGroup }),
    ...(kind & k.MS_SLAVE && { master }),
    ...(from !== 0 && from !== master && { propagateFrom: from }),
    unbindable: false,
  };
}

const superblockWords: readonly (readonly [flag: number, word: string])[] = [
  [k.SB_SYNCHRONOUS, ',sync'],
  [k.SB_DIRSYNC, ',dirsync'],
  [k.SB_LAZYTIME, ',lazytime'],
];

/** Returns the words with which the mount table begins the options of a superblock. */
function flagWords(flags: number): string {
  let words = flags & k.SB_RDONLY ? 'ro' : 'rw';
  for (const [flag, word] of superblockWords) if (flags & flag) words += word;
  return words;
}

/**
 * Returns true when the kernel reports everything that an entry consists of. The source is the newest part (6.13).
 * Returns undefined when the answer does not show this, because an empty source looks the same.
 */
export function tellsSources(data: Buffer): boolean | undefined {
  const words = new Uint32Array(data.buffer, data.byteOffset, data.byteLength >> 2);
  const count = words[0] as number;
  for (let i = 0; i < count; i++) {
    const mask = words[HEAD_WORDS + i * RECORD_WORDS + at.mask] as number;
    if (mask & k.STATMOUNT_SB_SOURCE) return true;
  }
  return count > 1 ? false : undefined;
}

/** Yields the mounts of a table. */
export function* mountRecords(data: Buffer): Generator<RawMount, void> {
  const words = new Uint32Array(data.buffer, data.byteOffset, data.byteLength >> 2);
  const count = words[0] as number;
  // All other strings are slices of this one.
  const texts = data.toString('latin1', words[1] as number);
  for (let i = 0; i < count; i++) {
    const start = HEAD_WORDS + i * RECORD_WORDS;
    const word = (position: number) => words[start + position] as number;
    let end = word(at.text);
    const [root, target, fsType, subtype, source, options] = [0, 1, 2, 3, 4, 5].map((n) => {
      const begin = end;
      end += word(at.sizes + n);
      return texts.slice(begin, end);
    }) as [string, string, string, string, string, string];
    const flags = flagWords(word(at.superblockFlags));
    yield {
      id: word(at.tableId),
      uniqueId: word(at.id) + word(at.id + 1) * 2 ** 32,
      parent: word(at.tableParent),
      device: `${word(at.major)}:${word(at.minor)}`,
      target,
      root,
      source,
      type: subtype === '' ? fsType : `${fsType}.${subtype}`,
      attributes: word(at.attributes),
      propagation: toPropagation(word(at.propagation), word(at.peerGroup), word(at.master), word(at.propagateFrom)),
      options: options === '' ? flags : `${flags},${options}`,
    };
  }
}

export const readMountRecords = (data: Buffer): RawMount[] => Array.from(mountRecords(data));
