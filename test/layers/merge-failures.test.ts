/** Merges that cannot be finished: nothing is lost, the error says why, and a later call goes on. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  appendFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';
import { mountOverlaySync, OverlayError, type OverlayOptions } from 'overlayfs';
import { baseline, changes, check, type Layers, merge } from 'overlayfs/layers';
import { setAttribute } from '../support/attributes.js';
import {
  countDescriptors,
  fromAsync,
  makeTree,
  mountTest,
  native,
  scaled,
  scratch,
  withUserAttributes,
} from '../support/index.js';
import { look } from './look.js';

const MS_RDONLY = 1;
const MS_REMOUNT = 32;
const MS_BIND = 4096;

const tree = (count: number, size: number): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [`d${i % 5}/f${i}`, `${i}`.repeat(size)]));

for (const mode of ['copy', 'move'] as const) {
  mountTest(`a full file system: the rest stays in the upper, and a later call goes on (${mode})`, async (t) => {
    const dir = scratch(t);
    const at = (name: string): string => join(dir, name);
    // A file takes a page at least, of which the check before the merge knows nothing.
    makeTree(at('upper'), tree(100, 200));
    mkdirSync(at('small'));
    t.is(native.mount('small', at('small'), 'tmpfs', 0, 'size=128k'), 0);
    makeTree(at('small/target'), { 'd0/f0': 'old', 'd1/kept': 'kept' });
    const before = look(at('upper'));
    const descriptors = countDescriptors();
    const error = await t.throwsAsync(merge(at('upper'), { into: at('small/target'), move: mode === 'move' }), {
      instanceOf: OverlayError,
    });
    t.deepEqual([error?.reason, error?.code], ['out-of-space', 'ENOSPC']);
    t.regex(error?.message ?? '', /No room is left|no room is left/);
    t.true(error?.path?.startsWith(at('small/target')));
    t.is(countDescriptors(), descriptors);
    t.deepEqual(look(at('upper')), before);
    t.is(readFileSync(at('small/target/d1/kept'), 'utf8'), 'kept');
    t.is(native.mount('small', at('small'), 'tmpfs', MS_REMOUNT, 'size=10m'), 0);
    await merge(at('upper'), { into: at('small/target'), move: mode === 'move' });
    for (const [path, content] of Object.entries(tree(100, 200))) {
      t.is(readFileSync(join(at('small/target'), path), 'utf8'), content);
    }
    t.is(readdirSync(at('upper')).length, mode === 'move' ? 0 : 5);
    t.deepEqual(readdirSync(at('small/target')).sort(), ['d0', 'd1', 'd2', 'd3', 'd4']);
  });
}

/** Mounts a new file system of an image at `disk`. */
function mountImage(dir: string, type: string, size: string): string {
  const [image, disk] = [join(dir, 'image'), join(dir, 'disk')];
  mkdirSync(disk);
  execFileSync('truncate', ['-s', size, image]);
  execFileSync(`mkfs.${type}`, ['-q', image]);
  execFileSync('mount', ['-o', 'loop', image, disk]);
  return disk;
}

mountTest('a merge by move copies where projects forbid renames (xfs)', { needs: 'mkfs.xfs' }, async (t) => {
  const disk = mountImage(scratch(t), 'xfs', '320M');
  const at = (name: string): string => join(disk, name);
  makeTree(disk, { 'upper/a/b': 'new', 'upper/c': 'c', 'upper/new/d': 'd', 'target/a/b': 'old', 'target/a/kept': '' });
  execFileSync('mknod', [at('upper/gone'), 'c', '0', '0']);
  makeTree(disk, { 'target/gone/x': '' });
  execFileSync('chattr', ['-p', '7', '+P', at('target')]);
  const { entries, deleted } = await merge(at('upper'), { into: at('target'), move: true });
  t.deepEqual([entries, deleted], [6, 1]);
  t.deepEqual(
    look(at('target')).map(({ path, content }) => [path, content]),
    [
      ['', ''],
      ['a', ''],
      ['a/b', 'new'],
      ['a/kept', ''],
      ['c', 'c'],
      ['new', ''],
      ['new/d', 'd'],
    ],
  );
  t.deepEqual(readdirSync(at('upper')), []);
  makeTree(disk, { 'upper/a/b': 'newer' });
  execFileSync('chattr', ['-p', '8', '+P', at('target/a')]);
  const error = await t.throwsAsync(merge(at('upper'), { into: at('target') }), { instanceOf: OverlayError });
  t.is(error?.reason, 'permission-denied');
  t.regex(error?.message ?? '', /project id/);
  t.is(readFileSync(at('target/a/b'), 'utf8'), 'new');
});

