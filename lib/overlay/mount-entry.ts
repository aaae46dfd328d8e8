/** A mount of the mount table, as callers get it. */
import * as k from '../kernel/constants.js';
import { splitShown } from '../mount-strings.js';
import { unescapeField } from '../mounts/mountinfo.js';
import type { MountPropagation, RawMount } from '../mounts/raw-mount.js';
import { type NamedOptions, readShown } from './option-strings.js';

export type { MountPropagation } from '../mounts/raw-mount.js';

/** What a mount allows, whatever its file system does: mount_setattr(2). */
export interface MountFlags {
  readonly readonly: boolean;
  readonly nosuid: boolean;
  readonly nodev: boolean;
  readonly noexec: boolean;
  readonly nosymfollow: boolean;
  readonly nodiratime: boolean;
  readonly atime: 'relatime' | 'noatime' | 'strictatime';
  /** Whether the owners of files are mapped. */
  readonly idmapped: boolean;
}

/** A mount in the mount table. Paths are strings, or Buffers with `encoding: 'buffer'`. */
export interface MountEntry<P extends string | Buffer = string> {
  /** As in /proc/self/mountinfo: used again when the mount is gone. */
  readonly id: number;
  /** Never used again, and the `id` of a `Mount`; undefined before Linux 6.8 (statx(2), STATX_MNT_ID_UNIQUE). */
  readonly uniqueId: number | undefined;
  /** The `id` of the mount that it is mounted on; the root's is its own, or that of a mount out of sight. */
  readonly parent: number;
  /** The device of its file system: `'8:1'`. */
  readonly device: string;
  /** Where it is mounted, seen from the root of the process. */
  readonly target: P;
  /** Which directory (or file) of its file system it shows. */
  readonly root: P;
  /** What was named as its source: a device, or any word. */
  readonly source: P;
  /** `'overlay'`, `'ext4'`, `'fuse.sshfs'` */
  readonly type: string;
  readonly flags: MountFlags;
  readonly propagation: MountPropagation;
  /**
   * What the superblock was made with, and so all mounts of it: `'rw'` or `'ro'` first, and then the file
   * system's own, without the table's escapes: `'lowerdir=/l'`.
   */
  readonly superblockOptions: readonly P[];
  /** Of an overlay: what these options say, as it would be given to `mountOverlay`; undefined of all else. */
  readonly overlay: NamedOptions | undefined;
}

const known = new Map<number, MountFlags>();

/** The same object for the same bits: there are few of them. */
function toFlags(attributes: number): MountFlags {
  let flags = known.get(attributes);
  if (flags === undefined) {
    const has = (bit: number) => (attributes & bit) !== 0;
    flags = Object.freeze({
      readonly: has(k.MOUNT_ATTR_RDONLY),
      nosuid: has(k.MOUNT_ATTR_NOSUID),
      nodev: has(k.MOUNT_ATTR_NODEV),
      noexec: has(k.MOUNT_ATTR_NOEXEC),
      nosymfollow: has(k.MOUNT_ATTR_NOSYMFOLLOW),
      nodiratime: has(k.MOUNT_ATTR_NODIRATIME),
      atime: has(k.MOUNT_ATTR_NOATIME) ? 'noatime' : has(k.MOUNT_ATTR_STRICTATIME) ? 'strictatime' : 'relatime',
      idmapped: has(k.MOUNT_ATTR_IDMAP),
    });
    known.set(attributes, flags);
  }
  return flags;
}

export type Encoding = 'utf8' | 'buffer';

const toBuffer = (bytes: string): Buffer => Buffer.from(bytes, 'latin1');

// biome-ignore lint/suspicious/noControlCharactersInRegex: all of ASCII
const isAscii = (bytes: string): boolean => /^[\x00-\x7f]*$/.test(bytes);

const toText = (bytes: string): string => (isAscii(bytes) ? bytes : toBuffer(bytes).toString());

/** Makes entries of one table. */
export function entryMaker(encoding: 'buffer'): (mount: RawMount) => MountEntry<Buffer>;
export function entryMaker(encoding: Encoding): (mount: RawMount) => MountEntry<string | Buffer>;
export function entryMaker(encoding: Encoding): (mount: RawMount) => MountEntry<string | Buffer> {
  const show: (bytes: string) => string | Buffer = encoding === 'buffer' ? toBuffer : toText;
  // All mounts of a superblock have the same.
  const optionsByText = new Map<string, readonly (string | Buffer)[]>();
  const toOptions = (text: string): readonly (string | Buffer)[] => {
    let options = optionsByText.get(text);
    if (options === undefined) {
      options = Object.freeze(text.split(',').map((option) => show(unescapeField(option))));
      optionsByText.set(text, options);
    }
    return options;
  };
  const toOverlay = (text: string): NamedOptions => readShown(splitShown(toBuffer(text))).options;
  return ({ id, uniqueId, parent, device, target, root, source, type, attributes, propagation, options }) => ({
    id,
    uniqueId,
    parent,
    device,
    target: show(target),
    root: show(root),
    source: show(source),
    type,
    flags: toFlags(attributes),
    propagation,
    superblockOptions: toOptions(options),
    overlay: type === 'overlay' ? toOverlay(options) : undefined,
  });
}
