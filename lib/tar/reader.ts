/**
 * Reads tar archives: v7, ustar, pax, GNU tar and star. Pure: bytes in, entries and their data out. It keeps no data of
 * files, only the header that it is reading.
 */
import { type EntryType, type FoundEntry, type Moment, NO_XATTRS } from './entry.js';
import { invalidArchive } from './invalid.js';
import { BLOCK, fields, hasChecksum, MORE_PARTS, padded } from './layout.js';
import { type Field, parseMoment, readNumber } from './numbers.js';
import { type PaxRecord, parseRecords, toXattr } from './pax.js';

/** Receives the parts of an archive in order. */
export interface TarHandler {
  entry(entry: FoundEntry): void;
  /** Data of the last entry, of which this is the position in the file. Valid as long as the chunk that it is in. */
  data(bytes: Buffer, position: number): void;
  /** All data of the last entry has come. */
  finish(): void;
}

/**
 * The most bytes of extended headers that are kept in memory: for one entry, and for all. The attributes of a file may
 * fill several MiB.
 */
const MOST_RECORDS = 16 * 2 ** 20;
/** The most keywords of global extended headers. */
const MOST_GLOBAL = 1024;
/** The same for a long name of GNU tar. The kernel's limit is 4096. */
const MOST_NAME = 64 * 1024;
/** The most parts of a sparse file: their map is kept in memory. */
const MOST_PARTS = 2 ** 20;

const types: Readonly<Record<string, EntryType>> = {
  '\0': 'file',
  '0': 'file',
  '1': 'link',
  '2': 'symlink',
  '3': 'character',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
  '7': 'file', // contiguous
  D: 'directory', // with a list of names, by `tar --listed-incremental`
  S: 'file', // sparse
};

/** Extended headers that the next entry gets. */
interface Extended {
  records: PaxRecord[];
  /** The bytes of the headers that hold the records. */
  size: number;
  longName: string | undefined;
  longLink: string | undefined;
}

const newExtended = (): Extended => ({ records: [], size: 0, longName: undefined, longLink: undefined });

type Values = ReadonlyMap<string, Buffer>;

interface Attributes {
  readonly xattrs: ReadonlyMap<string, Buffer>;
  readonly unread: readonly string[];
}

const NO_ATTRIBUTES: Attributes = { xattrs: NO_XATTRS, unread: [] };

const textIn = (values: Values | undefined, keyword: string): string | undefined =>
  values?.get(keyword)?.toString('latin1');

/** Returns whether records are those of a sparse file. */
const isSparse = (values: Values, records: readonly PaxRecord[]): boolean =>
  ['GNU.sparse.major', 'GNU.sparse.map', 'GNU.sparse.size', 'GNU.sparse.realsize'].some((keyword) =>
    values.has(keyword),
  ) || records.some(([keyword]) => keyword === 'GNU.sparse.offset');

interface SparseMap {
  readonly realSize: number;
  readonly segments: readonly number[];
}

export class TarReader {
  readonly #handler: TarHandler;
  readonly #machine: Generator<void, void, void>;
  #chunk: Buffer = Buffer.alloc(0);
  /** The position in the chunk, and that of the chunk's beginning in the archive. */
  #at = 0;
  #before = 0;
  /** The extended header, entry or end that is being read, for the error at the end of a cut archive. */
  #reading: string | undefined;
  #isAtEnd = false;
  #hasZeroBlock = false;
  /** The byte at which the current header begins, and the name of its entry when it is known. */
  #headerAt = 0;
  #name: string | undefined;
  readonly #global = new Map<string, Buffer>();
  /** The bytes of their keywords and values. */
  #globalSize = 0;

  constructor(handler: TarHandler) {
    this.#handler = handler;
    this.#machine = this.#read();
  }

  /** The bytes read so far. */
  get offset(): number {
    return this.#before + this.#at;
  }

  /** True once the end of the archive has been read. Bytes that follow it mean nothing. */
  get isAtEnd(): boolean {
    return this.#isAtEnd;
  }

