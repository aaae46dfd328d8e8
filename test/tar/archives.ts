/** Archives in memory: their entries with all data. */
import type { FoundEntry, TarEntry } from '#lib/tar/entry.js';
import { NO_XATTRS } from '#lib/tar/entry.js';
import { TarReader } from '#lib/tar/reader.js';
import { END_OF_ARCHIVE, encodeEntry, padding } from '#lib/tar/writer.js';

export interface Whole {
  readonly entry: FoundEntry;
  /** Holes as zeros. */
  readonly data: Buffer;
}

/** Reads an archive in chunks of this size. */
export function readArchive(archive: Uint8Array, chunkSize = archive.length): Whole[] {
  const found: { entry: FoundEntry; data: Buffer; isWhole: boolean }[] = [];
  const last = (): (typeof found)[0] => found.at(-1) as (typeof found)[0];
  const reader = new TarReader({
    entry: (entry) => found.push({ entry, data: Buffer.alloc(entry.size), isWhole: false }),
    data: (bytes, position) => void last().data.set(bytes, position),
    finish: () => {
      last().isWhole = true;
    },
  });
  for (let at = 0; at < archive.length; at += chunkSize) reader.write(archive.subarray(at, at + chunkSize));
  reader.end();
  if (!found.every(({ isWhole }) => isWhole)) throw new Error('an entry has not been finished');
  return found.map(({ entry, data }) => ({ entry, data }));
}

export const plainEntry: TarEntry = {
  name: 'file',
  type: 'file',
  linkname: '',
  mode: 0o644,
  uid: 0,
  gid: 0,
  size: 0,
  mtime: { seconds: 1_600_000_000, nanoseconds: 0 },
  major: 0,
  minor: 0,
  xattrs: NO_XATTRS,
};

/** An entry and its data as our writer writes them; without the archive's end. */
export function packTar(more: Partial<TarEntry>, data: string | Uint8Array = ''): Buffer {
  const bytes = Buffer.from(data as string, 'latin1');
  const entry: TarEntry = { ...plainEntry, size: bytes.length, ...more };
  const { segments } = entry;
  const parts: Buffer[] = [];
  if (segments === undefined) parts.push(bytes);
  else {
    for (let i = 0; i < segments.length; i += 2) {
      const [at, size] = [segments[i] as number, segments[i + 1] as number];
      parts.push(bytes.subarray(at, at + size));
    }
  }
  const stored = Buffer.concat(parts);
  return Buffer.concat([encodeEntry(entry), stored, padding(stored.length)]);
}

export const archiveOf = (...entries: readonly Uint8Array[]): Buffer => Buffer.concat([...entries, END_OF_ARCHIVE]);

/** A header as nobody should write it: fields by offset, with a right checksum. */
export function rawHeader(texts: Readonly<Record<number, string>>): Buffer {
  const block = Buffer.alloc(512);
  const usual = {
    0: 'raw',
    100: '0000644\0',
    108: '0000000\0',
    116: '0000000\0',
    124: '00000000000\0',
    136: '00000000000\0',
  };
  for (const [at, text] of Object.entries({ ...usual, 156: '0', 257: 'ustar\x0000', ...texts })) {
    block.write(text, Number(at), 'latin1');
  }
  block.write('        ', 148, 'latin1');
  const sum = block.reduce((a, b) => a + b, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

/** An extended header with these bytes as its records. */
export function rawExtended(records: string, type = 'x'): Buffer {
  const body = Buffer.from(records, 'latin1');
  const size = `${body.length.toString(8).padStart(11, '0')}\0`;
  return Buffer.concat([rawHeader({ 0: 'PaxHeaders/raw', 124: size, 156: type }), body, padding(body.length)]);
}
