/** Tests the functions that read layers without a mount, with mounts as the judge. */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import test from 'ava';
import { makeOpaqueSync, mountOverlaySync, OverlayError, whiteoutSync } from 'overlayfs';
import { changes, check, formatChange, type LayerFault, lookup, merge, pack, remove, squash } from 'overlayfs/layers';
import {
  countDescriptors,
  eventually,
  fromAsync,
  generator,
  kernelTest,
  layers,
  makeTree,
  mountTest,
  scaled,
  scratch,
  setAttribute,
} from '../support/index.js';
import { changeTree, growTree, seeTree } from './random-tree.js';

// ------------------------------------------------------------------------------------------ which layer answers

/** An overlay of three layers in which each role occurs. */
function makeLayers(dir: string): { lowerdir: string[] } {
  makeTree(join(dir, 'base'), {
    file: 'base',
    gone: 'base',
    'd/a': 'base',
    'd/b': 'base',
    'o/a': 'base',
    'o/sub/x': 'base',
    'f/x': 'base',
    only: 'base',
  });
  makeTree(join(dir, 'middle'), { file: 'middle', 'd/a': 'middle', 'o/c': 'middle', f: 'middle' });
  makeTree(join(dir, 'upper'), { 'd/c': 'upper' });
  makeOpaqueSync(join(dir, 'middle/o'));
  whiteoutSync(join(dir, 'upper/gone'));
  return { lowerdir: ['upper', 'middle', 'base'].map((name) => join(dir, name)) };
}

mountTest('lookup says which layer answers, and what hides the others', async (t) => {
  const layers = makeLayers(scratch(t));
  const roles = async (path: string): Promise<string[]> =>
    (await lookup(layers, path)).layers.map(({ role, hiddenBy }) =>
      hiddenBy === undefined ? role : `${role} by ${hiddenBy.as} ${hiddenBy.path} of ${hiddenBy.layer}`,
    );
  t.deepEqual(await roles('file'), ['nothing', 'answers', 'hidden by file file of 1']);
  t.deepEqual(await roles('gone'), ['whiteout', 'nothing', 'hidden by whiteout gone of 0']);
  t.deepEqual(await roles('d'), ['answers', 'merged', 'merged']);
  t.deepEqual(await roles('d/a'), ['nothing', 'answers', 'hidden by file d/a of 1']);
  t.deepEqual(await roles('o'), ['nothing', 'answers', 'hidden by opaque o of 1']);
  t.deepEqual(await roles('o/sub/x'), ['nothing', 'nothing', 'hidden by opaque o of 1']);
  t.deepEqual(await roles('f/x'), ['nothing', 'nothing', 'hidden by file f of 1']);
  t.deepEqual(await roles('/only/'), ['nothing', 'nothing', 'answers']);
  t.deepEqual(await roles('none'), ['nothing', 'nothing', 'nothing']);
  t.deepEqual(await roles('.'), ['answers', 'merged', 'merged']);
  t.like(await lookup(layers, 'gone'), { layer: undefined, type: undefined });
  t.like(await lookup(layers, 'd'), { layer: 0, type: 'directory' });
  const [first] = (await lookup(layers, 'file', { encoding: 'buffer' })).layers;
  t.deepEqual(first?.layer, Buffer.from(layers.lowerdir[0] ?? ''));
});

mountTest('lookup agrees with random overlays', async (t) => {
  for (let seed = 1; seed <= scaled(scaled(50), 2); seed++) {
    const random = generator(seed);
    const dir = scratch(t);
    const target = join(dir, 'merged');
    for (const name of ['base', 'merged']) mkdirSync(join(dir, name));
    growTree(join(dir, 'base'), random, 150);
    let lowerdir = [join(dir, 'base')];
    for (const level of [1, 2, 3]) {
      const [upperdir, workdir] = [join(dir, `upper${level}`), join(dir, `work${level}`)];
      for (const path of [upperdir, workdir]) mkdirSync(path);
      const mount = mountOverlaySync({ lowerdir, upperdir, workdir, target, redirectDir: 'on', metacopy: true });
      changeTree(target, random, 100);
      const seen = seeTree(target);
      const layers = [upperdir, ...lowerdir];
      const all = new Set([...seen.keys(), ...layers.flatMap((layer) => [...seeTree(layer).keys()])]);
      for (const path of all) {
        const found = await lookup(mount, Buffer.from(path === '' ? '.' : path, 'latin1'));
        t.is(found.type !== undefined, seen.has(path), `seed ${seed}, level ${level}: ${path}`);
        t.is(found.layers.filter(({ role }) => role === 'answers').length, seen.has(path) ? 1 : 0);
      }
      mount.unmountSync();
      // The check finds no fault in a layer that the kernel has written.
      t.deepEqual(await check({ upperdir, lowerdir }), [], `seed ${seed}, level ${level}`);
      lowerdir = layers;
    }
  }
});

