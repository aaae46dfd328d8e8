/** An entry of the mount table, as callers receive it. */
import * as k from '../kernel/constants.js';
import { splitShown } from '../mount-strings.js';
import { type NamedOptions, readShown } from '../options/text.js';
import { unescapeField } from './mountinfo.js';
import type { MountPropagation, RawMount } from './raw-mount.js';

export type { MountPropagation } from './raw-mount.js';

/** The attributes of a mount, independent of its file system: mount_setattr(2). */
export interface MountFlags {
  readonly readonly: boolean;
  readonly nosuid: boolean;
  readonly nodev: boolean;
  readonly noexec: boolean;
  readonly nosymfollow: boolean;
  readonly nodiratime: boolean;
  readonly atime: 'relatime' | 'noatime' | 'strictatime';
  /** True if the mount maps the owners of files. */
  readonly idmapped: boolean;
}

/** A mount in the mount table. Paths are strings, or Buffers with `encoding: 'buffer'`. */
export interface MountEntry<P extends string | Buffer = string> {
  /**
   * The id of the mount, as that of a `Mount`: never reused from Linux 6.8 on (statx(2), STATX_MNT_ID_UNIQUE). On earlier
   * kernels, it is the `mountinfoId`.
   */
  readonly id: number;
  /** The id in proc_pid_mountinfo(5). The kernel reuses it after the mount is gone. */
  readonly mountinfoId: number;
  /** The `mountinfoId` of the mount that holds it; for the root its own, or that of a mount that is not visible. */
  readonly parentMountinfoId: number;
  /** The device of its file system: `'8:1'`. */
  readonly device: string;
  /** The mount point, as seen from the root of the process. */
  readonly target: P;
  /** The directory or file of its file system that it shows. */
  readonly root: P;
  /** The source that the mounter named: a device, or any word. */
  readonly source: P;
  /** `'overlay'`, `'ext4'`, `'fuse.sshfs'` */
  readonly type: string;
  readonly flags: MountFlags;
  readonly propagation: MountPropagation;
  /**
   * The options of the superblock, which all its mounts share: first `'rw'` or `'ro'`, then the file system's own,
   * without the table's escapes: `'lowerdir=/l'`.
   */
  readonly superblockOptions: readonly P[];
  /** For an overlay these options, as `mountOverlay` takes them; undefined for any other mount. */
  readonly overlay: NamedOptions | undefined;
}

const known = new Map<number, MountFlags>();

/** Returns the same object for the same bits: few combinations occur. */
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

/** Returns a function that makes the entries of one table. */
export function entryMaker(encoding: 'buffer'): (mount: RawMount) => MountEntry<Buffer>;
export function entryMaker(encoding: Encoding): (mount: RawMount) => MountEntry<string | Buffer>;
export function entryMaker(encoding: Encoding): (mount: RawMount) => MountEntry<string | Buffer> {
  const show: (bytes: string) => string | Buffer = encoding === 'buffer' ? toBuffer : toText;
  // All mounts of a superblock have the same options.
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
    id: uniqueId ?? id,
    mountinfoId: id,
    parentMountinfoId: parent,
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