  /** Reads the next bytes. @throws {OverlayError} `'archive-invalid'`; the reader is of no more use then */
  write(chunk: Uint8Array): void {
    if (!this.#isAtEnd && chunk.length > 0) {
      this.#before += this.#chunk.length;
      this.#chunk = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
      this.#at = 0;
      if (this.#machine.next().done) this.#isAtEnd = true;
    }
  }

  /** Says that no more bytes come. @throws {OverlayError} `'archive-invalid'` if the archive is cut */
  end(): void {
    // Some writers leave out the blocks of zeros at the end, and Go's reader takes what they write. An input without a
    // byte is more likely that of a writer that has failed.
    if (this.#isAtEnd || (this.offset > 0 && this.#reading === undefined)) return;
    const missing = this.#reading ?? 'its first entry';
    throw invalidArchive(this.offset, this.#name, `it ends before ${missing}`);
  }

  #fail(rule: string, offset = this.#headerAt): never {
    throw invalidArchive(offset, this.#name, rule);
  }

  /** Returns the next bytes, if the chunk has them all. A generator for each header would cost more than its parsing. */
  #takeNow(size: number): Buffer | undefined {
    const end = this.#at + size;
    if (end > this.#chunk.length) return undefined;
    const piece = this.#chunk.subarray(this.#at, end);
    this.#at = end;
    return piece;
  }

  /** Returns the next bytes as one piece. */
  *#take(size: number, reading: string): Generator<void, Buffer, void> {
    const whole = Buffer.allocUnsafe(size);
    for (let filled = 0; ; ) {
      const more = Math.min(size - filled, this.#chunk.length - this.#at);
      this.#chunk.copy(whole, filled, this.#at, this.#at + more);
      this.#at += more;
      filled += more;
      if (filled === size) {
        this.#reading = undefined;
        return whole;
      }
      this.#reading = filled === 0 && reading === '' ? undefined : reading || 'the end of a header';
      yield;
    }
  }

  *#skip(size: number, reading: string): Generator<void, void, void> {
    for (let left = size; left > 0; ) {
      const more = Math.min(left, this.#chunk.length - this.#at);
      this.#at += more;
      left -= more;
      if (left === 0) break;
      this.#reading = reading;
      yield;
    }
    this.#reading = undefined;
  }

  *#read(): Generator<void, void, void> {
    let extended = newExtended();
    let isExtended = false;
    for (;;) {
      this.#name = undefined;
      this.#headerAt = this.offset;
      const next = isExtended ? 'the entry of an extended header' : '';
      const block = this.#takeNow(BLOCK) ?? (yield* this.#take(BLOCK, next));
      const isZero = block[0] === 0 && block.every((byte) => byte === 0);
      if (isZero) {
        if (isExtended) this.#fail('an extended header has no entry');
        if (this.#hasZeroBlock) return;
        this.#hasZeroBlock = true;
        continue;
      }
      if (this.#hasZeroBlock) this.#fail('a block of zeros is followed by one that is not');
      this.#checkSum(block);
      const type = String.fromCharCode(block[fields.type[0]] as number);
      switch (type) {
        case 'x':
        case 'X': // Solaris
          extended.size += this.#size(block);
          for (const record of yield* this.#readRecords(block, extended.size)) extended.records.push(record);
          isExtended = true;
          break;
        case 'g':
          for (const record of yield* this.#readRecords(block, this.#size(block))) this.#setGlobal(record);
          break;
        case 'L':
          extended.longName = yield* this.#readLongName(block);
          isExtended = true;
          break;
        case 'K':
          extended.longLink = yield* this.#readLongName(block);
          isExtended = true;
          break;
        case 'V': // the label of a volume
          yield* this.#skip(padded(this.#size(block)), 'the end of a label');
          break;
        default:
          {
            const rest = this.#readEntry(block, type, extended);
            if (rest !== undefined) yield* rest;
          }
          if (isExtended) extended = newExtended();
          isExtended = false;
      }
    }
  }

  #checkSum(block: Buffer): void {
    if (!hasChecksum(block)) this.#fail('the checksum of a header is wrong: this is no header, or it is damaged');
  }

  #number(block: Buffer, field: 'mode' | 'uid' | 'gid' | 'major' | 'minor' | 'mtime' | 'size' | 'realSize'): number {
    const value = readNumber(block, fields[field]);
    if (value === undefined) this.#fail(`the field ${field} is no number`);
    if (!Number.isFinite(value)) this.#fail(`the field ${field} is beyond 2^53`);
    if (value < 0 && field !== 'mtime') this.#fail(`the field ${field} is negative`);
    return value;
  }

  #size(block: Buffer): number {
    return this.#number(block, 'size');
  }

  #setGlobal([keyword, value]: PaxRecord): void {
    const sizeOf = (bytes: Buffer | undefined): number => (bytes === undefined ? 0 : keyword.length + bytes.length);
    this.#globalSize -= sizeOf(this.#global.get(keyword));
    this.#global.delete(keyword);
    if (value.length === 0) return;
    this.#globalSize += sizeOf(value);
    if (this.#globalSize > MOST_RECORDS) this.#fail(`global extended headers of more than ${MOST_RECORDS} bytes`);
    if (this.#global.size >= MOST_GLOBAL) this.#fail(`global extended headers of more than ${MOST_GLOBAL} keywords`);
    this.#global.set(keyword, Buffer.from(value));
  }

  /** Reads a header of an entry that has extended headers of `whole` bytes with this one. */
  *#readRecords(block: Buffer, whole: number): Generator<void, PaxRecord[], void> {
    const size = this.#size(block);
    if (whole > MOST_RECORDS) this.#fail(`an extended header of ${whole} bytes; at most ${MOST_RECORDS} are read`);
    const bytes = this.#takeNow(padded(size)) ?? (yield* this.#take(padded(size), 'the end of an extended header'));
    // Values outlive the chunk, which the caller may overwrite.
    const records = parseRecords(Buffer.from(bytes.subarray(0, size)));
    if (typeof records === 'string') this.#fail(`in an extended header, ${records}`);
    return records;
  }

  *#readLongName(block: Buffer): Generator<void, string, void> {
    const size = this.#size(block);
    if (size > MOST_NAME) this.#fail(`a name of ${size} bytes; at most ${MOST_NAME} are read`);
    const bytes = yield* this.#take(padded(size), 'the end of a long name');
    return textOf(bytes, [0, size]);
  }

  /** Reads an entry with its data. A plain function as long as the chunk has all: most entries are small files. */
  #readEntry(block: Buffer, typeflag: string, extended: Extended): Generator<void, void, void> | undefined {
    const values = this.#valuesOf(extended.records);
    const header = this.#parseHeader(block, typeflag, extended, values);
    const { type } = header;
    const stored = this.#numberOf(block, values, 'size', 'size');
    if (type === 'file' && (typeflag === 'S' || (values !== undefined && isSparse(values, extended.records)))) {
      return this.#readSparseEntry(header, block, typeflag, extended.records, values, stored);
    }
    // Links, devices and directories have no data; some programs write a size all the same. A file that is a
    // directory by its name alone has data.
    const data = types[typeflag] === 'file' || typeflag === 'D' ? stored : 0;
    this.#handler.entry(type === 'file' ? { ...header, size: data } : header);
    const end = this.#at + padded(data);
    if (end > this.#chunk.length) return this.#readData(type, data);
    if (data > 0 && type === 'file') this.#handler.data(this.#chunk.subarray(this.#at, this.#at + data), 0);
    this.#at = end;
    this.#handler.finish();
    return undefined;
  }

  *#readData(type: EntryType, data: number): Generator<void, void, void> {
    if (type === 'file') yield* this.#pass(0, data);
    else yield* this.#skip(data, 'the end of its data');
    yield* this.#skip(padded(data) - data, 'the end of its data');
    this.#handler.finish();
  }

  *#readSparseEntry(
    header: FoundEntry,
    block: Buffer,
    typeflag: string,
    records: readonly PaxRecord[],
    values: Values | undefined,
    stored: number,
  ): Generator<void, void, void> {
    const sparse = yield* this.#readSparse(block, typeflag, records, values, stored);
    const data = stored - sparse.mapSize;
    const segments = this.#toSegments(sparse, data);
    this.#handler.entry({ ...header, size: sparse.realSize, segments });
    for (let i = 0; i < segments.length; i += 2) yield* this.#pass(segments[i] as number, segments[i + 1] as number);
    yield* this.#skip(padded(data) - data, 'the end of its data');
    this.#handler.finish();
  }

