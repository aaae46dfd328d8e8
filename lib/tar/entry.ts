/**
 * An entry of a tar archive. Names and attributes are bytes, which need not be UTF-8: their strings have one character
 * for each byte (latin1), so that they can be compared, split and used as keys.
 */
export type EntryType = 'file' | 'directory' | 'symlink' | 'link' | 'character' | 'block' | 'fifo';

/** A moment in time, to the nanosecond. */
export interface Moment {
  /** Since 1970; negative before. */
  readonly seconds: number;
  /** 0 to 999,999,999, counted from the second on, before 1970 too. */
  readonly nanoseconds: number;
}

export interface TarEntry {
  readonly name: string;
  readonly type: EntryType;
  /** The target of a symbolic or hard link; else empty. */
  readonly linkname: string;
  /** The permissions, with set-id and sticky bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** In bytes, holes included; 0 if the entry is no file. */
  readonly size: number;
  readonly mtime: Moment;
  readonly major: number;
  readonly minor: number;
  readonly xattrs: ReadonlyMap<string, Buffer>;
  /** The parts of a sparse file that are not holes: offset and size by turns, in ascending order. */
  readonly segments?: readonly number[] | undefined;
}

/** An entry as it was found in an archive. */
export interface FoundEntry extends TarEntry {
  /** The byte at which its header begins, extended headers not counted. */
  readonly offset: number;
  /** Attributes that were recorded in a form that cannot be read, by their keywords. */
  readonly unread: readonly string[];
}

export const NO_XATTRS: ReadonlyMap<string, Buffer> = new Map();