mountTest('a merge by copy clones files where the file system can (xfs)', { needs: 'mkfs.xfs' }, async (t) => {
  const disk = mountImage(scratch(t), 'xfs', '320M');
  makeTree(disk, { 'target/': '', 'upper/': '' });
  writeFileSync(join(disk, 'upper/large'), Buffer.alloc(50_000_000, 1));
  execFileSync('sync', ['-f', disk]);
  const free = statfsSync(disk).bfree;
  const { bytes } = await merge(join(disk, 'upper'), { into: join(disk, 'target') });
  execFileSync('sync', ['-f', disk]);
  t.is(bytes, 50_000_000);
  const { bfree, bsize } = statfsSync(disk);
  t.true((free - bfree) * bsize < 5_000_000);
  t.true(readFileSync(join(disk, 'target/large')).equals(Buffer.alloc(50_000_000, 1)));
});

mountTest(
  'a quota: the rest stays in the upper, and a later call goes on',
  { needs: 'mkfs.btrfs with quotas' },
  async (t) => {
    const disk = mountImage(scratch(t), 'btrfs', '256M');
    const at = (name: string): string => join(disk, name);
    const btrfs = (...args: string[]): unknown => execFileSync('btrfs', args, { stdio: 'pipe' });
    btrfs('quota', 'enable', disk);
    btrfs('subvolume', 'create', at('target'));
    makeTree(at('target'), { 'd0/f0': 'old' });
    mkdirSync(at('upper'));
    for (let i = 0; i < 40; i++) writeFileSync(at(`upper/f${i}`), randomBytes(200_000));
    const before = look(at('upper'));
    btrfs('quota', 'rescan', '-w', disk);
    btrfs('qgroup', 'limit', '4M', at('target'));
    const outside = at('upper');
    // Clones would take no room of the quota's own.
    const source = join(disk, '../upper');
    execFileSync('cp', ['-a', outside, source]);
    const error = await t.throwsAsync(merge(source, { into: at('target'), move: true }), {
      instanceOf: OverlayError,
    });
    t.deepEqual([error?.reason, error?.code], ['out-of-space', 'EDQUOT']);
    t.regex(error?.message ?? '', /quota/);
    t.deepEqual(look(source), before);
    t.is(readFileSync(at('target/d0/f0'), 'utf8'), 'old');
    btrfs('qgroup', 'limit', 'none', at('target'));
    await merge(source, { into: at('target'), move: true });
    t.deepEqual(readdirSync(source), []);
    for (let i = 0; i < 40; i++) {
      t.true(readFileSync(at(`target/f${i}`)).equals(readFileSync(at(`upper/f${i}`))));
    }
  },
);

