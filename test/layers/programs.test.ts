/** Other programs as judges of layer archives: GNU tar, bsdtar and umoci unpack what is packed, and pack what is unpacked. */
import { execFileSync } from 'node:child_process';
import { createWriteStream, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { mountOverlaySync } from 'overlayfs';
import { apply } from '#lib/archives/apply.js';
import { type PackOptions, pack } from '#lib/archives/create.js';
import type { Layers } from '#lib/trees/given.js';
import { type Feature, generator, mountTest, scaled, scratch } from '../support/index.js';
import { type Described, describeTree, type Tree } from '../support/trees.js';
import { changeTree } from './random-tree.js';

const needsOf = (program: string): { needs: Feature[] } => ({ needs: program === 'bsdtar' ? ['bsdtar'] : [] });
const run = (program: string, ...args: string[]): void => void execFileSync(program, args, { stdio: 'pipe' });
const packTo = (path: string, source: Layers, options?: PackOptions): Promise<void> =>
  pipeline(pack(source, options), createWriteStream(path));

const xattrs = ['--xattrs', '--xattrs-include=*'];
const unpackers = {
  'GNU tar': (archive: string, dir: string) => run('tar', '-xpf', archive, '--numeric-owner', ...xattrs, '-C', dir),
  bsdtar: (archive: string, dir: string) => run('bsdtar', '-xpf', archive, '--numeric-owner', '--xattrs', '-C', dir),
};
const packers = {
  'GNU tar': (archive: string, dir: string) =>
    run('tar', '--format=pax', '--numeric-owner', ...xattrs, '-cf', archive, '-C', dir, '.'),
  'GNU tar, sparse': (archive: string, dir: string) =>
    run('tar', '-S', '--format=pax', '--numeric-owner', ...xattrs, '-cf', archive, '-C', dir, '.'),
  bsdtar: (archive: string, dir: string) =>
    run('bsdtar', '--format=pax', '--numeric-owner', '--xattrs', '-cf', archive, '-C', dir, '.'),
};

for (const [program, unpack] of Object.entries(unpackers)) {
  mountTest(`${program} unpacks random trees that are packed here`, needsOf(program), async (t) => {
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 1);
    for (let seed = first; seed < first + scaled(10, 2); seed++) {
      t.log(`seed ${seed}`);
      const dir = scratch(t);
      for (const name of ['tree', 'out']) mkdirSync(join(dir, name));
      changeTree(join(dir, 'tree'), generator(seed), 200);
      await packTo(join(dir, 'archive'), join(dir, 'tree'), { layout: 'plain' });
      unpack(join(dir, 'archive'), join(dir, 'out'));
      const [got, wanted] = [describeTree(join(dir, 'out')), describeTree(join(dir, 'tree'))];
      // bsdtar leaves the time of the directory that it unpacks into.
      const ofRoot = program === 'bsdtar' && { '': got[''] };
      t.deepEqual(got, { ...wanted, ...ofRoot } as Tree, `seed ${seed}`);
    }
  });
}

for (const [program, pack] of Object.entries(packers)) {
  mountTest(`random trees that ${program} packs are unpacked here`, needsOf(program), async (t) => {
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 1);
    for (let seed = first; seed < first + scaled(10, 2); seed++) {
      t.log(`seed ${seed}`);
      const dir = scratch(t);
      mkdirSync(join(dir, 'tree'));
      changeTree(join(dir, 'tree'), generator(seed), 200);
      pack(join(dir, 'archive'), join(dir, 'tree'));
      await apply(join(dir, 'archive'), join(dir, 'out'), { layout: 'plain' });
      t.deepEqual(describeTree(join(dir, 'out')), describeTree(join(dir, 'tree')), `seed ${seed}`);
    }
  });
}

/** The blobs of an image's layers, in a layout. */
function layersOf(layout: string): string[] {
  const json = (path: string): Record<string, unknown> => JSON.parse(readFileSync(join(layout, path), 'utf8'));
  const blob = (digest: string): string => `blobs/${digest.replace(':', '/')}`;
  const index = json('index.json') as { manifests: { digest: string }[] };
  const manifest = json(blob(index.manifests.at(-1)?.digest ?? '')) as { layers: { digest: string }[] };
  return manifest.layers.map(({ digest }) => join(layout, blob(digest)));
}

