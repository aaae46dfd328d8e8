/** The layers of an overlay, named by paths, by the mount and by its entry in the mount table: all calls give the same. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { bindSync, findMount, findMountSync, mountOverlaySync, type OverlayError } from 'overlayfs';
import { changes, check, type Layers, lookup, merge, pack, squash } from 'overlayfs/layers';
import { fromAsync, generator, kernelTest, makeTree, mountTest, scaled, scratch } from '../support/index.js';
import { describeTree } from '../support/trees.js';
import { changeTree } from './random-tree.js';

/** Whiteouts are made anew, with other times. */
const withoutTimes = (dir: string) =>
  Object.entries(describeTree(dir)).map(([name, entry]) => [
    name,
    { ...entry, mtime: entry.type === 'character' || entry.mtime },
  ]);

/** The results of each call, with what it writes as a description of the tree. */
async function answersOf(layers: Layers, dir: string): Promise<Record<string, unknown>> {
  const into = (name: string): string => join(mkdtempSync(join(dir, 'into-')), name);
  const [squashed, flat, merged] = [into('squashed'), into('flat'), into('merged')];
  mkdirSync(merged);
  const archive = Buffer.concat((await fromAsync(pack(layers))) as Buffer[]);
  // A renamed directory cannot be squashed without the layers below.
  const sums = await squash(layers, { into: squashed }).catch(({ reason }: OverlayError) => reason);
  await squash(layers, { into: flat, plain: true });
  const dryRun = { into: merged, dryRun: true, unmarked: true };
  const summary = await merge(layers, dryRun).catch(({ reason }: OverlayError) => reason);
  return {
    changes: await fromAsync(changes(layers, { content: true })),
    check: await check(layers),
    lookup: await lookup(layers, 'd0'),
    pack: archive.toString('base64'),
    squash: [sums, existsSync(squashed) && withoutTimes(squashed)],
    flat: describeTree(flat),
    merge: summary,
  };
}

for (const options of [{}, { redirectDir: 'on', metacopy: true }, { userxattr: true }] as const) {
  mountTest(`paths, mount and entry of the table name the same layers: ${JSON.stringify(options)}`, async (t) => {
    const seed = Date.now() % 1e9;
    for (let i = 0; i < scaled(30, 3); i++) {
      const dir = scratch(t);
      const random = generator(seed + i);
      const [lower, middle, upperdir, workdir, target] = ['lower', 'middle', 'upper', 'work', 'target'].map((name) =>
        join(dir, name),
      ) as [string, string, string, string, string];
      for (const path of [lower, middle, upperdir, workdir, target]) mkdirSync(path);
      changeTree(lower, random, 60);
      changeTree(middle, random, 30);
      const lowerdir = [middle, lower];
      const mount = mountOverlaySync({ lowerdir, upperdir, workdir, target, ...options });
      changeTree(target, random, 60);
      const entry = await findMount(target);
      const paths = { lowerdir, upperdir, workdir, ...options };
      const wanted = await answersOf(paths, dir);
      t.deepEqual(await answersOf(mount, dir), wanted, `mount, seed ${seed + i}`);
      t.deepEqual(await answersOf(entry as NonNullable<typeof entry>, dir), wanted, `entry, seed ${seed + i}`);
      mount.unmountSync();
    }
    t.log(`seed ${seed}`);
  });
}