mountTest('a read-only directory, a refused attribute, bad arguments', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, {
    'upper/a': 'a',
    'upper/b': 'b',
    'upper/c': 'c',
    'readonly/x': '',
    'target/': '',
    'bare/': '',
    file: '',
  });
  setAttribute(at('upper/b'), 'user.comment', 'kept');
  t.is(native.mount(at('readonly'), at('readonly'), '', MS_BIND, ''), 0);
  t.is(native.mount('', at('readonly'), '', MS_BIND | MS_REMOUNT | MS_RDONLY, ''), 0);
  // ramfs does not support user.* attributes.
  t.is(native.mount('bare', at('bare'), 'ramfs', 0, ''), 0);
  const reasonOf = async (upper: string, target: string): Promise<unknown> =>
    (await t.throwsAsync(merge(at(upper), { into: at(target) }), { instanceOf: OverlayError }))?.reason;
  t.is(await reasonOf('upper', 'readonly'), 'read-only');
  t.is(await reasonOf('none', 'target'), 'path-missing');
  t.is(await reasonOf('file', 'target'), 'path-not-directory');
  t.is(await reasonOf('upper', 'upper'), 'layer-twice');
  mkdirSync(at('upper/inside'));
  t.is(await reasonOf('upper', 'upper/inside'), 'layers-overlap');
  rmSync(at('upper/inside'), { recursive: true });
  const error = await t.throwsAsync(merge(at('upper'), { into: at('bare'), move: true }), {
    instanceOf: OverlayError,
  });
  t.is(error?.reason, 'xattr-denied');
  t.regex(error?.message ?? '', /user\.comment of '.*\/b' cannot be set.*still in/);
  t.deepEqual(readdirSync(at('upper')), ['a', 'b', 'c']);
  t.false(existsSync(at('bare/b')));
  await t.throwsAsync(merge(at('upper'), { into: at('target'), move: 'yes' as never }), {
    instanceOf: TypeError,
  });
  await t.throwsAsync(merge(at('upper'), { into: at('target'), moves: true } as never), { message: /"mode"|move/ });
  await t.throwsAsync(merge(at('upper'), { into: at('target'), signal: AbortSignal.abort() }), { name: 'AbortError' });
  t.deepEqual(readdirSync(at('target')), []);
});

const swaps: readonly (readonly [change: string, make: (merged: string) => void, options?: Partial<OverlayOptions>])[] =
  [
    ['a deleted file', (merged) => rmSync(join(merged, 'f'))],
    ['a deleted directory', (merged) => rmSync(join(merged, 'd'), { recursive: true })],
    ['a changed file', (merged) => appendFileSync(join(merged, 'f'), 'more')],
    ['a change deep below', (merged) => appendFileSync(join(merged, 'd/e/x'), 'more')],
    ['a deletion deep below', (merged) => rmSync(join(merged, 'd/e/x'))],
    ['a changed file, userxattr', (merged) => appendFileSync(join(merged, 'f'), 'more'), { userxattr: true }],
    ['a change beside new files', (merged) => makeTree(merged, { new: '', f: 'other', 'd/e/new': '' })],
    ['a name of bytes that are no UTF-8', (merged) => rmSync(Buffer.from(`${merged}/b\xff`, 'latin1'))],
  ];

mountTest('a merge whose two directories are swapped is refused before it writes', async (t) => {
  for (const [change, make, options] of swaps) {
    const dir = scratch(t, options?.userxattr ? withUserAttributes() : 'tmpfs');
    const at = (name: string): string => join(dir, name);
    makeTree(dir, { 'base/f': 'f', 'base/d/e/x': 'x', 'merged/': '' });
    writeFileSync(Buffer.from(`${dir}/base/b\xff`, 'latin1'), '');
    const mount = mountOverlaySync({
      lowerdir: at('base'),
      upperdir: at('upper'),
      workdir: at('work'),
      target: at('merged'),
      create: true,
      ...options,
    });
    make(at('merged'));
    const shown = look(at('merged'));
    mount.unmountSync();
    const before = [look(at('base')), look(at('upper'))];
    for (const more of [{}, { move: true }, { dryRun: true }, { root: true }] as const) {
      const error = await t.throwsAsync(merge(at('base'), { into: at('upper'), ...more }), {
        instanceOf: OverlayError,
      });
      t.is(error?.reason, 'layers-swapped', change);
      t.regex(error?.hint ?? '', /unmarked: true/);
    }
    t.deepEqual([look(at('base')), look(at('upper'))], before, change);
    // The other way round it says nothing.
    execFileSync('cp', ['-a', at('base'), at('copy')]);
    await merge(at('upper'), { into: at('copy'), root: true });
    t.deepEqual(look(at('copy')), shown, change);
    // The caller means it.
    await merge(at('base'), { into: at('upper'), unmarked: true });
    t.is(readFileSync(at('upper/f'), 'utf8'), 'f', change);
  }
});