/** umoci keeps no fractions of a second in what it packs, and counts the links of a directory as ours. */
const inSeconds = (tree: Tree): Tree =>
  Object.fromEntries(
    Object.entries(tree).map(([path, described]): [string, Described] => [
      path,
      { ...described, mtime: described.mtime / 1_000_000_000n },
    ]),
  );

mountTest(
  'umoci unpacks images whose layers are packed here, as the kernel shows them',
  { needs: 'umoci' },
  async (t) => {
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 1);
    for (let seed = first; seed < first + scaled(10, 2); seed++) {
      t.log(`seed ${seed}`);
      const random = generator(seed);
      const dir = scratch(t);
      const [base, target, layout] = [join(dir, 'base'), join(dir, 'merged'), join(dir, 'layout')];
      for (const path of [base, target]) mkdirSync(path);
      changeTree(base, random, 100);
      run('umoci', 'init', '--layout', layout);
      run('umoci', 'new', '--image', `${layout}:image`);
      await packTo(join(dir, 'base.tar'), base);
      run('umoci', 'raw', 'add-layer', '--image', `${layout}:image`, join(dir, 'base.tar'));
      let lowerdir = [base];
      let wanted: Tree = {};
      for (const level of [1, 2]) {
        const [upperdir, workdir] = [join(dir, `upper${level}`), join(dir, `work${level}`)];
        for (const path of [upperdir, workdir]) mkdirSync(path);
        const mount = mountOverlaySync({ lowerdir, upperdir, workdir, target });
        changeTree(target, random, 60 * level);
        wanted = describeTree(target);
        mount.unmountSync();
        await packTo(join(dir, `${level}.tar`), { upperdir, lowerdir });
        run('umoci', 'raw', 'add-layer', '--image', `${layout}:image`, join(dir, `${level}.tar`));
        lowerdir = [upperdir, ...lowerdir];
      }
      run('umoci', 'raw', 'unpack', '--image', `${layout}:image`, join(dir, 'out'));
      t.deepEqual(describeTree(join(dir, 'out')), wanted, `seed ${seed}`);
      // And its own archives of these layers, which it has compressed.
      for (const [i, blob] of layersOf(layout).entries()) {
        await apply(blob, join(dir, `layer${i}`));
      }
      const again = [2, 1, 0].map((i) => join(dir, `layer${i}`));
      const mount = mountOverlaySync({ lowerdir: again, target });
      t.deepEqual(describeTree(target), wanted, `mounted, seed ${seed}`);
      mount.unmountSync();
    }
  },
);

mountTest('what umoci packs is unpacked here as umoci shows it', { needs: 'umoci' }, async (t) => {
  const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 1);
  for (let seed = first; seed < first + scaled(10, 2); seed++) {
    t.log(`seed ${seed}`);
    const random = generator(seed);
    const dir = scratch(t);
    const [bundle, layout, target] = [join(dir, 'bundle'), join(dir, 'layout'), join(dir, 'merged')];
    mkdirSync(target);
    run('umoci', 'init', '--layout', layout);
    run('umoci', 'new', '--image', `${layout}:image`);
    run('umoci', 'unpack', '--image', `${layout}:image`, bundle);
    for (let level = 0; level < 3; level++) {
      changeTree(join(bundle, 'rootfs'), random, 80);
      run('umoci', 'repack', '--refresh-bundle', '--image', `${layout}:image`, bundle);
    }
    const dirs: string[] = [];
    for (const [i, blob] of layersOf(layout).entries()) {
      // It has no entries for directories in which something changes.
      await apply(blob, join(dir, `layer${i}`), { lowerdir: dirs });
      await apply(blob, join(dir, 'flat'), { layout: 'plain' });
      dirs.unshift(join(dir, `layer${i}`));
    }
    run('umoci', 'raw', 'unpack', '--image', `${layout}:image`, join(dir, 'out'));
    const wanted = inSeconds(describeTree(join(dir, 'out')));
    t.deepEqual(inSeconds(describeTree(join(dir, 'flat'))), wanted, `plain, seed ${seed}`);
    const mount = mountOverlaySync({ lowerdir: dirs, target });
    const shown = inSeconds(describeTree(target));
    mount.unmountSync();
    t.deepEqual(shown, wanted, `mounted, seed ${seed}`);
  }
});
