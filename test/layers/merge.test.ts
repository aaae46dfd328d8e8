/** Folding an upper into a directory. The judge is the kernel: the result equals the merged view. */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import type { OverlayOptions } from 'overlayfs';
import { mergeLayer, mergeLayerSync } from 'overlayfs/layers';
import { generator, mountTest, scaled, scratch } from '../support/index.js';
import { look } from './look.js';
import { kinds, makeLayers } from './merged-layers.js';

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
  const summary = await mergeLayer(upper, join(dir, 'copied'), { root: true });
  t.deepEqual(look(join(dir, 'copied')), shown, `copy, ${note}`);
  t.deepEqual(look(upper), before, `the upper stays, ${note}`);
  t.is(summary.entries, before.length - 1);
  copy(join(dir, 'lower'), join(dir, 'moved'));
  mergeLayerSync(upper, join(dir, 'moved'), { mode: 'move', root: true });
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