mountTest('a merge into a directory with marks is none that is swapped', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'new/new': '', 'new/d/new': '', 'base/f': '', 'other/f': 'f', 'work/': '', 'merged/': '' });
  makeTree(dir, { 'empty/': '', 'upper/d/': '' });
  execFileSync('mknod', [at('upper/f'), 'c', '0', '0']);
  setAttribute(at('upper/d'), 'trusted.overlay.opaque', 'y');
  const since = await baseline(at('upper'));
  const again = (): string => {
    execFileSync('cp', ['-a', at('upper'), at('copy')]);
    t.teardown(() => rmSync(at('copy'), { recursive: true, force: true }));
    return at('copy');
  };
  const merges = async (from: Layers, name: string): Promise<void> => {
    await t.notThrowsAsync(merge(from, { into: again() }), name);
    rmSync(at('copy'), { recursive: true });
  };
  await merges(at('new'), 'entries that the directory does not mark');
  await merges(at('empty'), 'nothing');
  await merges({ options: { lowerdir: at('base'), upperdir: at('other') } }, 'the upper of a mount');
  await t.throwsAsync(merge(at('other'), { into: again() }), { message: /layers-swapped|looks like an upper/ });
  setAttribute(at('other'), 'trusted.overlay.uuid', '0123456789abcdef');
  await t.notThrowsAsync(merge(at('other'), { into: at('copy') }), 'an upper whose root has a mark');
  await t.notThrowsAsync(merge(at('base'), { into: at('upper'), since }), 'a directory with a baseline');
});

mountTest('a file that grows while it is copied is an error, or is copied as it was', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'upper/log': 'x'.repeat(2_000_000), 'target/': '' });
  let isOver = false;
  const writer = (async () => {
    while (!isOver) {
      appendFileSync(at('upper/log'), 'more');
      await new Promise(setImmediate);
    }
  })();
  for (let i = 0; i < 20; i++) {
    try {
      await merge(at('upper'), { into: at('target') });
    } catch (error) {
      t.is((error as OverlayError).reason, 'layer-changed');
    }
  }
  isOver = true;
  await writer;
  await merge(at('upper'), { into: at('target') });
  t.is(readFileSync(at('target/log'), 'utf8'), readFileSync(at('upper/log'), 'utf8'));
});

const swap = fileURLToPath(new URL('swap.js', import.meta.url));

for (const side of ['upper', 'target'] as const) {
  mountTest(`a directory of the ${side} that becomes a link to elsewhere leads nowhere`, async (t) => {
    const dir = scratch(t);
    const at = (name: string): string => join(dir, name);
    makeTree(dir, { 'outside/d/f0': 'outside', 'outside/d/f5': 'outside', 'outside/d/kept': 'outside' });
    makeTree(at('target'), { 'd0/f0': 'old', 'd0/f9': 'old' });
    makeTree(at('upper'), tree(10, 1));
    const outside = look(at('outside'));
    mkdirSync(at('links'));
    symlinkSync(at('outside/d'), at('links/link'));
    const child = spawn(process.execPath, [swap, at(`${side}/d0`), at('links/link'), at('outside/d')], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    t.teardown(() => child.kill('SIGKILL'));
    await once(child.stdout, 'data');
    // OVERLAYFS_TEST_SCALE=4 runs 10,000 rounds.
    const rounds = scaled(2500);
    let failures = 0;
    for (let i = 0; i < rounds; i++) {
      makeTree(at('upper/d1'), { f1: 'new' });
      // The upper's own may lead elsewhere by now.
      if (side === 'target') makeTree(at('upper/d0'), { f0: 'new', f5: 'new' });
      try {
        await merge(at('upper'), { into: at('target'), move: i % 2 !== 0 });
      } catch (error) {
        if (!(error instanceof OverlayError)) throw error;
        failures++;
      }
    }
    child.kill('SIGKILL');
    await once(child, 'close');
    t.log(`${failures} of ${rounds} merges met a change`);
    t.deepEqual(look(at('outside')), outside);
  });
}

mountTest('a merge into a mounted overlay goes into its upper', async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'base/d/old': 'old', 'base/gone': '', 'upper/': '', 'work/': '', 'merged/': '' });
  // Without redirect_dir, the overlay does not exchange a directory of its lower layer.
  makeTree(dir, { 'base/directory/old': 'old', 'own/directory': 'file' });
  makeTree(dir, { 'own/d/new': 'new', 'own/e/deep/file': 'x' });
  execFileSync('mknod', [at('own/gone'), 'c', '0', '0']);
  const paths = { lowerdir: at('base'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
  const mount = mountOverlaySync(paths);
  await merge(at('own'), { into: at('merged'), move: true });
  t.deepEqual(readdirSync(at('merged')).sort(), ['d', 'directory', 'e']);
  t.is(readFileSync(at('merged/directory'), 'utf8'), 'file');
  t.deepEqual(readdirSync(at('merged/d')).sort(), ['new', 'old']);
  t.is(readFileSync(at('merged/e/deep/file'), 'utf8'), 'x');
  t.deepEqual(readdirSync(at('own')), []);
  mount.unmountSync();
  t.deepEqual(readdirSync(at('base')).sort(), ['d', 'directory', 'gone']);
});