// ------------------------------------------------------------------------------------------ checks

/** The faults that a test plants in a layer, each with the reason to find. */
const planted: readonly {
  readonly reason: LayerFault;
  readonly path: string;
  readonly lowest?: boolean;
  plant(layer: string): void;
}[] = [
  { reason: 'whiteout-in-lowest', path: 'w', lowest: true, plant: (layer) => whiteoutSync(join(layer, 'w')) },
  { reason: 'whiteout-of-nothing', path: 'w', plant: (layer) => whiteoutSync(join(layer, 'w')) },
  {
    reason: 'whiteout-in-opaque',
    path: 'o/a',
    plant: (layer) => {
      mkdirSync(join(layer, 'o'));
      makeOpaqueSync(join(layer, 'o'));
      whiteoutSync(join(layer, 'o/a'));
    },
  },
  {
    reason: 'whiteout-shows',
    path: 'file',
    plant: (layer) => {
      writeFileSync(join(layer, 'file'), '');
      setAttribute(join(layer, 'file'), 'trusted.overlay.whiteout', 'y');
    },
  },
  {
    reason: 'redirect-to-nowhere',
    path: 'moved',
    plant: (layer) => {
      mkdirSync(join(layer, 'moved'));
      setAttribute(join(layer, 'moved'), 'trusted.overlay.redirect', '/nowhere');
    },
  },
  {
    reason: 'metacopy-without-data',
    path: 'meta',
    plant: (layer) => {
      writeFileSync(join(layer, 'meta'), 'x');
      setAttribute(join(layer, 'meta'), 'trusted.overlay.metacopy', '');
    },
  },
  {
    reason: 'stray-mark',
    path: 'file',
    plant: (layer) => {
      writeFileSync(join(layer, 'file'), 'x');
      setAttribute(join(layer, 'file'), 'trusted.overlay.opaque', 'y');
    },
  },
  {
    reason: 'stray-mark',
    path: '.',
    plant: (layer) => setAttribute(layer, 'trusted.overlay.opaque', 'y'),
  },
  {
    reason: 'stray-mark',
    path: 'd',
    plant: (layer) => {
      mkdirSync(join(layer, 'd'));
      setAttribute(join(layer, 'd'), 'trusted.overlay.opaque', 'Y');
    },
  },
  {
    reason: 'unknown-mark',
    path: 'd',
    plant: (layer) => {
      mkdirSync(join(layer, 'd'));
      setAttribute(join(layer, 'd'), 'trusted.overlay.opake', 'y');
    },
  },
  { reason: 'whiteout-name', path: 'd/.wh.file', plant: (layer) => makeTree(layer, { 'd/.wh.file': '' }) },
  { reason: 'leftover', path: '#1a', plant: (layer) => whiteoutSync(join(layer, '#1a')) },
  {
    reason: 'leftover',
    path: 'd',
    plant: (layer) => {
      mkdirSync(join(layer, 'd'));
      setAttribute(join(layer, 'd'), 'trusted.overlay.upper', 'x');
    },
  },
];

mountTest('check finds each planted fault, and nothing else', async (t) => {
  for (const { reason, path, lowest, plant } of planted) {
    const dir = scratch(t);
    makeTree(dir, { 'base/file': 'base', 'base/d/x': '', 'upper/': '' });
    const upper = join(dir, 'upper');
    const lowerdir = lowest ? [] : [join(dir, 'base')];
    t.deepEqual(await check({ upperdir: upper, lowerdir }), []);
    plant(upper);
    const findings = await check({ upperdir: upper, lowerdir });
    t.deepEqual(
      findings.map((finding) => [finding.reason, finding.path]),
      [[reason, path]],
    );
    t.true(findings.every(({ what, remedy }) => what.length > 10 && remedy.length > 5));
    t.deepEqual(await check({ upperdir: upper, lowerdir }), findings);
  }
});

mountTest('check says what is mounted inside', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'layer/inner/': '', 'other/file': '' });
  execFileSync('mount', ['--bind', join(dir, 'other'), join(dir, 'layer/inner')]);
  t.like(await check(join(dir, 'layer')), [{ path: 'inner', reason: 'other-mount' }]);
});

// ------------------------------------------------------------------------------------------ changes, one by one

const lines = async (...args: Parameters<typeof changes>): Promise<string[]> =>
  (await fromAsync(changes(...args))).map(formatChange);

