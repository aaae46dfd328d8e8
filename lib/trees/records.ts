/**
 * Reads the records of directory entries that native/walk.h describes. It is a cursor, since an object for each entry
 * would take longer than the kernel does.
 *
 * Names and paths are strings with one character for each byte: any name fits, and `<` compares them in byte order.
 * encodings.ts converts them for callers.
 */

import * as k from '../kernel/constants.js';

/** The positions of the 32-bit words, and of the 64-bit words in units of 64 bits, as in native/walk.h. */
const word = {
  size: 0,
  mode: 1,
  uid: 2,
  gid: 3,
  links: 4,
  rdevMajor: 5,
  rdevMinor: 6,
  depth: 7,
  devMajor: 8,
  devMinor: 9,
  error: 10,
  flags: 11,
  nameSize: 12,
  targetSize: 13,
  attributesSize: 14,
  mtimeNs: 15,
  ctimeNs: 16,
} as const;
const wide = { inode: 9, bytes: 10, blocks: 11, mtime: 12, ctime: 13, mtimeWhole: 14 } as const;
const HEAD = 120;

const flag = { isAscii: 1, isOtherMount: 2, isBrokenOff: 4, hasWholeMtime: 8, isFrozen: 16 } as const;

/** The size of a value that the process may not read. */
const UNREADABLE = 0xffffffff;

/** The extended attributes of an entry by name. A value is undefined if the process may not read it. */
export type Attributes = ReadonlyMap<string, Buffer | undefined>;

const noAttributes: Attributes = new Map();

/** A time of a file. The nanoseconds add to the seconds, also for times before 1970. */
export interface Time {
  readonly seconds: number;
  readonly nanoseconds: number;
}

export const toNanoseconds = ({ seconds, nanoseconds }: Time): bigint =>
  BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds);

const align = (size: number, to: number): number => Math.ceil(size / to) * to;

const nothing = new ArrayBuffer(0);
const noBytes: Buffer = Buffer.from(nothing);

/** A cursor over records. */
export class Records {
  #bytes: Buffer = noBytes;
  #words: Uint32Array = new Uint32Array(nothing);
  #wide: BigInt64Array = new BigInt64Array(nothing);
  /** The offset of the current record. */
  #at = 0;
  #next = 0;

  /** Replaces the records. The cursor is then before the first one. */
  load(records: Buffer): void {
    const { buffer, byteOffset, length } = records;
    this.#bytes = records;
    this.#words = new Uint32Array(buffer, byteOffset, length >> 2);
    this.#wide = new BigInt64Array(buffer, byteOffset, length >> 3);
    this.#at = 0;
    this.#next = 0;
  }

  /** Moves to the next entry. Returns false after the last one. */
  advance(): boolean {
    if (this.#next >= this.#bytes.length) return false;
    this.#at = this.#next;
    this.#next = this.#at + this.#word(word.size);
    return true;
  }

  #word(position: number): number {
    return this.#words[(this.#at >> 2) + position] as number;
  }