const program = fileURLToPath(new URL('merge-and-die.js', import.meta.url));

/** A merge by move in which a system call fails when it comes to a name, as no check can foresee. Returns its error. */
function interruptMove(at: (name: string) => string, call: string, name: string): string {
  const inject = ['-P', name, '-e', `trace=${call}`, '-e', `inject=${call}:error=EIO`];
  const command = [
    '-f',
    '-qq',
    '-o',
    '/dev/null',
    ...inject,
    process.execPath,
    program,
    at('upper'),
    at('target'),
    'move',
  ];
  return spawnSync('strace', command, { encoding: 'utf8' }).stderr;
}

/** A merge by move that copies, and then cannot empty the upper. */
function interruptRemoval(t: ExecutionContext, at: (name: string) => string): void {
  // Files on another mount are copied.
  native.mount(at('target'), at('target'), '', MS_BIND, '');
  t.regex(interruptMove(at, 'unlinkat', 'z'), /I\/O error/);
}

mountTest(
  'a move that goes on does not remove what was written to the upper meanwhile',
  { needs: 'strace' },
  async (t) => {
    const dir = scratch(t, 'disk');
    const at = (name: string): string => join(dir, name);
    makeTree(dir, { 'upper/a': 'a', 'upper/z/inside': 'z', 'target/': '' });
    interruptRemoval(t, at);
    t.is(readFileSync(at('target/z/inside'), 'utf8'), 'z');
    writeFileSync(at('upper/z/new'), 'new');
    const error = await t.throwsAsync(merge(at('upper'), { into: at('target'), move: true }), {
      instanceOf: OverlayError,
    });
    t.deepEqual([error?.reason, error?.code], ['layer-changed', 'EEXIST']);
    t.true(error?.message.includes(`'${at('upper/z/new')}' changed after`), error?.message);
    t.is(readFileSync(at('upper/z/new'), 'utf8'), 'new');
    rmSync(at('upper/z/new'));
    await merge(at('upper'), { into: at('target'), move: true });
    t.deepEqual(readdirSync(at('upper')), []);
    t.deepEqual(readdirSync(at('target')), ['a', 'z']);
  },
);

mountTest('a merge that goes on refuses a directory that was renamed meanwhile', { needs: 'strace' }, async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'upper/a': 'a', 'upper/z/inside': 'z', 'target/old/file': 'kept' });
  interruptRemoval(t, at);
  mkdirSync(at('upper/renamed'));
  setAttribute(at('upper/renamed'), 'trusted.overlay.redirect', '/old');
  const error = await t.throwsAsync(merge(at('upper'), { into: at('target'), move: true }), {
    instanceOf: OverlayError,
  });
  t.is(error?.reason, 'layer-changed');
  t.true(error?.message.includes(`'${at('upper/renamed')}'`), error?.message);
  t.is(readFileSync(at('target/old/file'), 'utf8'), 'kept');
});

/** A renamed directory into which a merge by move has brought some of its files before it ends. */
function stopMoveInClone(t: ExecutionContext, at: (name: string) => string): void {
  makeTree(at('target'), { 'old/kept': 'kept' });
  for (let i = 0; i < 4; i++) makeTree(at('upper/new'), { [`f${i}`]: `${i}` });
  setAttribute(at('upper/new'), 'trusted.overlay.redirect', '/old');
  utimesSync(at('upper/new'), 5, 5);
  t.regex(interruptMove(at, 'renameat2', 'f3'), /4 of 5 entries of .* had been processed/);
  t.deepEqual(readdirSync(at('upper/new')), ['f3']);
}

