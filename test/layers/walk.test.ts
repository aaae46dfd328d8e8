/** The walk of directory trees, against node:fs as another reader of the same trees. */
import {
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { OverlayError } from 'overlayfs';
import { EINVAL, ELOOP, ENOENT, ENOTDIR } from '#lib/errnos.js';
import type { Task } from '#lib/kernel/task.js';
import { run, runSync } from '#lib/kernel/task.js';
import { remove } from '#lib/layers/remove.js';
import { comparePaths } from '#lib/trees/encodings.js';
import { examine, Walker, type WalkOptions } from '#lib/trees/walk.js';
import { countDescriptors, generator, mountTest, scratch, setAttribute, withUserAttributes } from '../support/index.js';

interface Seen {
  readonly path: string;
  readonly mode: number;
  readonly size: number;
  readonly links: number;
  readonly inode: bigint;
  readonly mtimeNs: bigint;
  readonly target: string;
}

function* walk(dir: string, options: WalkOptions = {}, skipped: (path: string) => boolean = () => false): Task<Seen[]> {
  const walker = new Walker(dir, { targets: true, ...options });
  const seen: Seen[] = [];
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        const { path, mode, size, links, inode, mtimeNs, target } = walker;
        seen.push({ path, mode, size, links, inode, mtimeNs, target: target.toString('latin1') });
        if (skipped(path)) walker.skip();
      }
    }
  } finally {
    walker.close();
  }
  return seen;
}

/** The same by node:fs. */
function read(dir: Buffer, path = '', skipped: (path: string) => boolean = () => false): Seen[] {
  const place = path === '' ? dir : Buffer.concat([dir, Buffer.from('/'), Buffer.from(path, 'latin1')]);
  const { mode, size, nlink, ino, mtimeNs } = lstatSync(place, { bigint: true });
  const type = Number(mode) & 0o170000;
  const target = type === 0o120000 ? readlinkSync(place, 'buffer').toString('latin1') : '';
  const own = { path, mode: Number(mode), size: Number(size), links: Number(nlink), inode: ino, mtimeNs, target };
  if (type !== 0o040000 || skipped(path)) return [own];
  const names = readdirSync(place, 'buffer').map((name) => name.toString('latin1'));
  names.sort((a, b) => (a < b ? -1 : 1));
  return [own, ...names.flatMap((name) => read(dir, path === '' ? name : `${path}/${name}`, skipped))];
}

function makeTree(dir: string, seed: number): void {
  const random = generator(seed);
  const directories: Buffer[] = [Buffer.from(dir)];
  const pick = <T>(from: readonly T[]): T => from[random(from.length)] as T;
  for (let i = 0; i < 300; i++) {
    const length = 1 + random(12);
    const bytes = Buffer.from(Array.from({ length }, () => 1 + random(255)).map((b) => (b === 0x2f ? 0x30 : b)));
    const place = Buffer.concat([pick(directories), Buffer.from('/'), bytes]);
    try {
      const kind = random(4);
      if (kind === 0) {
        mkdirSync(place);
        directories.push(place);
      } else if (kind === 1) symlinkSync(bytes, place);
      else writeFileSync(place, 'x'.repeat(random(100)));
    } catch (error) {
      // Two names are the same, or are `.` or `..`.
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'EEXIST' && code !== 'EISDIR') throw error;
    }
  }
}

test('a walk sees all that node:fs sees, in byte order, with names of any byte', async (t) => {
  for (let seed = 1; seed <= 10; seed++) {
    const dir = scratch(t);
    makeTree(dir, seed);
    const expected = read(Buffer.from(dir));
    t.true(expected.length > 200);
    t.deepEqual(runSync(walk(dir)), expected, `seed ${seed}`);
    t.deepEqual(await run(walk(dir)), expected, `seed ${seed}`);
    const paths = expected.map(({ path }) => path);
    t.deepEqual(paths, [...paths].sort(comparePaths));
    const unsorted = runSync(walk(dir, { unsorted: true }));
    t.deepEqual(
      unsorted.sort((a, b) => comparePaths(a.path, b.path)),
      expected,
    );
  }
});

mountTest('a walk reads long values and long lists of attributes', (t) => {
  const dir = scratch(t, withUserAttributes());
  const names = Array.from({ length: 30 }, (_, i) => `user.${i}-${'n'.repeat(30)}`);
  const wanted = new Map(names.map((name, i) => [name, Buffer.alloc(i === 7 ? 2000 : 3, `${i}`)]));
  writeFileSync(join(dir, 'file'), 'data');
  for (const path of [dir, join(dir, 'file')]) {
    for (const [name, value] of wanted) setAttribute(path, name, value.toString());
  }
  const walker = new Walker(dir, { attributes: 'all' });
  while (runSync(walker.more())) {
    while (walker.advance()) t.deepEqual(new Map([...walker.attributes].sort()), new Map([...wanted].sort()));
  }
  t.is(walker.path, 'file');
  walker.close();
});