  /** Reads a header, but for the size. */
  #parseHeader(block: Buffer, typeflag: string, extended: Extended, values: Values | undefined): FoundEntry {
    const { longName, longLink, records } = extended;
    const name = textIn(values, 'GNU.sparse.name') ?? textIn(values, 'path') ?? longName ?? nameOf(block);
    this.#name = name;
    let type = types[typeflag];
    if (type === undefined) this.#fail(`the type ${quoteType(typeflag)} of an entry is unknown`);
    const isLink = type === 'link' || type === 'symlink';
    const linkname = isLink ? (textIn(values, 'linkpath') ?? longLink ?? textOf(block, fields.linkname)) : '';
    if (name.includes('\0') || linkname.includes('\0')) this.#fail('a name contains a NUL byte');
    // Before ustar, the slash alone told directories.
    if (type === 'file' && typeflag !== '7' && typeflag !== 'S' && name.endsWith('/')) type = 'directory';
    const mtime = textIn(values, 'mtime');
    const isDevice = type === 'character' || type === 'block';
    const { xattrs, unread } = values === undefined ? NO_ATTRIBUTES : this.#xattrsOf(records);
    return {
      name,
      type,
      linkname,
      mode: this.#number(block, 'mode') & 0o7777,
      uid: this.#numberOf(block, values, 'uid', 'uid'),
      gid: this.#numberOf(block, values, 'gid', 'gid'),
      size: 0,
      mtime: mtime === undefined ? { seconds: this.#number(block, 'mtime'), nanoseconds: 0 } : this.#moment(mtime),
      major: isDevice ? this.#number(block, 'major') : 0,
      minor: isDevice ? this.#number(block, 'minor') : 0,
      xattrs,
      segments: undefined,
      offset: this.#headerAt,
      unread,
    };
  }

