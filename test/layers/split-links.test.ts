/** Merges of uppers that were mounted with `index`, which shows changed files under hard links that the upper lacks. */
import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { mountOverlaySync, OverlayError, type OverlayOptions } from 'overlayfs';
import { merge } from 'overlayfs/layers';
import { generator, makeTree, mountTest, scaled, scratch } from '../support/index.js';
import { look } from './look.js';
import { kinds, makeLayers } from './merged-layers.js';

interface Case {
  readonly title: string;
  readonly change: (at: (name: string) => string) => void;
  /** The name of the hard link in the overlay, if its directory was renamed there. */
  readonly shownAt?: string;
  /** The name that the error has; undefined if the merge gives what the mount shows. */
  readonly refused?: string;
  readonly options?: Partial<OverlayOptions>;
}

/** The lower layer has a = b = d/c = d/e, alone, and a link x to a file outside. */
function makeLower(at: (name: string) => string): void {
  makeTree(at('lower'), { a: 'old', 'd/f': '', alone: 'alone', 'd2/y': 'y' });
  for (const name of ['b', 'd/c', 'd/e']) linkSync(at('lower/a'), at(`lower/${name}`));
  linkSync(at('lower/d2/y'), at('lower/d2/z'));
  writeFileSync(at('outside'), 'outside');
  linkSync(at('outside'), at('lower/x'));
}

const names = ['a', 'b', 'd/c', 'd/e'];
const redirectDir = 'on';

const cases: readonly Case[] = [
  { title: 'one link is written', change: (at) => appendFileSync(at('a'), 'new'), refused: 'b' },
  { title: 'one link is renamed', change: (at) => renameSync(at('d/e'), at('r')), refused: 'a' },
  {
    title: 'a link is written and removed',
    change: (at) => {
      appendFileSync(at('b'), 'new');
      unlinkSync(at('b'));
    },
    refused: 'a',
  },
  {
    title: 'a link is written, and its directory is removed',
    change: (at) => {
      appendFileSync(at('d/c'), 'new');
      rmSync(at('d'), { recursive: true });
    },
    refused: 'a',
  },
  {
    title: 'a link in a renamed directory is written and removed',
    options: { redirectDir },
    change: (at) => {
      renameSync(at('d2'), at('moved'));
      appendFileSync(at('moved/y'), 'new');
      unlinkSync(at('moved/y'));
    },
    refused: 'd2/z',
    shownAt: 'moved/z',
  },
  {
    title: 'all links are written',
    change: (at) => {
      for (const name of names) appendFileSync(at(name), 'new');
    },
  },
  {
    title: 'all links are removed, and others are made',
    change: (at) => {
      linkSync(at('a'), at('new'));
      for (const name of names) unlinkSync(at(name));
    },
  },
  {
    title: 'a directory with links is renamed',
    options: { redirectDir },
    change: (at) => renameSync(at('d2'), at('m')),
  },
  {
    title: 'a directory with some of the links is renamed and comes back',
    options: { redirectDir },
    change: (at) => {
      renameSync(at('d'), at('m'));
      mkdirSync(at('d'));
      renameSync(at('m'), at('d/m'));
    },
  },
  {
    title: 'files with one name in the directory',
    change: (at) => {
      appendFileSync(at('x'), 'new');
      appendFileSync(at('alone'), 'new');
    },
  },
];

const features: readonly Partial<OverlayOptions>[] = [{ index: true }, { nfsExport: true }];

for (const kind of ['tmpfs', 'disk'] as const) {
  for (const { title, change, refused, shownAt = refused, options } of cases) {
    mountTest(`hard links with index: ${title} (${kind})`, async (t) => {
      for (const feature of features) {
        if (feature.nfsExport && options?.redirectDir) continue;
        const dir = join(scratch(t, kind), 'case');
        const at = (name: string): string => join(dir, name);
        for (const name of ['lower', 'upper', 'work', 'merged']) mkdirSync(at(name), { recursive: true });
        makeLower(at);
        const mountAgain = () =>
          mountOverlaySync({
            lowerdir: at('lower'),
            upperdir: at('upper'),
            workdir: at('work'),
            target: at('merged'),
            ...feature,
            ...options,
          });
        let mount = mountAgain();
        change((name) => at(`merged/${name}`));
        let shown = look(at('merged'));
        mount.unmountSync();
        for (const mode of ['copy', 'move'] as const) {
          execFileSync('cp', ['-a', at('lower'), at(mode)]);
          linkSync(at(`${mode}/x`), at(`${mode}-outside`));
        }
        if (refused !== undefined) {
          for (const mode of ['copy', 'move'] as const) {
            const before = [look(at(mode)), look(at('upper'))];
            const error = await t.throwsAsync(merge(at('upper'), { into: at(mode), move: mode === 'move' }), {
              instanceOf: OverlayError,
            });
            t.is(error?.reason, 'layers-incomplete');
            t.is(error?.path, at(`${mode}/${refused}`));
            t.regex(error?.message ?? '', /hard link '.*Nothing was merged.*chmod --reference/s);
            t.true(error?.message.includes(`hard link '${shownAt}'`), error?.message);
            t.deepEqual([look(at(mode)), look(at('upper'))], before);
            await t.throwsAsync(merge(at('upper'), { into: at(mode), dryRun: true }), {
              message: error?.message ?? '',
            });
          }
          // The remedy.
          mount = mountAgain();
          for (const { path, type } of look(at('merged'))) {
            if (type === 0o100000) chmodSync(at(`merged/${path}`), statSync(at(`merged/${path}`)).mode & 0o7777);
          }
          shown = look(at('merged'));
          mount.unmountSync();
        }
        await merge(at('upper'), { into: at('copy'), root: true });
        await merge(at('upper'), { into: at('move'), move: true, root: true });
        t.deepEqual(look(at('copy')), shown, `copy ${JSON.stringify(feature)}`);
        t.deepEqual(look(at('move')), shown, `move ${JSON.stringify(feature)}`);
        rmSync(dir, { recursive: true });
      }
    });
  }

  mountTest(`a merge of an upper with index is refused or gives what the mount shows (${kind})`, async (t) => {
    const dir = scratch(t, kind);
    const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1e9);
    const count = scaled(300);
    t.log(`seeds from ${first}`);
    let refused = 0;
    for (let seed = first; seed < first + count; seed++) {
      const random = generator(seed);
      const own = join(dir, String(seed));
      const at = (name: string): string => join(own, name);
      const options = { index: true, ...kinds[seed % kinds.length] };
      const shown = makeLayers(own, random, options, { least: 1, more: 30 });
      execFileSync('cp', ['-a', at('lower'), at('copy')]);
      const before = look(at('copy'));
      try {
        await merge(at('upper'), { into: at('copy'), move: random(2) !== 0, root: true });
        t.deepEqual(look(at('copy')), shown, `seed ${seed}`);
      } catch (error) {
        if (!(error instanceof OverlayError) || error.reason !== 'layers-incomplete') throw error;
        refused++;
        t.deepEqual(look(at('copy')), before, `seed ${seed}`);
      }
      rmSync(own, { recursive: true });
    }
    t.log(`${refused} of ${count} were refused`);
    t.true(refused < count);
  });
}

