/**
 * Fuzzes the reader of archives and what comes of its entries: valid archives are damaged where their structure is. An
 * archive is read, or refused by an error of ours, the same in chunks of any size, and soon. Nothing outside the
 * directory that it is applied to is touched.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { OverlayError } from 'overlayfs';
import { apply, remove } from 'overlayfs/layers';
import { Placement } from '#lib/archives/placement.js';
import type { EntryType, FoundEntry, TarEntry } from '#lib/tar/entry.js';
import { fields } from '#lib/tar/layout.js';
import { formatRecord } from '#lib/tar/pax.js';
import { TarReader } from '#lib/tar/reader.js';
import { generator } from '../support/random.js';
import { archiveOf, packTar, rawExtended } from '../tar/archives.js';

const { values } = parseArgs({ options: { seconds: { type: 'string', default: '20' }, seed: { type: 'string' } } });
const seed = Number(values.seed ?? Math.floor(Math.random() * 2 ** 31));
const below = generator(seed);
const pick = <T>(items: readonly T[]): T => items[below(items.length)] as T;

/** Time of the processors for one archive in one way, in microseconds: the machine may do other things. */
const LONGEST = 5_000_000;
/** Each so many archives, one is applied. */
const APPLIED = 8;

// ------------------------------------------------------------------------------------------------------- archives

const components = [
  'a',
  'b',
  'c',
  'd',
  '..',
  '.',
  '',
  '.wh.a',
  '.wh.b',
  '.wh..wh..opq',
  '.wh.',
  '.wh..wh.plnk',
  '\xff',
  'n'.repeat(255),
];
const name = (): string => {
  const path = Array.from({ length: 1 + below(4) }, () =>
    below(6) === 0 ? pick(components) : pick(['a', 'b', 'c', 'd']),
  );
  return `${below(12) === 0 ? '/' : ''}${path.join('/')}`;
};
const types: readonly EntryType[] = ['file', 'directory', 'symlink', 'link', 'character', 'block', 'fifo'];
const targets = ['a', 'b/c', '..', '../../..', '/', '/etc', '/outside', 'a/../../outside', '.', 'x'.repeat(300)];

function entry(): Buffer {
  const type = below(3) === 0 ? pick(types) : pick(['file', 'directory'] as const);
  const isFile = type === 'file';
  const data = isFile ? Buffer.alloc(pick([0, 1, 511, 512, 513, 5_000, 300_000])).fill(below(256)) : Buffer.alloc(0);
  const more: Partial<TarEntry> = {
    name: name() + (type === 'directory' ? '/' : ''),
    type,
    mode: below(0o10000),
    uid: pick([0, 1, 65_534, 2 ** 31, 2 ** 32 - 2]),
    mtime: { seconds: pick([0, -1, 1_700_000_000, 2 ** 40]), nanoseconds: pick([0, 999_999_999]) },
    ...((type === 'symlink' || type === 'link') && { linkname: pick(targets) }),
    ...(type === 'character' && { major: below(2), minor: below(2) }),
    ...(below(5) === 0 && {
      xattrs: new Map([
        [pick(['user.a', 'trusted.overlay.opaque', 'user.overlay.redirect', 'security.capability']), Buffer.from('y')],
      ]),
    }),
    ...(isFile && data.length > 600 && below(3) === 0 && { segments: [0, 512, 600, data.length - 600] }),
  };
  return packTar(more, data);
}