mountTest('each kind of change has its line', async (t) => {
  const dir = scratch(t);
  makeTree(dir, {
    'l/keep': 'same',
    'l/gone/x': '',
    'l/type': '',
    'l/old/x': 'x',
    'l/dir/a': '',
    'u/': '',
    'w/': '',
    'm/': '',
  });
  const [lowerdir, upperdir] = [join(dir, 'l'), join(dir, 'u')];
  const target = join(dir, 'm');
  const mount = mountOverlaySync({ lowerdir, upperdir, workdir: join(dir, 'w'), target, redirectDir: 'on' });
  rmSync(join(target, 'gone'), { recursive: true });
  rmSync(join(target, 'type'));
  mkdirSync(join(target, 'type'));
  execFileSync('mv', [join(target, 'old'), join(target, 'new')]);
  rmSync(join(target, 'dir'), { recursive: true });
  mkdirSync(join(target, 'dir'));
  writeFileSync(join(target, 'a\nb'), '');
  execFileSync('chmod', ['600', join(target, 'keep')]);
  const all = [
    'M ./ (times)',
    'A a\\nb',
    'R dir/',
    'D gone/',
    'M keep (mode)',
    'A new/ <- old/',
    'A new/x',
    'D old/',
    'R type/',
  ];
  t.deepEqual(await lines(mount), all);
  mount.unmountSync();
  t.deepEqual(await lines({ upperdir, lowerdir }), all);
  const without = ['C ./', 'C a\\nb', 'R dir/', 'D gone', 'C keep', 'C new/ <- old/', 'D old', 'R type/'];
  t.deepEqual(await lines(upperdir), without);
});

mountTest('a copy that has not changed is shown when it is asked for', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'l/file': 'same', 'u/': '', 'w/': '', 'm/': '' });
  const [lowerdir, upperdir, target] = [join(dir, 'l'), join(dir, 'u'), join(dir, 'm')];
  const mount = mountOverlaySync({ lowerdir, upperdir, workdir: join(dir, 'w'), target });
  execFileSync('touch', ['-r', join(lowerdir, 'file'), join(target, 'file')]);
  t.deepEqual(
    (await lines(mount)).filter((line) => line.includes('file')),
    [],
  );
  t.deepEqual(
    (await lines(mount, { unchanged: true })).filter((line) => line.includes('file')),
    ['M file'],
  );
  writeFileSync(join(target, 'file'), 'same');
  t.deepEqual(
    (await lines(mount)).filter((line) => line.includes('file')),
    ['M file (content, times)'],
  );
  t.deepEqual(
    (await lines(mount, { content: true })).filter((line) => line.includes('file')),
    ['M file (times)'],
  );
  mount.unmountSync();
});

test('files of one size and time, of which none is a copy, are compared by their bytes', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'l/a': 'one', 'u/a': 'two', 'l/b': 'one', 'u/b': 'one' });
  for (const path of ['l/a', 'u/a', 'l/b', 'u/b', 'l', 'u'])
    execFileSync('touch', ['-d', '2001-01-01', join(dir, path)]);
  t.deepEqual(await lines({ upperdir: join(dir, 'u'), lowerdir: join(dir, 'l') }), ['M a (content)']);
});

mountTest('a loop that is left early closes all descriptors', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/': '', 'lower/d0/x': '' });
  for (let i = 0; i < 30; i++) for (let j = 0; j < 100; j++) makeTree(join(dir, 'upper'), { [`d${i}/f${j}`]: 'x' });
  const given = { upperdir: join(dir, 'upper'), lowerdir: join(dir, 'lower') };
  const before = countDescriptors();
  for await (const _ of changes(given)) break;
  for await (const { path } of changes(given)) if (path === 'd20/f5') break;
  const failing = changes({ upperdir: given.upperdir, lowerdir: [join(dir, 'lower'), join(dir, 'none')] });
  await t.throwsAsync(failing.next(), { message: /none/ });
  t.deepEqual(await failing.next(), { value: undefined, done: true });
  await eventually(t, () => countDescriptors() <= before);
  // Several calls at once come one after the other.
  const found = changes(given);
  const records = await Promise.all([found.next(), found.next(), found.next()]);
  t.deepEqual(
    records.map(({ value }) => value.path),
    ['.', 'd0', 'd0/f0'],
  );
  await found.return?.();
  t.deepEqual(await found.next(), { value: undefined, done: true });
});

test('an iterator that is dropped before its end is closed by garbage collection, with a warning', async (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'upper/a/b': 'x', 'lower/a/': '' });
  const before = countDescriptors();
  const warnings: string[] = [];
  const warned = ({ message }: Error) => warnings.push(message);
  process.on('warning', warned);
  t.teardown(() => process.off('warning', warned));
  const drop = async (): Promise<void> => {
    await changes({ upperdir: join(dir, 'upper'), lowerdir: join(dir, 'lower') }).next();
  };
  await drop();
  t.true(countDescriptors() >= before + 2);
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  await eventually(t, () => {
    collect();
    return countDescriptors() <= before;
  });
  t.is(warnings.filter((text) => text.includes('return()')).length, 1);
});

