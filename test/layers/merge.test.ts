/** Folding an upper into a directory. The judge is the kernel: the result equals the merged view. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { mountOverlaySync, type OverlayOptions } from 'overlayfs';
import { merge } from 'overlayfs/layers';
import { generator, mountTest, scaled, scratch } from '../support/index.js';
import { look, type Seen } from './look.js';
import { kinds, makeLayers } from './merged-layers.js';
import { changeTree } from './random-tree.js';

const copy = (from: string, to: string): void => {
  execFileSync('cp', ['-a', from, to]);
};

async function mergesAsShown(t: ExecutionContext, dir: string, seed: number): Promise<void> {
  const options = kinds[seed % kinds.length] as Partial<OverlayOptions>;
  const shown = makeLayers(dir, generator(seed), options);
  const note = `seed ${seed} ${JSON.stringify(options)}`;
  const upper = join(dir, 'upper');
  const before = look(upper);
  copy(join(dir, 'lower'), join(dir, 'copied'));
  const summary = await merge(upper, { into: join(dir, 'copied'), root: true });
  t.deepEqual(look(join(dir, 'copied')), shown, `copy, ${note}`);
  t.deepEqual(look(upper), before, `the upper stays, ${note}`);
  t.is(summary.entries, before.length - 1);
  copy(join(dir, 'lower'), join(dir, 'moved'));
  await merge(upper, { into: join(dir, 'moved'), move: true, root: true });
  t.deepEqual(look(join(dir, 'moved')), shown, `move, ${note}`);
  t.deepEqual(readdirSync(upper), [], note);
  t.false(existsSync(join(dir, 'moved/.overlayfs-merge')));
}

for (const kind of ['tmpfs', 'disk'] as const) {
  mountTest(`a merge gives what the mount shows (${kind})`, async (t) => {
    const dir = scratch(t, kind);
    const count = scaled(scaled(500), 12);
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
    t.log(`seeds from ${first}`);
    for (let seed = first; seed < first + count; seed++) {
      const own = join(dir, String(seed));
      await mergesAsShown(t, own, seed);
      if (t.passed === false) return;
      rmSync(own, { recursive: true });
    }
  });
}

mountTest('a merge into a mounted overlay gives what an overlay on it shows', async (t) => {
  const dir = scratch(t, 'disk');
  const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
  t.log(`seeds from ${first}`);
  for (let seed = first; seed < first + scaled(60, 4); seed++) {
    const random = generator(seed);
    const own = join(dir, String(seed));
    const at = (name: string): string => join(own, name);
    for (const name of ['base', 'upper1', 'work1', 'merged1', 'upper2', 'work2', 'merged2']) {
      mkdirSync(at(name), { recursive: true });
    }
    changeTree(at('base'), random, 60);
    const mountOn = (lowerdir: string, level: number, options: Partial<OverlayOptions> = {}) =>
      mountOverlaySync({
        lowerdir,
        upperdir: at(`upper${level}`),
        workdir: at(`work${level}`),
        target: at(`merged${level}`),
        ...kinds[(seed + level) % kinds.length],
        ...options,
      });
    // Without an index, each copy-up in this mount splits the hard links of its lower layer, and a merge copies up.
    const index = random(2) === 0;
    const seen = (path: string): Seen[] => look(path).map((one) => (index ? one : { ...one, linked: undefined }));
    const parent = mountOn(at('base'), 1, index ? { index } : {});
    try {
      changeTree(at('merged1'), random, 30);
      const child = mountOn(at('merged1'), 2);
      changeTree(at('merged2'), random, 30 + random(60));
      child.unmountSync();
      // The first mount shows other inodes for some hard links that were made through it.
      const again = mountOn(at('merged1'), 2);
      const shown = seen(at('merged2'));
      again.unmountSync();
      await merge(at('upper2'), { into: at('merged1'), move: seed % 2 !== 0, root: true });
      t.deepEqual(seen(at('merged1')), shown, `seed ${seed}, index ${index}`);
    } finally {
      parent.unmountSync();
    }
    if (!t.passed) return;
    rmSync(own, { recursive: true });
  }
});
