/** Tests the functions that read layers without a mount, with mounts as the judge. */
import { execFileSync, spawn } from 'node:child_process';
import { linkSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import test from 'ava';
import { makeOpaqueSync, mountOverlaySync, whiteoutSync } from 'overlayfs';
import {
  changes,
  changesSync,
  diskUsage,
  diskUsageSync,
  formatChanges,
  type LayerFault,
  lookup,
  lookupSync,
  verifyLayer,
  verifyLayerSync,
} from 'overlayfs/layers';
import {
  countDescriptors,
  eventually,
  generator,
  kernelTest,
  makeTree,
  mountTest,
  scaled,
  scratch,
  setAttribute,
} from '../support/index.js';
import { changeTree, growTree, seeTree } from './random-tree.js';

// ------------------------------------------------------------------------------------------ space

kernelTest('diskUsage goes on when directories are removed meanwhile', async (t) => {
  const dir = scratch(t);
  const names = Array.from({ length: 300 }, (_, i) => join(dir, `${i}`));
  for (const name of names) mkdirSync(name);
  for (let round = 0; round < 20; round++) {
    let isDone = false;
    const usage = diskUsage(dir).finally(() => {
      isDone = true;
    });
    for (let i = 0; !isDone; i++) {
      const name = names[i % names.length] as string;
      rmSync(name, { recursive: true });
      mkdirSync(name);
      if (i % 10 === 0) await new Promise(setImmediate);
    }
    t.true((await usage).inodes >= 1);
  }
});

kernelTest('diskUsage counts what du counts', async (t) => {
  for (const kind of ['tmpfs', 'disk'] as const) {
    const dir = scratch(t, kind);
    changeTree(dir, generator(7), 300);
    const count = (...options: string[]): number =>
      Number(execFileSync('du', ['-s', '-x', ...options, dir], { encoding: 'utf8' }).split('\t')[0]);
    const expected = { bytes: count('-B1'), inodes: count('--inodes') };
    t.deepEqual(diskUsageSync(dir), expected);
    t.deepEqual(await diskUsage(dir), expected);
  }
});

test('diskUsage counts an inode once, and a sparse file by its blocks', (t) => {
  const dir = scratch(t, 'disk');
  const before = diskUsageSync(dir);
  writeFileSync(join(dir, 'file'), 'x'.repeat(10_000));
  const once = diskUsageSync(dir);
  linkSync(join(dir, 'file'), join(dir, 'link'));
  execFileSync('truncate', ['-s', '1G', join(dir, 'sparse')]);
  t.is(once.inodes, before.inodes + 1);
  t.is(diskUsageSync(dir).inodes, before.inodes + 2);
  t.true(diskUsageSync(dir).bytes < once.bytes + 2 ** 20);
});

// ------------------------------------------------------------------------------------------ which layer answers

/** An overlay of three layers in which each role occurs. */
function makeLayers(dir: string): string[] {
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
  return ['upper', 'middle', 'base'].map((name) => join(dir, name));
}

mountTest('lookup says which layer answers, and what hides the others', async (t) => {
  const layers = makeLayers(scratch(t));
  const roles = (path: string): string[] =>
    lookupSync(layers, path).layers.map(({ role, hiddenBy }) =>
      hiddenBy === undefined ? role : `${role} by ${hiddenBy.as} ${hiddenBy.path} of ${hiddenBy.layer}`,
    );
  t.deepEqual(roles('file'), ['nothing', 'answers', 'hidden by file file of 1']);
  t.deepEqual(roles('gone'), ['whiteout', 'nothing', 'hidden by whiteout gone of 0']);
  t.deepEqual(roles('d'), ['answers', 'merged', 'merged']);
  t.deepEqual(roles('d/a'), ['nothing', 'answers', 'hidden by file d/a of 1']);
  t.deepEqual(roles('o'), ['nothing', 'answers', 'hidden by opaque o of 1']);
  t.deepEqual(roles('o/sub/x'), ['nothing', 'nothing', 'hidden by opaque o of 1']);
  t.deepEqual(roles('f/x'), ['nothing', 'nothing', 'hidden by file f of 1']);
  t.deepEqual(roles('/only/'), ['nothing', 'nothing', 'answers']);
  t.deepEqual(roles('none'), ['nothing', 'nothing', 'nothing']);
  t.deepEqual(roles('.'), ['answers', 'merged', 'merged']);
  t.like(await lookup(layers, 'gone'), { layer: undefined, type: undefined });
  t.like(await lookup(layers, 'd'), { layer: 0, type: 'directory' });
  const [first] = (await lookup(layers, 'file', { encoding: 'buffer' })).layers;
  t.deepEqual(first?.layer, Buffer.from(layers[0] ?? ''));
});

mountTest('lookup agrees with random overlays', (t) => {
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
        const found = lookupSync(mount, Buffer.from(path === '' ? '.' : path, 'latin1'));
        t.is(found.type !== undefined, seen.has(path), `seed ${seed}, level ${level}: ${path}`);
        t.is(found.layers.filter(({ role }) => role === 'answers').length, seen.has(path) ? 1 : 0);
      }
      mount.unmountSync();
      // The check finds no fault in a layer that the kernel has written.
      t.deepEqual(verifyLayerSync(upperdir, { lowerdir }), [], `seed ${seed}, level ${level}`);
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

mountTest('verifyLayer finds each planted fault, and nothing else', async (t) => {
  for (const { reason, path, lowest, plant } of planted) {
    const dir = scratch(t);
    makeTree(dir, { 'base/file': 'base', 'base/d/x': '', 'upper/': '' });
    const upper = join(dir, 'upper');
    const lowerdir = lowest ? [] : [join(dir, 'base')];
    t.deepEqual(verifyLayerSync(upper, { lowerdir }), []);
    plant(upper);
    const findings = await verifyLayer(upper, { lowerdir });
    t.deepEqual(
      findings.map((finding) => [finding.reason, finding.path]),
      [[reason, path]],
    );
    t.true(findings.every(({ what, remedy }) => what.length > 10 && remedy.length > 5));
    t.deepEqual(verifyLayerSync(upper, { lowerdir }), findings);
  }
});

mountTest('verifyLayer says what is mounted inside', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'layer/inner/': '', 'other/file': '' });
  execFileSync('mount', ['--bind', join(dir, 'other'), join(dir, 'layer/inner')]);
  t.like(verifyLayerSync(join(dir, 'layer')), [{ path: 'inner', reason: 'other-mount' }]);
});