const numbers = [
  '00000000000\0',
  '77777777777\0',
  '-1',
  '99999999999\0',
  '            ',
  '\x80\0\0\0\0\0\0\0\0\0\0\x01',
  '\xff'.repeat(12),
  `\x80${'\xff'.repeat(11)}`,
  'garbage',
];
const records = [
  formatRecord('path', '../x'),
  formatRecord('path', `/${'p/'.repeat(300)}`),
  formatRecord('size', '-5'),
  formatRecord('size', '99999999999999999999'),
  formatRecord('size', '3'),
  formatRecord('mtime', '1e9'),
  formatRecord('linkpath', '/outside'),
  formatRecord('SCHILY.xattr.', 'x'),
  formatRecord('SCHILY.xattr.trusted.overlay.redirect', '/etc'),
  formatRecord('SCHILY.acl.access', 'user::rwx,group::r-x,other::---'),
  formatRecord('GNU.sparse.map', '0,1,5,1'),
  formatRecord('GNU.sparse.size', '6'),
  formatRecord('GNU.sparse.major', '1'),
  formatRecord('GNU.sparse.realsize', '100000'),
  formatRecord('uid', ''),
  '5 a=\n',
  '999 a=b\n',
  '0 a=b\n',
  '-1 a=b\n',
  '6 =ab\n',
  '6 abc\n',
];