  /** A number of the header, or of the record in its place. */
  #numberOf(block: Buffer, values: Values | undefined, keyword: string, field: 'uid' | 'gid' | 'size'): number {
    const record = textIn(values, keyword);
    return record === undefined ? this.#number(block, field) : this.#decimal(record, keyword);
  }

  /** Passes data on as it comes. */
  *#pass(position: number, size: number): Generator<void, void, void> {
    for (let done = 0; done < size; ) {
      const more = Math.min(size - done, this.#chunk.length - this.#at);
      if (more > 0) this.#handler.data(this.#chunk.subarray(this.#at, this.#at + more), position + done);
      this.#at += more;
      done += more;
      if (done === size) break;
      this.#reading = 'the end of its data';
      yield;
    }
    this.#reading = undefined;
  }

  /** The last value of each keyword, global ones included. An empty value takes a record back. */
  #valuesOf(records: readonly PaxRecord[]): Values | undefined {
    if (records.length === 0) return this.#global.size === 0 ? undefined : this.#global;
    const values = new Map(this.#global);
    for (const [keyword, value] of records) {
      if (value.length === 0) values.delete(keyword);
      else values.set(keyword, value);
    }
    return values;
  }

  #decimal(value: string, keyword: string): number {
    if (!/^\d+$/.test(value)) this.#fail(`the record ${keyword} is no number of 0 or more: ${quoteType(value)}`);
    const number = Number(value);
    if (!Number.isSafeInteger(number)) this.#fail(`the record ${keyword} is beyond 2^53: ${quoteType(value)}`);
    return number;
  }

  #moment(value: string): Moment {
    return parseMoment(value) ?? this.#fail(`the record mtime is no time: ${quoteType(value)}`);
  }

  #xattrsOf(records: readonly PaxRecord[]): Attributes {
    const xattrs = new Map<string, Buffer>();
    const unread: string[] = [];
    // An attribute may be empty, so its record counts even then.
    for (const record of [...this.#global, ...records]) {
      const xattr = toXattr(record);
      if (xattr === 'unread') unread.push(record[0]);
      else if (xattr !== undefined) {
        if (xattr[0] === '' || xattr[0].includes('\0')) this.#fail('an attribute has no name, or a NUL byte in it');
        xattrs.set(...xattr);
      }
    }
    return { xattrs, unread };
  }

  *#readSparse(
    block: Buffer,
    typeflag: string,
    records: readonly PaxRecord[],
    values: Values | undefined,
    stored: number,
  ): Generator<void, SparseMap & { mapSize: number }, void> {
    if (typeflag === 'S') return { ...(yield* this.#readOldSparse(block)), mapSize: 0 };
    const text = (keyword: string): string | undefined => textIn(values, keyword);
    const size = text('GNU.sparse.realsize') ?? text('GNU.sparse.size');
    const major = text('GNU.sparse.major');
    const list = text('GNU.sparse.map');
    if (size === undefined) this.#fail('a sparse file has no record of its size');
    const realSize = this.#decimal(size, 'GNU.sparse.size');
    if (major !== undefined && major !== '0') {
      if (major !== '1' || (text('GNU.sparse.minor') ?? '0') !== '0') {
        this.#fail(`the version ${quoteType(major)} of a sparse file is unknown`);
      }
      return { realSize, ...(yield* this.#readSparseMap(stored)) };
    }
    if (list !== undefined) {
      const numbers = list === '' ? [] : list.split(',').map((number) => this.#decimal(number, 'GNU.sparse.map'));
      return { realSize, segments: numbers, mapSize: 0 };
    }
    const segments: number[] = [];
    for (const [keyword, value] of records) {
      const isOffset = keyword === 'GNU.sparse.offset';
      if (!isOffset && keyword !== 'GNU.sparse.numbytes') continue;
      if ((segments.length % 2 === 0) !== isOffset) this.#fail('the records of a sparse file are out of order');
      segments.push(this.#decimal(value.toString('latin1'), keyword));
    }
    return { realSize, segments, mapSize: 0 };
  }

  /** The parts are in the header, and in blocks that follow it. */
  *#readOldSparse(block: Buffer): Generator<void, SparseMap, void> {
    const realSize = this.#number(block, 'realSize');
    const segments: number[] = [];
    const add = (from: Buffer, at: number, parts: number): void => {
      for (let i = 0; i < parts; i++) {
        // A part without a byte ends the list.
        if (from[at + 24 * i] === 0) return;
        const pair = [readNumber(from, [at + 24 * i, 12]), readNumber(from, [at + 24 * i + 12, 12])];
        for (const number of pair) {
          if (number === undefined || !Number.isSafeInteger(number)) this.#fail('a part of a sparse file is no number');
          segments.push(number);
        }
      }
    };
    add(block, fields.sparse[0], 4);
    for (let more = block[fields.isExtended[0]] !== 0; more; ) {
      const next = yield* this.#take(BLOCK, 'the end of the map of a sparse file');
      add(next, 0, 21);
      if (segments.length > 2 * MOST_PARTS) this.#fail(`a sparse file has more than ${MOST_PARTS} parts`);
      more = next[MORE_PARTS] !== 0;
    }
    return { realSize, segments };
  }

  /** Version 1.0: the map is the beginning of the data, decimal numbers in lines, filled up to a block. */
  *#readSparseMap(stored: number): Generator<void, { segments: number[]; mapSize: number }, void> {
    const segments: number[] = [];
    let mapSize = 0;
    let expected = -1;
    let digits = '';
    while (expected < 0 || segments.length < expected) {
      mapSize += BLOCK;
      if (mapSize > stored) this.#fail('the map of a sparse file is longer than its data');
      const block = yield* this.#take(BLOCK, 'the end of the map of a sparse file');
      for (const byte of block) {
        if (byte !== 0x0a) {
          digits += String.fromCharCode(byte);
          if (digits.length > 20) this.#fail('the map of a sparse file has a line that is no number');
          continue;
        }
        const number = this.#decimal(digits, 'of the map');
        digits = '';
        if (expected < 0) {
          if (number > MOST_PARTS) this.#fail(`a sparse file has more than ${MOST_PARTS} parts`);
          expected = 2 * number;
        } else segments.push(number);
        if (segments.length === expected) break;
      }
    }
    return { segments, mapSize };
  }

  /** Checks the parts of a sparse file. Returns those that are not empty. */
  #toSegments({ realSize, segments }: SparseMap, data: number): readonly number[] {
    const filled: number[] = [];
    let end = 0;
    let sum = 0;
    if (segments.length % 2 !== 0) this.#fail('the map of a sparse file has an offset without a size');
    for (let i = 0; i < segments.length; i += 2) {
      const [offset, size] = [segments[i] as number, segments[i + 1] as number];
      if (offset < end || size < 0) this.#fail('the parts of a sparse file overlap');
      end = offset + size;
      sum += size;
      if (end > realSize) this.#fail('a part of a sparse file is beyond its end');
      if (size > 0) filled.push(offset, size);
    }
    if (sum !== data) this.#fail('the parts of a sparse file and its data differ in size');
    return filled;
  }
}

/** Returns a field up to its first NUL. */
function textOf(block: Buffer, [at, size]: Field): string {
  const nul = block.indexOf(0, at);
  return block.toString('latin1', at, nul < 0 || nul > at + size ? at + size : nul);
}

function nameOf(block: Buffer): string {
  const name = textOf(block, fields.name);
  const magic = block.toString('latin1', fields.magic[0], fields.magic[0] + 6);
  if (magic !== 'ustar\0') return name;
  const isStar = block.toString('latin1', 508, 512) === 'tar\0';
  const prefix = textOf(block, isStar ? fields.starPrefix : fields.prefix);
  return prefix === '' ? name : `${prefix}/${name}`;
}

const quoteType = (text: string): string =>
  `'${text.slice(0, 40).replace(/[^!-~ ]/g, (c) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`)}'`;