test('a directory that is skipped shows, and what is in it does not', async (t) => {
  const dir = scratch(t);
  makeTree(dir, 20);
  // More than one batch, of which some is read ahead.
  for (let i = 0; i < 30; i++) {
    mkdirSync(join(dir, `many${i}`));
    for (let j = 0; j < 300; j++) writeFileSync(join(dir, `many${i}`, `${j}`), '');
  }
  for (const skipped of [(path: string) => path.length % 3 === 0, (path: string) => path.startsWith('many1')]) {
    const isSkipped = (path: string): boolean => path !== '' && skipped(path);
    const expected = read(Buffer.from(dir), '', isSkipped);
    t.deepEqual(runSync(walk(dir, {}, isSkipped)), expected);
    t.deepEqual(await run(walk(dir, {}, isSkipped)), expected);
  }
});

test('a tree of 3,000 levels takes few descriptors', async (t) => {
  const dir = scratch(t);
  // From the inside out: no path is too long.
  let inner = join(dir, 'inner');
  mkdirSync(inner);
  writeFileSync(join(inner, 'z'), '');
  const levels = 3000;
  for (let i = 1; i < levels; i++) {
    const outer = join(dir, `o${i % 2}`);
    mkdirSync(outer);
    renameSync(inner, join(outer, 'd'));
    writeFileSync(join(outer, 'z'), '');
    inner = outer;
  }
  let most = 0;
  let entries = 0;
  const count = (): boolean => {
    if (entries++ % 100 === 0) most = Math.max(most, countDescriptors());
    return false;
  };
  const before = countDescriptors();
  for (const seen of [runSync(walk(inner, {}, count)), await run(walk(inner, {}, count))]) {
    t.is(seen.length, 2 * levels);
    t.is(seen.at(-1)?.path, 'z');
  }
  t.true(most < before + 40, `${most} descriptors`);
  t.true(countDescriptors() <= before);
  await remove(inner); // rmSync would need too long a path
});

test('a root that is not there or no directory gives an error with its path', async (t) => {
  const dir = scratch(t);
  writeFileSync(join(dir, 'file'), '');
  symlinkSync('.', join(dir, 'link'));
  const missing = { code: 'ENOENT', reason: 'path-missing', path: join(dir, 'none') };
  t.like(
    t.throws(() => runSync(walk(join(dir, 'none')))),
    missing,
  );
  t.like(await t.throwsAsync(run(walk(join(dir, 'none')))), missing);
  t.like(
    t.throws(() => runSync(walk(join(dir, 'file')))),
    { code: 'ENOTDIR', reason: 'path-not-directory' },
  );
  t.like(
    t.throws(() => runSync(walk(join(dir, 'link'), { followRoot: false }))),
    { reason: 'path-not-directory' },
  );
  t.is(runSync(walk(join(dir, 'link'))).length, 3);
  const at = openSync(dir, 'r');
  for (const name of ['none', 'file']) {
    const error = t.throws(() => runSync(walk(name, { at, atPath: dir })), { instanceOf: OverlayError });
    t.is(error?.path, join(dir, name));
    t.true(error?.message.includes(`'${join(dir, name)}'`), error?.message);
  }
  closeSync(at);
});

test('single entries are found at any depth, and a path fails at the name that is missing or no directory', (t) => {
  const dir = scratch(t);
  const path: string[] = [];
  for (let depth = 1; depth <= 11; depth++) {
    path.push(`d${depth}`);
    mkdirSync(join(dir, ...path));
    symlinkSync('.', join(dir, ...path, 'link'));
    writeFileSync(join(dir, ...path, 'file'), '');
  }
  const at = openSync(dir, 'r');
  const errorsOf = (paths: readonly string[]): number[] => {
    const records = runSync(examine(at, paths));
    return paths.map(() => {
      records.advance();
      return records.error;
    });
  };
  for (let depth = 0; depth <= path.length; depth++) {
    const above = path.slice(0, depth);
    const inside = (name: string): string[] =>
      Array.from({ length: 7 }, (_, i) => [...above, name, ...path.slice(0, i)].join('/'));
    // A missing one is asked for again: the finder remembers it.
    t.deepEqual(errorsOf([...inside('none'), ...inside('none')]), Array(14).fill(ENOENT), `depth ${depth}`);
    if (depth === 0) continue;
    t.deepEqual(errorsOf(inside('file')), [0, ...Array(6).fill(ENOTDIR)]);
    for (const error of errorsOf(inside('link')).slice(1)) t.true(error === ELOOP || error === ENOTDIR);
    t.deepEqual(errorsOf([above.join('/'), [...above, 'file'].join('/'), 'd1/file']), [0, 0, 0]);
    t.deepEqual(errorsOf([[...above, '..', 'd1'].join('/'), [...above, '', 'd1'].join('/')]), [EINVAL, EINVAL]);
  }
  closeSync(at);
});
