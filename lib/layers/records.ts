/**
 * Reads the records of directory entries that native/walk.h describes. A cursor, since an object for each entry would
 * take longer than the kernel does.
 *
 * Names and paths are kept as strings in which each character is one byte: any name fits, and `<` compares them in byte
 * order. encodings.ts makes of them what callers get.
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

const flag = { isAscii: 1, isOtherMount: 2, isBrokenOff: 4, hasWholeMtime: 8 } as const;

/** The size of a value that the process may not read. */
const UNREADABLE = 0xffffffff;

/** The extended attributes of an entry by name. A value is undefined where the process may not read it. */
export type Attributes = ReadonlyMap<string, Buffer | undefined>;

const noAttributes: Attributes = new Map();

/** A time of a file. The nanoseconds count from the second on, before 1970 too. */
export interface Time {
  readonly seconds: number;
  readonly nanoseconds: number;
}

export const toNanoseconds = ({ seconds, nanoseconds }: Time): bigint =>
  BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds);

const align = (size: number, to: number): number => Math.ceil(size / to) * to;

const nothing = new ArrayBuffer(0);

/** Entries, of which one is current. */
export class Records {
  #bytes: Buffer = Buffer.from(nothing);
  #words: Uint32Array = new Uint32Array(nothing);
  #wide: BigInt64Array = new BigInt64Array(nothing);
  /** Of the current record. */
  #at = 0;
  #next = 0;

  /** Takes other entries, before the first of which the cursor is. */
  load(records: Buffer): void {
    const { buffer, byteOffset, length } = records;
    this.#bytes = records;
    this.#words = new Uint32Array(buffer, byteOffset, length >> 2);
    this.#wide = new BigInt64Array(buffer, byteOffset, length >> 3);
    this.#at = 0;
    this.#next = 0;
  }

  /** Goes on to the next entry. Returns false behind the last one. */
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

  /** The errno with which the entry, or the contents of a directory, could not be read; else 0. */
  get error(): number {
    return this.#word(word.error);
  }

  /** 0 if nothing is known of the entry but its error. */
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

  /** The device that a device node stands for. */
  get rdevMajor(): number {
    return this.#word(word.rdevMajor);
  }

  get rdevMinor(): number {
    return this.#word(word.rdevMinor);
  }

  /** 0 for the root of a walk. */
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

  /** The number of blocks of 512 bytes that it occupies. */
  get blocks(): number {
    return this.#half(wide.blocks);
  }

  get mtime(): Time {
    return { seconds: Number(this.#wide[(this.#at >> 3) + wide.mtime]), nanoseconds: this.#word(word.mtimeNs) };
  }

  get ctime(): Time {
    return { seconds: Number(this.#wide[(this.#at >> 3) + wide.ctime]), nanoseconds: this.#word(word.ctimeNs) };
  }

  /** In nanoseconds since 1970. */
  get mtimeNs(): bigint {
    if (this.#word(word.flags) & flag.hasWholeMtime) return this.#wide[(this.#at >> 3) + wide.mtimeWhole] as bigint;
    return (this.#wide[(this.#at >> 3) + wide.mtime] as bigint) * 1_000_000_000n + BigInt(this.#word(word.mtimeNs));
  }

  /** The root of another mount. The walk does not enter it. */
  get isOtherMount(): boolean {
    return (this.#word(word.flags) & flag.isOtherMount) !== 0;
  }

  /** The walk has ended here, because a directory is not where it was. */
  get isBrokenOff(): boolean {
    return (this.#word(word.flags) & flag.isBrokenOff) !== 0;
  }

  get isAscii(): boolean {
    return (this.#word(word.flags) & flag.isAscii) !== 0;
  }

  /** One character a byte; empty for the root. */
  get name(): string {
    const start = this.#at + HEAD;
    return this.#bytes.toString('latin1', start, start + this.#word(word.nameSize));
  }

  get #targetStart(): number {
    return this.#at + HEAD + align(this.#word(word.nameSize), 8);
  }

  /** The target of a symbolic link, if the walk reads targets. Valid as long as the buffer of the records is. */
  get target(): Buffer {
    return this.#bytes.subarray(this.#targetStart, this.#targetStart + this.#word(word.targetSize));
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