mountTest('an unmount keeps the index that a merge of the upper needs', async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  for (const name of ['lower', 'upper', 'merged']) mkdirSync(at(name));
  makeLower(at);
  const layers = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work') };
  const paths = { ...layers, target: at('merged'), create: true };
  const first = mountOverlaySync({ ...paths, index: true });
  chmodSync(at('merged/a'), 0o600);
  await first.unmount();
  t.true(existsSync(at('work/index')));
  await t.throwsAsync(merge(at('upper'), { into: at('lower') }), { message: /chmod --reference/ });
  const again = mountOverlaySync({ ...paths, index: true });
  for (const name of names) chmodSync(at(`merged/${name}`), 0o600);
  await again.unmount();
  await merge(at('upper'), { into: at('lower') });
  t.deepEqual(
    names.map((name) => statSync(at(`lower/${name}`)).ino),
    names.map(() => statSync(at('lower/a')).ino),
  );
});

mountTest('a copy without hard links is no lower layer for an upper with index', async (t) => {
  const dir = scratch(t, 'disk');
  const at = (name: string): string => join(dir, name);
  for (const name of ['lower', 'upper', 'work', 'merged']) mkdirSync(at(name));
  makeLower(at);
  const paths = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work'), target: at('merged') };
  const mount = mountOverlaySync({ ...paths, index: true });
  chmodSync(at('merged/a'), 0o600);
  mount.unmountSync();
  execFileSync('cp', ['-r', at('lower'), at('copy')]);
  const error = await t.throwsAsync(merge(at('upper'), { into: at('copy') }), { instanceOf: OverlayError });
  t.deepEqual([error?.reason, error?.path], ['layers-incomplete', at('copy/a')]);
  t.is(statSync(at('copy/a')).mode & 0o777, 0o644);
});

mountTest('a merge by move leaves an upper that an overlay uses', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, name);
  makeTree(dir, { 'lower/': '', 'upper/a': 'a', 'work/': '', 'merged/': '', 'target/': '', 'upper2/b': '' });
  const paths = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work') };
  const refuses = async (upper: Parameters<typeof merge>[0]): Promise<void> => {
    for (const dryRun of [true, false]) {
      const error = await t.throwsAsync(merge(upper, { into: at('target'), move: true, dryRun }), {
        instanceOf: OverlayError,
      });
      t.deepEqual([error?.reason, error?.code, error?.path], ['layer-in-use', 'EBUSY', at('upper')]);
      await t.throwsAsync(merge(upper, { into: at('target'), move: true, dryRun }), { message: error?.message ?? '' });
      t.deepEqual(look(at('target')).length, 1);
      t.is(readFileSync(at('upper/a'), 'utf8'), 'a');
    }
  };
  const mounted = mountOverlaySync({ ...paths, target: at('merged') });
  await refuses(at('upper'));
  await refuses(mounted);
  await merge(mounted, { into: at('target'), dryRun: true });
  mounted.unmountSync();
  const detached = mountOverlaySync(paths);
  await refuses(at('upper'));
  detached.unmountSync();
  const asLower = mountOverlaySync({
    lowerdir: at('upper'),
    upperdir: at('upper2'),
    workdir: at('work'),
    target: at('merged'),
  });
  await refuses(at('upper'));
  asLower.unmountSync();
  const [first, second] = await Promise.allSettled(
    [1, 2].map(() => merge(at('upper'), { into: at('target'), move: true })),
  );
  t.true([first?.status, second?.status].includes('fulfilled'));
  t.is(readFileSync(at('target/a'), 'utf8'), 'a');
});