function fixChecksum(block: Buffer): void {
  block.write('        ', 148, 'latin1');
  const sum = block.reduce((a, b) => a + b, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
}

/** Damages an archive once. Offsets are mostly those of blocks. */
function damage(archive: Buffer): Buffer {
  if (archive.length < 1024) return archive;
  const blocks = Math.max(1, archive.length >> 9);
  const at = below(blocks) * 512;
  const isHeader = (block: number): boolean => archive.toString('latin1', block + 257, block + 262) === 'ustar';
  let header = at;
  while (header > 0 && !isHeader(header)) header -= 512;
  const copy = Buffer.from(archive);
  switch (below(9)) {
    case 0:
    case 1:
    case 2: {
      const field = pick(Object.values(fields)) as readonly [number, number];
      copy.write(
        pick([...numbers, ...components, String.fromCharCode(below(256))]).slice(0, field[1]),
        header + field[0],
        'latin1',
      );
      if (below(5) > 0) fixChecksum(copy.subarray(header, header + 512));
      return copy;
    }
    case 3:
      copy[header + 156] = pick([...'\x000123456789DKLMNSVXgxZ']).charCodeAt(0);
      fixChecksum(copy.subarray(header, header + 512));
      return copy;
    case 4:
      return Buffer.concat([
        copy.subarray(0, header),
        rawExtended(
          Array.from({ length: 1 + below(3) }, () => pick(records)).join(''),
          pick(['x', 'g', 'X', 'L', 'K']),
        ),
        copy.subarray(header),
      ]);
    case 5:
      return copy.subarray(0, below(copy.length));
    case 6: // a block less, or twice
      return Buffer.concat([copy.subarray(0, at), copy.subarray(below(2) === 0 ? at + 512 : Math.max(0, at - 512))]);
    case 7: {
      const other = below(blocks) * 512;
      copy.copyWithin(at, other, other + 512);
      return copy;
    }
    default:
      for (let i = 0; i < 1 + below(4); i++) {
        const byte = below(copy.length);
        copy[byte] = (copy[byte] ?? 0) ^ (1 << below(8));
      }
      return copy;
  }
}

// --------------------------------------------------------------------------------------------------------- checks

/** The outcome of reading: all entries and data as text, or the error. */
function read(archive: Buffer, chunk: () => number): { text: string; entries: FoundEntry[] } {
  const parts: string[] = [];
  const entries: FoundEntry[] = [];
  let sum = 0;
  const reader = new TarReader({
    entry(found) {
      entries.push(found);
      parts.push(
        JSON.stringify({ ...found, xattrs: [...found.xattrs].map(([key, value]) => [key, value.toString('hex')]) }),
      );
      sum = 0;
    },
    data(bytes, position) {
      for (const [i, byte] of bytes.entries()) sum = (sum * 31 + byte + position + i) % 1_000_003;
    },
    finish: () => void parts.push(String(sum)),
  });
  try {
    for (let at = 0; at < archive.length; ) {
      const size = chunk();
      reader.write(Buffer.from(archive.subarray(at, at + size)));
      at += size;
    }
    reader.end();
  } catch (error) {
    if (!(error instanceof OverlayError) || !error.reason.startsWith('archive-')) throw error;
    parts.push(error.message);
  }
  return { text: parts.join('\n'), entries };
}

/** Checks what the placement tells a writer. */
function place(entries: readonly FoundEntry[], layout: 'overlay' | 'plain'): void {
  const check = (path: string): void => {
    if (path === '') return;
    const names = path.split('/');
    if (
      names.some((part) => part === '' || part === '.' || part === '..' || part.length > 255 || part.includes('\0'))
    ) {
      throw new Error(`the placement writes to ${JSON.stringify(path)}`);
    }
  };
  const placement = new Placement(
    {
      add(kind, path, { from } = {}) {
        check(path);
        if (kind === 'link') check(String(from));
      },
    },
    {
      layout,
      opaqueName: 'trusted.overlay.opaque',
      maxPathDepth: 1024,
      ownerOfMissing: {},
      describe: ({ mode }) => ({ mode }),
    },
  );
  for (const found of entries) {
    try {
      const placed = placement.place(found);
      if (placed.action === 'file') check(placed.path);
    } catch (error) {
      if (!(error instanceof OverlayError) || !error.reason.startsWith('archive-')) throw error;
      return;
    }
  }
}

const base = mkdtempSync(join(tmpdir(), 'overlayfs-fuzz-'));
const outside = join(base, 'outside');
writeFileSync(outside, 'outside');

async function works(archive: Buffer, layout: 'overlay' | 'plain'): Promise<boolean> {
  const root = join(base, 'root');
  // Another layer is there already, with links that lead out.
  mkdirSync(join(root, 'a/b'), { recursive: true });
  symlinkSync(base, join(root, 'b'));
  symlinkSync('../../outside', join(root, 'a/c'));
  let isApplied = true;
  try {
    await apply(archive, root, { layout, devices: pick(['create', 'skip']) });
  } catch (error) {
    if (!(error instanceof OverlayError)) throw error;
    isApplied = false;
  }
  await remove(root);
  if (readdirSync(base).join() !== 'outside' || readFileSync(outside, 'utf8') !== 'outside') {
    throw new Error('something outside was touched');
  }
  return isApplied;
}

const counts = { archives: 0, refused: 0, applied: 0, appliedWhole: 0 };
const end = Date.now() + Number(values.seconds) * 1000;
console.log(`tar: seed ${seed}`);
let archive: Buffer = Buffer.alloc(0);
try {
  while (Date.now() < end) {
    archive = archiveOf(...Array.from({ length: 1 + below(8) }, entry));
    for (let times = below(4); times > 0; times--) archive = damage(archive);
    counts.archives++;
    const start = process.cpuUsage();
    const whole = read(archive, () => archive.length || 1);
    if (whole.text.includes('the archive')) counts.refused++;
    const size = pick([1, 7, 511, 512, 513, 4096]);
    for (const chunk of [() => 512, () => size, () => 1 + below(2000)]) {
      if (archive.length > 20_000 && chunk() < 100) continue;
      if (read(archive, chunk).text !== whole.text) throw new Error('the size of chunks makes a difference');
    }
    const layout = pick(['overlay', 'plain'] as const);
    place(whole.entries, layout);
    if (counts.archives % APPLIED === 0) {
      counts.applied++;
      if (await works(archive, layout)) counts.appliedWhole++;
    }
    const { user, system } = process.cpuUsage(start);
    if (user + system > LONGEST) throw new Error(`it took ${(user + system) / 1000} ms`);
  }
} catch (error) {
  const kept = join(tmpdir(), `overlayfs-fuzz-${seed}.tar`);
  writeFileSync(kept, archive);
  console.log(`archive ${counts.archives} of seed ${seed}, kept as ${kept}:`, error);
  process.exitCode = 1;
}
rmSync(base, { recursive: true, force: true });
console.log(`tar: ${JSON.stringify(counts)}`);