// ------------------------------------------------------------------------------------------ changes, one by one

const lines = (...args: Parameters<typeof changesSync>): string[] => [...changesSync(...args)].map(formatChanges);

mountTest('each kind of change has its line', (t) => {
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
  t.deepEqual(lines(mount), all);
  mount.unmountSync();
  t.deepEqual(lines(upperdir, { lowerdir }), all);
  const without = ['C ./', 'C a\\nb', 'R dir/', 'D gone', 'C keep', 'C new/ <- old/', 'D old', 'R type/'];
  t.deepEqual(lines(upperdir), without);
});

mountTest('a copy that has not changed is shown when it is asked for', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'l/file': 'same', 'u/': '', 'w/': '', 'm/': '' });
  const [lowerdir, upperdir, target] = [join(dir, 'l'), join(dir, 'u'), join(dir, 'm')];
  const mount = mountOverlaySync({ lowerdir, upperdir, workdir: join(dir, 'w'), target });
  execFileSync('touch', ['-r', join(lowerdir, 'file'), join(target, 'file')]);
  t.deepEqual(
    lines(mount).filter((line) => line.includes('file')),
    [],
  );
  t.deepEqual(
    lines(mount, { unchanged: true }).filter((line) => line.includes('file')),
    ['M file'],
  );
  writeFileSync(join(target, 'file'), 'same');
  t.deepEqual(
    lines(mount).filter((line) => line.includes('file')),
    ['M file (content, times)'],
  );
  t.deepEqual(
    lines(mount, { content: true }).filter((line) => line.includes('file')),
    ['M file (times)'],
  );
  mount.unmountSync();
});

test('files of one size and time, of which none is a copy, are compared by their bytes', (t) => {
  const dir = scratch(t, 'disk');
  makeTree(dir, { 'l/a': 'one', 'u/a': 'two', 'l/b': 'one', 'u/b': 'one' });
  for (const path of ['l/a', 'u/a', 'l/b', 'u/b', 'l', 'u'])
    execFileSync('touch', ['-d', '2001-01-01', join(dir, path)]);
  t.deepEqual(lines(join(dir, 'u'), { lowerdir: join(dir, 'l') }), ['M a (content)']);
});

mountTest('a loop that is left early closes all descriptors', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'upper/': '', 'lower/d0/x': '' });
  for (let i = 0; i < 30; i++) for (let j = 0; j < 100; j++) makeTree(join(dir, 'upper'), { [`d${i}/f${j}`]: 'x' });
  const [upper, options] = [join(dir, 'upper'), { lowerdir: join(dir, 'lower') }];
  const before = countDescriptors();
  for (const _ of changesSync(upper, options)) break;
  for await (const { path } of changes(upper, options)) if (path === 'd20/f5') break;
  const failing = changes(upper, { lowerdir: [join(dir, 'lower'), join(dir, 'none')] });
  await t.throwsAsync(failing.next(), { message: /none/ });
  t.deepEqual(await failing.next(), { value: undefined, done: true });
  await eventually(t, () => countDescriptors() <= before);
  // Several calls at once come one after the other.
  const found = changes(upper, options);
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
  const options = { lowerdir: join(dir, 'lower') };
  const drop = async (): Promise<void> => {
    changesSync(join(dir, 'upper'), options).next();
    await changes(join(dir, 'upper'), options).next();
  };
  await drop();
  t.true(countDescriptors() >= before + 4);
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  await eventually(t, () => {
    collect();
    return countDescriptors() <= before;
  });
  t.is(warnings.filter((text) => text.includes('return()')).length, 2);
});

test('bad arguments are refused at once', (t) => {
  const dir = scratch(t, 'disk');
  const call =
    (...args: unknown[]) =>
    () =>
      (changesSync as (...args: unknown[]) => unknown)(...args);
  const badType = { code: 'ERR_INVALID_ARG_TYPE' };
  t.throws(call(5), badType);
  t.throws(call(dir, { content: 1 }), badType);
  t.throws(call(dir, { lowerdir: [7] }), { ...badType, message: /lowerdir\[0\]/ });
  t.throws(call(dir, { encoding: 'latin1' }), { code: 'ERR_INVALID_ARG_VALUE', message: /'utf8', 'buffer'/ });
  t.throws(call(dir, { lower: dir }), { code: 'ERR_INVALID_ARG_VALUE', message: /lowerdir/ });
  t.throws(call({ options: { lowerdir: dir } }), { message: /upperdir/ });
  t.throws(() => lookupSync([], 'a'), badType);
  t.throws(() => lookupSync([dir], 'a/../b'), { message: /without "\.\."/ });
  t.throws(() => [...changesSync(join(dir, 'none'))], { code: 'ENOENT', message: /none/ });
});

// ------------------------------------------------------------------------------------------ races

kernelTest('a layer that is swapped for links during the walk: nothing outside is seen', (t) => {
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
        for (const { path, type } of changesSync(upper, { lowerdir: join(dir, 'lower') })) {
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