kernelTest('a path stands for one directory, and an object without uppers for layers below', async (t) => {
  const dir = scratch(t, 'disk');
  const [a, b] = [join(dir, 'a'), join(dir, 'b')];
  makeTree(dir, { 'a/x': 'a', 'b/x': 'b', 'b/y': 'b' });
  execFileSync('mknod', [join(a, 'y'), 'c', '0', '0']);
  t.deepEqual((await lookup(a, 'x')).layers.length, 1);
  t.is((await lookup({ lowerdir: [a, b] }, 'y')).layer, undefined);
  t.deepEqual(await check(a), []);
  t.deepEqual(
    (await check({ lowerdir: a })).map(({ reason }) => reason),
    ['whiteout-in-lowest'],
  );
  t.deepEqual(await check({ upperdir: a, lowerdir: b }), []);
  t.deepEqual(await check({ upperdir: [a, b] }), [], 'the second upper is below the first');
  await squash({ upperdir: [a, b] }, { into: join(dir, 'one') });
  const [upper, rest] = [{ upperdir: [a] }, fromAsync(changes({ upperdir: join(dir, 'one'), lowerdir: [] }))];
  t.deepEqual(
    (await rest).map(({ path }) => path),
    ['.', 'x'],
  );
  t.is((await fromAsync(changes(upper))).length, 3);
});

const refused: readonly (readonly [layers: unknown, message: RegExp])[] = [
  [undefined, /"layers" must be .*Received undefined/],
  [['/a', '/b'], /"layers" must be a directory, an object with "upperdir" or "lowerdir"/],
  [{}, /must name an upperdir or a lowerdir/],
  [{ lowerdir: [] }, /must name an upperdir or a lowerdir/],
  [{ lowerDir: '/a' }, /did you mean "lowerdir"/],
  [{ upperdir: '/a', userxattr: 1 }, /"userxattr" must be .*Received 1/],
  [{ upperdir: 5 }, /"upperdir" must be/],
  [{ upperdir: '/a', lowerdir: ['/b', 5] }, /"lowerdir\[1\]"/],
  [{ upperdir: '/a\0b' }, /"upperdir" .*NUL/],
  [{ upperdir: '' }, /"upperdir"/],
  [{ overlay: undefined, root: '/' }, /must be the entry of an overlay/],
  [{ overlay: { lowerdir: ['a'] }, root: '/' }, /"lowerdir" must have absolute paths/],
  [{ overlay: { lowerdir: ['/a'] }, root: '/d' }, /whole overlay, not of its directory '\/d'/],
];

test('a bad description is refused by every call, and the message names what is wrong', async (t) => {
  const calls: Record<string, (layers: Layers) => unknown> = {
    changes: (layers) => changes(layers),
    check: (layers) => check(layers),
    lookup: (layers) => lookup(layers, 'x'),
    merge: (layers) => merge(layers, { into: '/nonexistent' }),
    pack: (layers) => pack(layers),
    squash: (layers) => squash(layers, { into: '/nonexistent' }),
  };
  for (const [name, call] of Object.entries(calls)) {
    for (const [layers, message] of refused) {
      const error = await t.throwsAsync(
        async () => call(layers as Layers),
        { any: true },
        `${name} ${String(message)}`,
      );
      t.regex((error as Error).message, message, name);
    }
  }
  for (const name of ['changes', 'merge', 'pack'] as const) {
    const call = calls[name] as (layers: Layers) => unknown;
    await t.throwsAsync(async () => call({ lowerdir: '/a' }), { message: /only an upperdir has changes/ }, name);
    await t.throwsAsync(async () => call({ upperdir: ['/a', '/b'] }), { message: /squash makes one of several/ }, name);
  }
  t.throws(() => changes('/a', { lowerdir: '/b' } as never), { message: /lowerdir/ });
});

mountTest('the entry of a directory that is bound out of an overlay is refused', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'lower/d/x': '', 'upper/': '', 'work/': '', 'target/': '', 'bound/': '' });
  const [lowerdir, upperdir, workdir, target, bound] = ['lower', 'upper', 'work', 'target', 'bound'].map((name) =>
    join(dir, name),
  ) as [string, string, string, string, string];
  mountOverlaySync({ lowerdir, upperdir, workdir, target });
  bindSync(join(target, 'd'), bound);
  t.throws(() => changes(findMountSync(bound) as never), { message: /whole overlay, not of its directory '\/d'/ });
  rmSync(join(target, 'd/x'));
});
