/**
 * Writes tar archives: ustar, with a pax header for what does not fit. Pure: the same entry gives the same bytes,
 * whatever the machine and the time.
 */
import { isUtf8 as isValidUtf8 } from 'node:buffer';
import type { EntryType, TarEntry } from './entry.js';
import { BLOCK, fields, padded } from './layout.js';
import { type Field, fitsOctal, formatMoment, writeOctal } from './numbers.js';
import { encodeXattrName, formatRecord, XATTR } from './pax.js';

const typeflags: Readonly<Record<EntryType, string>> = {
  file: '0',
  link: '1',
  symlink: '2',
  character: '3',
  block: '4',
  directory: '5',
  fifo: '6',
};

/** The two blocks of zeros that end an archive. */
export const END_OF_ARCHIVE = Buffer.alloc(2 * BLOCK);

const zeros = Buffer.alloc(BLOCK);

/** Returns the zeros that follow data of this size. */
export const padding = (size: number): Buffer => zeros.subarray(0, padded(size) - size);

/** Returns a name as prefix and rest, where ustar can hold it so. */
function split(name: string): readonly [prefix: string, rest: string] | undefined {
  const [, most] = fields.name;
  if (name.length <= most) return ['', name];
  const slash = name.indexOf('/', name.length - most - 1);
  // The rest of a directory's name must not be empty.
  if (slash <= 0 || slash > fields.prefix[1] || slash === name.length - 1) return undefined;
  return [name.slice(0, slash), name.slice(slash + 1)];
}

const isUtf8 = (name: string): boolean => isValidUtf8(Buffer.from(name, 'latin1'));

interface Header {
  readonly name: string;
  readonly prefix: string;
  readonly linkname: string;
  readonly typeflag: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly seconds: number;
  readonly major: number;
  readonly minor: number;
}

/** The checksum counts its own field as spaces, and each header has these. */
const MAGIC = 'ustar\x0000';
const CHECKSUM_AS_SPACES = 8 * 0x20;

/** Writes into a block of zeros, which begins here. */
function writeHeader(bytes: Buffer, start: number, header: Header): void {
  const sum =
    CHECKSUM_AS_SPACES +
    writeText(bytes, start, fields.name, header.name) +
    writeOctal(bytes, start, fields.mode, header.mode) +
    writeOctal(bytes, start, fields.uid, header.uid) +
    writeOctal(bytes, start, fields.gid, header.gid) +
    writeOctal(bytes, start, fields.size, header.size) +
    writeOctal(bytes, start, fields.mtime, header.seconds) +
    writeText(bytes, start, fields.type, header.typeflag) +
    writeText(bytes, start, fields.linkname, header.linkname) +
    writeText(bytes, start, fields.magic, MAGIC) +
    writeOctal(bytes, start, fields.major, header.major) +
    writeOctal(bytes, start, fields.minor, header.minor) +
    writeText(bytes, start, fields.prefix, header.prefix);
  const [at, size] = fields.checksum;
  writeOctal(bytes, start, [at, size - 1], sum);
  bytes[start + at + size - 1] = 0x20;
}

/** Returns the sum of the bytes. */
function writeText(bytes: Buffer, start: number, [at]: Field, value: string): number {
  let sum = 0;
  for (let i = 0; i < value.length; i++) {
    const byte = value.charCodeAt(i);
    bytes[start + at + i] = byte;
    sum += byte;
  }
  return sum;
}

/**
 * The map of a sparse file as its data begins with it, version 1.0 of GNU tar. GNU tar takes the end of the last part as
 * the end of the file, so a hole at the end is followed by an empty part.
 */
function formatMap(segments: readonly number[], size: number): Buffer {
  const end = (segments.at(-2) ?? 0) + (segments.at(-1) ?? 0);
  const all = end < size ? [...segments, size, 0] : segments;
  const text = `${all.length / 2}\n${all.map((number) => `${number}\n`).join('')}`;
  const map = Buffer.alloc(padded(text.length));
  map.write(text, 'latin1');
  return map;
}