mountTest('a merge of another upper does not remove what an earlier one has moved', { needs: 'strace' }, async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  stopMoveInClone(t, at);
  makeTree(at('other'), { b: 'b' });
  for (const options of [{}, { move: true }, { dryRun: true }] as const) {
    const error = await t.throwsAsync(merge(at('other'), { into: at('target'), ...options }), {
      instanceOf: OverlayError,
    });
    t.is(error?.reason, 'layer-in-use');
    t.true(error?.message.includes(`an earlier merge of '${at('upper')}'`), error?.message);
    t.deepEqual(readdirSync(at('other')), ['b']);
  }
  await merge(at('upper'), { into: at('target'), move: true });
  t.deepEqual(readdirSync(at('target')), ['new', 'old']);
  t.deepEqual(readdirSync(at('target/new')), ['f0', 'f1', 'f2', 'f3', 'kept']);
  await merge(at('other'), { into: at('target') });
  t.deepEqual(readdirSync(at('target')), ['b', 'new', 'old']);
});

mountTest('a merge by move can be finished by a copy', { needs: 'strace' }, async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  stopMoveInClone(t, at);
  await merge(at('upper'), { into: at('target') });
  t.deepEqual(readdirSync(at('target/new')), ['f0', 'f1', 'f2', 'f3', 'kept']);
  t.is(statSync(at('target/new')).mtimeMs, 5000);
  t.deepEqual(readdirSync(at('upper/new')), ['f3']);
});

mountTest('a copy gives the time of an upper that a move had emptied when it was killed', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'upper/': '', 'target/': '' });
  setAttribute(at('upper'), 'trusted.overlay.merge', '5.0');
  await merge(at('upper'), { into: at('target'), root: true });
  t.is(statSync(at('target')).mtimeMs, 5000);
});

mountTest('a merge refuses a directory of others that has the name of its own', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'upper/a': 'a', 'one/.overlayfs-merge/file': 'kept', 'two/.overlayfs-merge': 'kept' });
  for (const target of ['one', 'two']) {
    const before = look(at(target));
    const error = await t.throwsAsync(merge(at('upper'), { into: at(target) }), { instanceOf: OverlayError });
    t.is(error?.reason, 'path-exists');
    t.deepEqual(look(at(target)), before);
  }
  // A merge that is killed before its first change leaves these.
  makeTree(at('three/.overlayfs-merge'), { 'clones.new/12/f': '', new: '' });
  await merge(at('upper'), { into: at('three') });
  t.deepEqual(readdirSync(at('three')), ['a']);
});

mountTest('a redirect that the kernel refuses, or that leads to another type, leads nowhere', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'lower/a/b/f': 'x', 'lower/self/s': '', 'lower/file': '', 'upper/self/z': '', 'work/': '' });
  mkdirSync(at('merged'));
  symlinkSync(at('lower/a'), at('lower/link'));
  const redirects = ['/', '//a', '/a/', '/a//b', 'a/b', '.', '..', '/..', '/a/..', '/./a', '/link', '/file', '/none'];
  for (const redirect of redirects) {
    setAttribute(at('upper/self'), 'trusted.overlay.redirect', redirect);
    const mount = mountOverlaySync({
      lowerdir: at('lower'),
      upperdir: at('upper'),
      workdir: at('work'),
      target: at('merged'),
      redirectDir: 'on',
    });
    let names: string[] = [];
    try {
      names = readdirSync(at('merged/self'));
    } catch {
      // The kernel refuses the redirect.
    }
    mount.unmountSync();
    t.true(names.length === 0 || names.join() === 'z', `${redirect}: ${names}`);
    const before = look(at('lower'));
    for (const dryRun of [true, false]) {
      const error = await t.throwsAsync(merge(at('upper'), { into: at('lower'), dryRun }), {
        instanceOf: OverlayError,
      });
      t.is(error?.reason, 'path-missing', redirect);
    }
    t.deepEqual(look(at('lower')), before, redirect);
    const found = (await fromAsync(changes({ upperdir: at('upper'), lowerdir: at('lower') }))).map(({ path, from }) => [
      path,
      from,
    ]);
    t.deepEqual(
      found.slice(-2),
      [
        ['self', undefined],
        ['self/z', undefined],
      ],
      redirect,
    );
    const findings = await check({ upperdir: at('upper'), lowerdir: at('lower') });
    t.deepEqual(
      findings.map(({ reason }) => reason),
      ['redirect-to-nowhere'],
      redirect,
    );
  }
});