  #half(position: number): number {
    const at = (this.#at >> 2) + 2 * position;
    return (this.#words[at + 1] as number) * 2 ** 32 + (this.#words[at] as number);
  }

  /** The errno of the failure to read the entry, or a directory's contents; 0 without a failure. */
  get error(): number {
    return this.#word(word.error);
  }

  /** The type and the permission bits; 0 if only the entry's error is known. */
  get mode(): number {
    return this.#word(word.mode);
  }

  /** The S_IFMT bits of the mode. */
  get type(): number {
    return this.#word(word.mode) & k.S_IFMT;
  }

  get uid(): number {
    return this.#word(word.uid);
  }

  get gid(): number {
    return this.#word(word.gid);
  }

  /** The number of hard links. */
  get links(): number {
    return this.#word(word.links);
  }

  /** The major number of the device that a device node represents. */
  get rdevMajor(): number {
    return this.#word(word.rdevMajor);
  }

  get rdevMinor(): number {
    return this.#word(word.rdevMinor);
  }

  /** The depth below the root of the walk; 0 for the root. */
  get depth(): number {
    return this.#word(word.depth);
  }

  get device(): number {
    return this.#word(word.devMajor) * 2 ** 32 + this.#word(word.devMinor);
  }

  get inode(): bigint {
    return BigInt.asUintN(64, this.#wide[(this.#at >> 3) + wide.inode] as bigint);
  }

  get size(): number {
    return this.#half(wide.bytes);
  }

  /** The number of allocated blocks of 512 bytes. */
  get blocks(): number {
    return this.#half(wide.blocks);
  }

  get mtime(): Time {
    return { seconds: Number(this.#wide[(this.#at >> 3) + wide.mtime]), nanoseconds: this.#word(word.mtimeNs) };
  }

  get ctime(): Time {
    return { seconds: Number(this.#wide[(this.#at >> 3) + wide.ctime]), nanoseconds: this.#word(word.ctimeNs) };
  }

  /** The modification time in nanoseconds since 1970. */
  get mtimeNs(): bigint {
    if (this.#word(word.flags) & flag.hasWholeMtime) return this.#wide[(this.#at >> 3) + wide.mtimeWhole] as bigint;
    return (this.#wide[(this.#at >> 3) + wide.mtime] as bigint) * 1_000_000_000n + BigInt(this.#word(word.mtimeNs));
  }

  /** True for the root of another mount, which the walk does not enter. */
  get isOtherMount(): boolean {
    return (this.#word(word.flags) & flag.isOtherMount) !== 0;
  }

  /** True if it is immutable or append-only, which binds every process, even a privileged one: chattr(1). */
  get isFrozen(): boolean {
    return (this.#word(word.flags) & flag.isFrozen) !== 0;
  }

  /** True if the walk ends here because a directory was moved away. */
  get isBrokenOff(): boolean {
    return (this.#word(word.flags) & flag.isBrokenOff) !== 0;
  }

  get isAscii(): boolean {
    return (this.#word(word.flags) & flag.isAscii) !== 0;
  }

  /** The name, one character for each byte; empty for the root. */
  get name(): string {
    const start = this.#at + HEAD;
    return this.#bytes.toString('latin1', start, start + this.#word(word.nameSize));
  }

  get #targetStart(): number {
    return this.#at + HEAD + align(this.#word(word.nameSize), 8);
  }

  /** The target of a symbolic link, if the walk reads targets. Shares the buffer of the records. */
  get target(): Buffer {
    const size = this.#word(word.targetSize);
    return size === 0 ? noBytes : this.#bytes.subarray(this.#targetStart, this.#targetStart + size);
  }

  get hasAttributes(): boolean {
    return this.#word(word.attributesSize) !== 0;
  }

  /** The values share the buffer of the records. */
  get attributes(): Attributes {
    const size = this.#word(word.attributesSize);
    if (size === 0) return noAttributes;
    const found = new Map<string, Buffer | undefined>();
    let at = this.#targetStart + align(this.#word(word.targetSize), 8);
    for (const end = at + size; at < end; ) {
      const [nameSize, valueSize] = [this.#words[at >> 2] as number, this.#words[(at >> 2) + 1] as number];
      const name = this.#bytes.toString('latin1', at + 8, at + 8 + nameSize);
      at += 8 + align(nameSize, 4);
      const isReadable = valueSize !== UNREADABLE;
      found.set(name, isReadable ? this.#bytes.subarray(at, at + valueSize) : undefined);
      if (isReadable) at += align(valueSize, 4);
    }
    return found;
  }
}

export function haveSameAttributes(a: Attributes, b: Attributes): boolean {
  if (a.size !== b.size) return false;
  for (const [name, value] of a) {
    if (!b.has(name)) return false;
    const other = b.get(name);
    if (value === undefined || other === undefined ? value !== other : !value.equals(other)) return false;
  }
  return true;
}