test('bad arguments are refused at once', async (t) => {
  const dir = scratch(t, 'disk');
  const call =
    (...args: unknown[]) =>
    () =>
      (changes as (...args: unknown[]) => unknown)(...args);
  const badType = { code: 'ERR_INVALID_ARG_TYPE' };
  t.throws(call(5), badType);
  t.throws(call(dir, { content: 1 }), badType);
  t.throws(call({ upperdir: dir, lowerdir: [7] }), { ...badType, message: /lowerdir\[0\]/ });
  t.throws(call(dir, { encoding: 'latin1' }), { code: 'ERR_INVALID_ARG_VALUE', message: /'utf8', 'buffer'/ });
  t.throws(call({ upperdir: dir, lower: dir }), { code: 'ERR_INVALID_ARG_VALUE', message: /lowerdir/ });
  t.throws(call({ options: { lowerdir: dir } }), { message: /upperdir/ });
  await t.throwsAsync(lookup({ lowerdir: [] }, 'a'), { message: /must name an upperdir or a lowerdir/ });
  await t.throwsAsync(lookup({ lowerdir: [dir] }, 'a/../b'), { message: /without "\.\."/ });
  await t.throwsAsync(fromAsync(changes(join(dir, 'none'))), { code: 'ENOENT', message: /none/ });
});

// ------------------------------------------------------------------------------------------ races

kernelTest('a layer that is swapped for links during the walk: nothing outside is seen', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'outside/secret/file': 'x', 'upper/': '', 'lower/': '' });
  for (let i = 0; i < 20; i++) makeTree(join(dir, 'upper'), { [`d${i}/e/f`]: 'x' });
  const swaps = `
    const fs = require('node:fs');
    const dir = process.argv[1];
    for (let i = 0; ; i = (i + 1) % 20) {
      const at = dir + '/upper/d' + i;
      try {
        fs.renameSync(at, dir + '/away');
        fs.symlinkSync(dir + '/outside', at);
        fs.unlinkSync(at);
        fs.renameSync(dir + '/away', at);
      } catch {}
    }`;
  const child = spawn(process.execPath, ['-e', swaps, dir], { stdio: 'ignore' });
  const upper = join(dir, 'upper');
  try {
    for (let i = 0; i < scaled(2000, 100); i++) {
      try {
        for await (const { path, type } of changes({ upperdir: upper, lowerdir: join(dir, 'lower') })) {
          if (/secret/.test(path)) t.fail(`${path} is outside`);
          if (type === 'directory') t.notRegex(path, /file/);
        }
      } catch (error) {
        const { reason } = error as { reason?: string };
        if (reason !== 'layer-changed') throw error;
      }
    }
  } finally {
    child.kill('SIGKILL');
  }
  t.pass();
});

// ------------------------------------------------------------------------------------------ merged mounts

mountTest('the path of a mounted overlay is refused as a layer, and its directory as a target is not', async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  makeTree(dir, { 'to/': '', 'removed/': '' });
  const mounted = mountOverlaySync(options);
  const { target, lowerdir } = options;
  writeFileSync(join(target, 'new'), 'new');
  const drain = async (source: AsyncIterable<unknown>) => {
    for await (const _ of source);
  };
  const calls: Record<string, () => unknown> = {
    changes: () => changes({ upperdir: target, lowerdir }).next(),
    lookup: () => lookup({ lowerdir: [target, lowerdir] }, 'new'),
    check: () => check({ upperdir: target, lowerdir }),
    merge: () => merge(target, { into: join(dir, 'to') }),
    squash: () => squash({ upperdir: [target, lowerdir] }, { into: join(dir, 'folded') }),
    'squash to plain': () => squash({ lowerdir: [target, lowerdir] }, { into: join(dir, 'folded'), plain: true }),
    pack: () => drain(pack({ upperdir: target, lowerdir })),
    makeOpaque: () => makeOpaqueSync(target),
    whiteout: () => whiteoutSync(join(target, 'new')),
  };
  for (const [name, call] of Object.entries(calls)) {
    const error = await t.throwsAsync(async () => call(), { instanceOf: OverlayError }, name);
    t.is(error?.reason, 'merged-mount', `${name}: ${error?.message}`);
  }
  t.is((await t.throwsAsync(remove(target), { instanceOf: OverlayError }))?.code, 'EBUSY');
  t.deepEqual(readdirSync(join(dir, 'to')), [], 'nothing is written');
  t.false(existsSync(join(dir, 'folded')));
  t.true(
    (await fromAsync(changes(mounted))).some(({ path }) => path === 'new'),
    'the mount itself is taken',
  );
  makeTree(dir, { 'upper2/added': '' });
  await merge(join(dir, 'upper2'), { into: target });
  t.true(existsSync(join(target, 'added')));
  mounted.unmountSync();
});