mountTest('an upper inside the directory merges unless it would take its own place', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  for (const entry of ['whiteout', 'file', 'opaque', 'itself', 'whiteout above'] as const) {
    makeTree(dir, { 'base/.own/upper/a': 'new', 'base/a': 'old', 'base/.own/kept': '' });
    const upper = at('base/.own/upper');
    makeTree(join(upper, '.own'), { b: '' });
    if (entry === 'whiteout') execFileSync('mknod', [join(upper, '.own/upper'), 'c', '0', '0']);
    else if (entry === 'file') writeFileSync(join(upper, '.own/upper'), '');
    else if (entry === 'opaque') setAttribute(join(upper, '.own'), 'trusted.overlay.opaque', 'y');
    else if (entry === 'itself') mkdirSync(join(upper, '.own/upper'));
    else {
      rmSync(join(upper, '.own'), { recursive: true });
      execFileSync('mknod', [join(upper, '.own'), 'c', '0', '0']);
    }
    const before = look(at('base'));
    for (const mode of ['copy', 'move'] as const) {
      const error = await t.throwsAsync(merge(upper, { into: at('base'), move: mode === 'move' }), {
        instanceOf: OverlayError,
      });
      t.is(error?.reason, 'layers-overlap', entry);
      t.deepEqual(look(at('base')), before, entry);
    }
    rmSync(at('base'), { recursive: true });
  }
  makeTree(dir, { 'base/.own/upper/a': 'new', 'base/.own/upper/.own/b': '', 'base/a': 'old', 'base/.own/kept': '' });
  await merge(at('base/.own/upper'), { into: at('base'), move: true });
  t.deepEqual(readdirSync(at('base/.own')), ['b', 'kept', 'upper']);
  t.is(readFileSync(at('base/a'), 'utf8'), 'new');
});

mountTest('an error names the place of an entry, not that in the staging directory', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'upper/new/deep/file': 'x', 'target/': '' });
  setAttribute(at('upper/new/deep/file'), 'user.comment', 'x');
  makeTree(at('ram'), {});
  t.is(native.mount('ram', at('ram'), 'ramfs', 0, ''), 0);
  const error = await t.throwsAsync(merge(at('upper'), { into: at('ram') }), { instanceOf: OverlayError });
  t.is(error?.reason, 'xattr-denied');
  t.is(error?.path, at('ram/new/deep/file'));
  t.regex(error?.message ?? '', /2 of 3 entries/);
});

mountTest('a copy does not finish a move that has separated hard links', { needs: 'strace' }, async (t) => {
  const at = (name: string) => join(scratchOf, name);
  const scratchOf = scratch(t, 'disk');
  makeTree(scratchOf, { 'upper/a': 'linked', 'upper/m': 'stays', 'target/': '' });
  linkSync(at('upper/a'), at('upper/z'));
  t.regex(interruptMove(at, 'renameat2', 'm'), /I\/O error/);
  t.deepEqual(readdirSync(at('upper')), ['m', 'z']);
  const refused = await t.throwsAsync(merge(at('upper'), { into: at('target') }), { instanceOf: OverlayError });
  t.like(refused, { reason: 'layers-incomplete' });
  t.false(existsSync(at('target/z')));
  await merge(at('upper'), { into: at('target'), move: true });
  t.is(statSync(at('target/a')).ino, statSync(at('target/z')).ino);
});

mountTest(
  'a merge changes a directory with a long list of attributes',
  { needs: 'user xattrs on tmpfs' },
  async (t) => {
    const dir = scratch(t);
    const at = (name: string): string => join(dir, name);
    makeTree(dir, { 'upper/d/': '', 'target/d/': '' });
    for (let i = 0; i < 100; i++) setAttribute(at('target/d'), `user.${i}-${'n'.repeat(230)}`, '');
    setAttribute(at('upper/d'), 'user.own', 'value');
    await merge(at('upper'), { into: at('target') });
    t.is(look(at('target')).find(({ path }) => path === 'd')?.['attributes'], 'user.own=value');
  },
);