/** The name of a file's extended header is seen by programs that do not know such headers only. */
const EXTENDED_NAME = 'PaxHeaders/';

/**
 * Returns the headers of an entry, after which its data follows, and then `padding`. A sparse file has
 * the data of its parts only.
 *
 * @param room returns memory of this size, which may hold anything
 */
export function encodeEntry(entry: TarEntry, room: (size: number) => Buffer = Buffer.alloc): Buffer {
  const { name, type, linkname, mtime, segments } = entry;
  const records: string[] = [];
  const map = segments === undefined ? undefined : formatMap(segments, entry.size);
  const data = segments === undefined ? entry.size : segments.reduce((sum, n, i) => (i % 2 === 1 ? sum + n : sum), 0);
  const stored = data + (map?.length ?? 0);

  const names = split(name);
  if (map !== undefined) {
    records.push(
      formatRecord('GNU.sparse.major', '1'),
      formatRecord('GNU.sparse.minor', '0'),
      formatRecord('GNU.sparse.name', name),
      formatRecord('GNU.sparse.realsize', String(entry.size)),
    );
  } else if (names === undefined) records.push(formatRecord('path', name));
  if (linkname.length > fields.linkname[1]) records.push(formatRecord('linkpath', linkname));
  // bsdtar takes other bytes than UTF-8 only then.
  if (records.length > 0 && !(isUtf8(name) && isUtf8(linkname))) records.unshift(formatRecord('hdrcharset', 'BINARY'));
  const orRecord = (keyword: 'uid' | 'gid' | 'size', value: number): number => {
    if (fitsOctal(value, fields[keyword])) return value;
    records.push(formatRecord(keyword, String(value)));
    return 0;
  };
  const [uid, gid, size] = [orRecord('uid', entry.uid), orRecord('gid', entry.gid), orRecord('size', stored)];
  const hasSeconds = fitsOctal(mtime.seconds, fields.mtime);
  if (!hasSeconds || mtime.nanoseconds !== 0) records.push(formatRecord('mtime', formatMoment(mtime)));
  for (const xattr of entry.xattrs.size === 0 ? [] : [...entry.xattrs.keys()].sort()) {
    const value = entry.xattrs.get(xattr) as Buffer;
    records.push(formatRecord(XATTR + encodeXattrName(xattr), value.toString('latin1')));
  }

  const extended = records.join('');
  const extendedSize = extended.length === 0 ? 0 : BLOCK + padded(extended.length);
  const bytes = room(extendedSize + BLOCK + (map?.length ?? 0));
  // Buffer has a fill of its own, which takes five times as long.
  Uint8Array.prototype.fill.call(bytes, 0);
  const short = names ?? ['', name.slice(0, fields.name[1])];
  if (extendedSize > 0) {
    const shown = EXTENDED_NAME + lastOf(name);
    writeHeader(bytes, 0, {
      name: shown.slice(0, fields.name[1]),
      prefix: '',
      linkname: '',
      typeflag: 'x',
      mode: 0o644,
      uid: 0,
      gid: 0,
      size: extended.length,
      seconds: 0,
      major: 0,
      minor: 0,
    });
    bytes.write(extended, BLOCK, 'latin1');
  }
  writeHeader(bytes, extendedSize, {
    name: short[1],
    prefix: short[0],
    linkname: linkname.slice(0, fields.linkname[1]),
    typeflag: typeflags[type],
    mode: entry.mode,
    uid,
    gid,
    size,
    seconds: hasSeconds ? mtime.seconds : 0,
    major: entry.major,
    minor: entry.minor,
  });
  if (map !== undefined) bytes.set(map, extendedSize + BLOCK);
  return bytes;
}

/** Returns the last component of a path. */
function lastOf(path: string): string {
  const end = path.endsWith('/') ? path.length - 1 : path.length;
  return path.slice(path.lastIndexOf('/', end - 1) + 1, end);
}
