/** Squashing and flattening layers. The kernel is the judge: mounts of the result and of the layers show the same. */
import { mkdirSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { mountOverlaySync, OverlayError, type OverlayOptions } from 'overlayfs';
import { squash } from 'overlayfs/layers';
import { countDescriptors, generator, makeTree, mountTest, native, scaled, scratch } from '../support/index.js';
import { look, type Seen } from './look.js';
import { changeTree } from './random-tree.js';

/** Makes a stack of layers, the topmost first. Changes through a mount of the layers below make each one. */
function makeStack(dir: string, seed: number, options: Partial<OverlayOptions>): string[] {
  const random = generator(seed);
  const at = (name: string): string => {
    mkdirSync(join(dir, name), { recursive: true });
    return join(dir, name);
  };
  let stack = [at('0')];
  changeTree(stack[0] as string, random, 50);
  for (let i = 1; i <= 3; i++) {
    const upperdir = at(String(i));
    const layers = { lowerdir: stack, upperdir, workdir: at(`work${i}`), target: at('merged') };
    const mount = mountOverlaySync({ ...layers, ...options });
    changeTree(layers.target, random, 10 + random(40));
    mount.unmountSync();
    stack = [upperdir, ...stack];
  }
  return stack;
}

function show(dir: string, lowerdir: readonly string[], options: Partial<OverlayOptions> = {}): Seen[] {
  const target = join(dir, 'merged');
  const mount = mountOverlaySync({ lowerdir, target, ...options });
  const shown = look(target);
  mount.unmountSync();
  return shown;
}

const seeds = (t: ExecutionContext, count: number): number[] => {
  const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
  t.log(`seeds from ${first}`);
  return Array.from({ length: scaled(count) }, (_, i) => first + i);
};

mountTest('squashed layers show what the layers show, with whiteouts of both kinds', async (t) => {
  const dir = scratch(t);
  for (const seed of seeds(t, 300)) {
    const own = join(dir, String(seed));
    const stack = makeStack(own, seed, {});
    const base = stack.at(-1) as string;
    const shown = show(own, stack);
    const upper = stack.slice(0, -1);
    await squash({ upperdir: upper }, { into: join(own, 'devices') });
    t.deepEqual(show(own, [join(own, 'devices'), base]), shown, `seed ${seed}`);
    await squash({ upperdir: upper }, { into: join(own, 'attributes'), mechanism: 'xattr' });
    t.deepEqual(show(own, [join(own, 'attributes'), base]), shown, `attributes, seed ${seed}`);
    rmSync(own, { recursive: true });
  }
});

mountTest('flattened layers hold what a mount of them shows', async (t) => {
  const dir = scratch(t);
  const kinds: Partial<OverlayOptions>[] = [{}, { redirectDir: 'on' }, { metacopy: true, redirectDir: 'on' }];
  for (const seed of seeds(t, 300)) {
    const own = join(dir, String(seed));
    const options = kinds[seed % 3] as Partial<OverlayOptions>;
    const stack = makeStack(own, seed, options);
    const shown = show(own, stack, options);
    await squash({ upperdir: stack }, { into: join(own, 'flat'), plain: true });
    t.deepEqual(look(join(own, 'flat')), shown, `seed ${seed} ${JSON.stringify(options)}`);
    rmSync(own, { recursive: true });
  }
});

mountTest('a flattened mount with index has changed files under all their hard links', async (t) => {
  const dir = scratch(t);
  const kinds: Partial<OverlayOptions>[] = [{}, { redirectDir: 'on' }, { metacopy: true, redirectDir: 'on' }];
  for (const seed of seeds(t, 300)) {
    const own = join(dir, String(seed));
    const options = { index: true, ...kinds[seed % 3] };
    const random = generator(seed);
    const at = (name: string): string => join(own, name);
    for (const name of ['lower', 'upper', 'work', 'merged']) mkdirSync(at(name), { recursive: true });
    changeTree(at('lower'), random, 80);
    const layers = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
    const mount = mountOverlaySync({ ...layers, ...options });
    changeTree(at('merged'), random, 10 + random(60));
    const shown = look(at('merged'));
    await squash(mount, { into: at('flat'), plain: true });
    mount.unmountSync();
    t.deepEqual(look(at('flat')), shown, `seed ${seed} ${JSON.stringify(options)}`);
    if (!t.passed) return;
    rmSync(own, { recursive: true });
  }
});

mountTest('a squash that cannot be exact, or has no room, leaves nothing', async (t) => {
  const dir = scratch(t);
  const descriptors = countDescriptors();
  makeTree(dir, { 'lower/old/file': 'x', 'upper/': '', 'work/': '', 'merged/': '', 'full/file': '' });
  const at = (name: string): string => join(dir, name);
  const paths = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
  const mount = mountOverlaySync({ ...paths, redirectDir: 'on' });
  renameSync(at('merged/old'), at('merged/new'));
  mount.unmountSync();
  const reasons: [() => Promise<unknown>, string][] = [
    [() => squash({ upperdir: [at('upper')] }, { into: at('made') }), 'layers-incomplete'],
    [() => squash({ lowerdir: [at('lower')] }, { into: at('full'), plain: true }), 'path-exists'],
    [() => squash({ lowerdir: [at('lower')] }, { into: at('full/file'), plain: true }), 'path-exists'],
    [() => squash({ lowerdir: [at('none')] }, { into: at('made'), plain: true }), 'path-missing'],
    [() => squash({ lowerdir: [at('lower')] }, { into: at('none/made'), plain: true }), 'path-missing'],
  ];
  for (const [call, reason] of reasons) {
    t.is((await t.throwsAsync(call, { instanceOf: OverlayError }))?.reason, reason as OverlayError['reason']);
  }
  mkdirSync(at('small'));
  t.is(native.mount('small', at('small'), 'tmpfs', 0, 'size=64k'), 0);
  writeFileSync(at('lower/large'), Buffer.alloc(100_000));
  const mounted = await t.throwsAsync(squash({ lowerdir: [at('lower')] }, { into: at('small'), plain: true }), {
    instanceOf: OverlayError,
  });
  t.is(mounted?.reason, 'path-exists');
  t.true(mounted?.message.includes(`'${at('small')}' is a mount point`), mounted?.message);
  const full = await t.throwsAsync(squash({ lowerdir: [at('lower')] }, { into: at('small/made'), plain: true }), {
    instanceOf: OverlayError,
  });
  t.deepEqual([full?.reason, full?.code], ['out-of-space', 'ENOSPC']);
  t.deepEqual(readdirSync(at('small')), []);
  t.deepEqual(readdirSync(dir).sort(), ['full', 'lower', 'merged', 'small', 'upper', 'work']);
  t.is(countDescriptors(), descriptors);
});

mountTest('a directory inside a layer cannot become the result of layers', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'upper/b': 'b', 'lower/a': 'a', 'lower/empty/': '' });
  symlinkSync(at('lower'), at('link'));
  const layers = [at('upper'), at('lower')];
  for (const inside of ['upper/out', 'lower/out', 'lower/empty', 'lower/empty/out', 'link/out']) {
    for (const plain of [true, false]) {
      const error = await t.throwsAsync(squash({ upperdir: layers }, { into: at(inside), plain }), {
        instanceOf: OverlayError,
      });
      t.is(error?.reason, 'layers-overlap', inside);
    }
  }
  t.deepEqual([readdirSync(at('upper')), readdirSync(at('lower'))], [['b'], ['a', 'empty']]);
  await squash({ upperdir: layers }, { into: at('upper.out'), plain: true });
  t.deepEqual(readdirSync(at('upper.out')), ['a', 'b', 'empty']);
});
