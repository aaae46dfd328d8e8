/**
 * The operations into which faults are injected. Each is prepared in a directory of its own, performed, and looked at
 * afterwards: `expectDone` after a success, `expectWhole` after a failure. Each throws what is wrong.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createWriteStream, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { mountOverlay, spawn, unmount, whiteout } from 'overlayfs';
import { commitImage, createImage, createLayout, type Image, openLayout, unpack } from 'overlayfs/images';
import { apply, merge, pack, squash } from 'overlayfs/layers';
import { Snapshotter, withTempMount } from 'overlayfs/snapshots';

export interface Operation {
  /** Makes what the operation needs, below an empty directory. */
  prepare(dir: string): Promise<void> | void;
  /** Performs it. It is called again after a failure, and then has to succeed. */
  perform(dir: string): Promise<unknown>;
  expectDone(dir: string): Promise<void> | void;
  /** After a failure: nothing is lost, nothing half-made is left. */
  expectWhole?(dir: string): Promise<void> | void;
  /** Releases what `perform` has made. */
  release?(dir: string): Promise<unknown> | unknown;
}

const names = (dir: string): string[] => readdirSync(dir).sort();
const isMounted = (path: string): boolean => readFileSync('/proc/self/mountinfo', 'latin1').includes(` ${path} `);

/** An upper with each kind of change over a lower, and the view of both. */
async function makeLayers(dir: string): Promise<void> {
  const [lower, upper] = [join(dir, 'lower'), join(dir, 'upper')];
  for (const path of ['lower/d/deep', 'lower/gone', 'upper/d', 'upper/new/sub']) {
    mkdirSync(join(dir, path), { recursive: true });
  }
  for (const name of ['kept', 'changed', 'removed', 'd/deep/file', 'gone/file']) writeFileSync(join(lower, name), name);
  for (const name of ['changed', 'd/added', 'new/sub/file']) writeFileSync(join(upper, name), `upper ${name}`);
  await whiteout(join(upper, 'removed'));
  await whiteout(join(upper, 'gone'));
}

/** The contents by path in the view of `makeLayers`. */
const merged = {
  kept: 'kept',
  changed: 'upper changed',
  'd/deep/file': 'd/deep/file',
  'd/added': 'upper d/added',
  'new/sub/file': 'upper new/sub/file',
};

function expectMerged(dir: string, whiteouts: readonly string[] = []): void {
  for (const [name, text] of Object.entries(merged)) assert.equal(readFileSync(join(dir, name), 'utf8'), text, name);
  assert.deepEqual(names(dir), ['changed', 'd', 'kept', 'new', ...whiteouts].sort());
}

const absent = (...paths: string[]): void => {
  for (const path of paths) assert.ok(!existsSync(path), `${path} is left`);
};
const nothingTemporary = (dir: string): void =>
  assert.deepEqual(
    (readdirSync(dir, { recursive: true }) as string[]).filter((name) => /(^|\/)\.overlayfs-/.test(name)),
    [],
  );

const merging = (mode: 'copy' | 'move'): Operation => ({
  prepare: makeLayers,
  // The changes of a move that has failed are in both directories until it is performed again.
  perform: (dir) => merge(join(dir, 'upper'), { into: join(dir, 'lower'), move: mode === 'move' }),
  expectDone: (dir) => {
    expectMerged(join(dir, 'lower'));
    nothingTemporary(dir);
  },
});

const folding = (
  perform: (dir: string, into: string) => Promise<unknown>,
  into: string,
  whiteouts?: string[],
): Operation => ({
  prepare: makeLayers,
  perform: (dir) => perform(dir, join(dir, into)),
  expectDone: (dir) => expectMerged(join(dir, into), whiteouts),
  expectWhole: (dir) => {
    absent(join(dir, into));
    nothingTemporary(dir);
  },
});

let archive: Buffer | undefined;
async function archiveOf(dir: string): Promise<Buffer> {
  if (archive !== undefined) return archive;
  await makeLayers(dir);
  const chunks: Buffer[] = [];
  for await (const chunk of pack({ upperdir: join(dir, 'upper'), lowerdir: [join(dir, 'lower')] })) chunks.push(chunk);
  archive = Buffer.concat(chunks);
  return archive;
}

/** A snapshotter that stays open, as in a server. */
const opened = new Map<string, Snapshotter>();
const snapshotterOf = (dir: string): Snapshotter => opened.get(dir) as Snapshotter;

async function openStore(dir: string): Promise<Snapshotter> {
  const snapshotter = await Snapshotter.open(join(dir, 'store'));
  opened.set(dir, snapshotter);
  return snapshotter;
}

async function closeStore(dir: string): Promise<void> {
  await snapshotterOf(dir).close();
  opened.delete(dir);
}

async function keysOf(dir: string): Promise<string[]> {
  const keys: string[] = [];
  for await (const { name, kind } of snapshotterOf(dir).list()) keys.push(`${kind} ${name}`);
  return keys.sort();
}

const images = new Map<string, Image>();

/** A committed snapshot `base`, and an active one `work` with a file of its own. */
async function makeSnapshots(dir: string): Promise<void> {
  const snapshotter = await openStore(dir);
  for (const [key, parent] of [
    ['base', undefined],
    ['work', 'base'],
  ] as const) {
    const mounts = await snapshotter.prepare(`${key}-key`, parent);
    await withTempMount(mounts, (path) => writeFileSync(join(path, key), key));
    if (key === 'base') await snapshotter.commit('base-key', { name: 'base' });
  }
  // The store keeps the connection that it has read with.
  await keysOf(dir);
}

/** Each verb while every fsync(2) fails: its change is made, it says so, and its repeat says that it is done. */
const notSynced: Operation = {
  prepare: async (dir) => {
    await makeSnapshots(dir);
    await snapshotterOf(dir).view('look', 'base');
    await snapshotterOf(dir).close();
    // Otherwise the fsync(2) of a directory fails before.
    opened.set(dir, await Snapshotter.open(join(dir, 'store'), { fsync: 'store' }));
    // SQLite itself syncs the header of a new log, before the first change.
    await snapshotterOf(dir).setLabels('base', {}, { replace: true });
    await keysOf(dir);
  },
  perform: async (dir) => {
    const snapshotter = snapshotterOf(dir);
    const verbs = [
      () => snapshotter.prepare('next', 'base'),
      () => snapshotter.commit('work-key', { name: 'top' }),
      () => snapshotter.remove('look'),
    ];
    const errors: { code: string; reason?: string }[] = [];
    for (const verb of verbs) await verb().catch((error) => errors.push(error));
    assert.equal(errors.length, verbs.length);
    const isFirst = errors.every(({ reason }) => reason === 'not-synced');
    if (isFirst) throw errors[0];
    const done = ['ALREADY_EXISTS', 'NOT_FOUND', 'NOT_FOUND'].map((code) => `ERR_SNAPSHOT_${code}`);
    assert.deepEqual(
      errors.map(({ code }) => code),
      done,
    );
    await snapshotter.setLabels('next', { all: 'well' }, { replace: true });
  },
  expectWhole: async (dir) => assert.deepEqual(await keysOf(dir), ['active next', 'committed base', 'committed top']),
  expectDone: async (dir) => {
    await operations['notSynced']?.expectWhole?.(dir);
    assert.deepEqual((await snapshotterOf(dir).stat('next')).labels, { all: 'well' });
  },
  release: closeStore,
};

const onSnapshots = (perform: (snapshotter: Snapshotter) => Promise<unknown>, keys: readonly string[]): Operation => ({
  prepare: makeSnapshots,
  perform: (dir) => perform(snapshotterOf(dir)),
  expectDone: async (dir) => assert.deepEqual(await keysOf(dir), keys),
  expectWhole: async (dir) => assert.deepEqual(await keysOf(dir), ['active work-key', 'committed base']),
  release: closeStore,
});

async function makeImage(dir: string): Promise<Image> {
  const layout = await createLayout(join(dir, 'layout'));
  await makeLayers(dir);
  const layers = [pack(join(dir, 'lower'), { layout: 'plain' }), pack(join(dir, 'upper'))];
  const image = await createImage(layout, layers, { tag: 'one' });
  images.set(dir, image);
  return image;
}

export const operations: Readonly<Record<string, Operation>> = {
  mountOverlay: {
    prepare: (dir) => {
      mkdirSync(join(dir, 'lower'));
      writeFileSync(join(dir, 'lower/file'), 'lower');
    },
    perform: (dir) => {
      const [lowerdir, upperdir, workdir, target] = ['lower', 'upper', 'work', 'target'].map((name) => join(dir, name));
      return mountOverlay({ lowerdir, upperdir, workdir, target, create: true } as Parameters<typeof mountOverlay>[0]);
    },
    expectDone: (dir) => {
      writeFileSync(join(dir, 'target/file'), 'changed');
      assert.equal(readFileSync(join(dir, 'upper/file'), 'utf8'), 'changed');
    },
    expectWhole: (dir) => absent(...['upper', 'work', 'target'].map((name) => join(dir, name))),
    release: (dir) => unmount(join(dir, 'target')),
  },
  unmount: {
    prepare: async (dir) => {
      await operations['mountOverlay']?.prepare(dir);
      await operations['mountOverlay']?.perform(dir);
    },
    perform: (dir) => unmount(join(dir, 'target')),
    expectDone: (dir) => assert.ok(!isMounted(join(dir, 'target'))),
    expectWhole: (dir) => assert.equal(readFileSync(join(dir, 'target/file'), 'utf8'), 'lower'),
  },
  spawn: {
    prepare: (dir) => operations['unmount']?.prepare(dir),
    perform: async (dir) => {
      const child = await spawn('/bin/sh', ['-c', 'test "$(cat file)" = lower || exit 3'], {
        cwd: join(dir, 'target'),
        stdio: 'ignore',
        readonly: [join(dir, 'lower')],
      });
      const [code] = await once(child, 'exit');
      if (code !== 0) throw Object.assign(new Error(`the program ended with ${code}`), { isOfProgram: true });
    },
    expectDone: () => {},
    release: (dir) => unmount(join(dir, 'target')),
  },
  'merge by copy': merging('copy'),
  'merge by move': merging('move'),
  'squash to plain': folding(
    (dir, into) => squash({ lowerdir: [join(dir, 'upper'), join(dir, 'lower')] }, { into, plain: true }),
    'flat',
  ),
  squash: folding((dir, into) => squash({ upperdir: [join(dir, 'upper'), join(dir, 'lower')] }, { into }), 'squashed', [
    'gone',
    'removed',
  ]),
  apply: {
    prepare: async (dir) => {
      await archiveOf(dir);
    },
    perform: async (dir) => apply(await archiveOf(dir), join(dir, 'applied')),
    expectDone: (dir) => assert.deepEqual(names(join(dir, 'applied')), ['changed', 'd', 'gone', 'new', 'removed']),
    expectWhole: (dir) => {
      absent(join(dir, 'applied'));
      nothingTemporary(dir);
    },
  },
  pack: {
    prepare: makeLayers,
    perform: (dir) =>
      pipeline(
        pack({ upperdir: join(dir, 'upper'), lowerdir: [join(dir, 'lower')] }),
        createWriteStream(join(dir, 'out.tar')),
      ),
    expectDone: (dir) => apply(join(dir, 'out.tar'), join(dir, 'again')).then(() => {}),
  },
  prepare: onSnapshots(
    (snapshotter) => snapshotter.prepare('next', 'base'),
    ['active next', 'active work-key', 'committed base'],
  ),
  commit: onSnapshots(
    (snapshotter) => snapshotter.commit('work-key', { name: 'top' }),
    ['committed base', 'committed top'],
  ),
  remove: onSnapshots((snapshotter) => snapshotter.remove('work-key'), ['committed base']),
  notSynced,
  cleanup: onSnapshots((snapshotter) => snapshotter.cleanup(), ['active work-key', 'committed base']),
  unpack: {
    prepare: async (dir) => {
      await makeImage(dir);
      await openStore(dir);
    },
    perform: (dir) => unpack(images.get(dir) as Image, snapshotterOf(dir)),
    expectDone: async (dir) => {
      const snapshotter = snapshotterOf(dir);
      await snapshotter.view('look', (images.get(dir) as Image).layers.at(-1)?.chainId);
      const found = await snapshotter.mounts('look').then((mounts) => withTempMount(mounts, names));
      await snapshotter.remove('look');
      assert.deepEqual(found, ['changed', 'd', 'kept', 'new']);
    },
    release: closeStore,
  },
  createImage: {
    prepare: makeLayers,
    perform: async (dir) => {
      const layout = await createLayout(join(dir, 'layout'));
      const layers = ['lower', 'upper'].map((name) => pack(join(dir, name), { layout: 'plain' }));
      return createImage(layout, layers, { tag: 'one' });
    },
    expectDone: async (dir) => {
      assert.equal((await (await openLayout(join(dir, 'layout'))).image('one')).layers.length, 2);
    },
  },
  commitImage: {
    prepare: async (dir) => {
      const image = await makeImage(dir);
      const snapshotter = await openStore(dir);
      await unpack(image, snapshotter);
      const mounts = await snapshotter.prepare('work', image.layers.at(-1)?.chainId);
      await withTempMount(mounts, (path) => writeFileSync(join(path, 'third'), 'third'));
    },
    perform: (dir) => commitImage(images.get(dir) as Image, snapshotterOf(dir), 'work', { tag: 'two' }),
    expectDone: async (dir) => {
      const image = await (await openLayout(join(dir, 'layout'))).image('two');
      assert.equal(image.layers.length, 3);
    },
    expectWhole: async (dir) => {
      assert.equal((await (await openLayout(join(dir, 'layout'))).image('one')).layers.length, 2);
      assert.ok((await snapshotterOf(dir).stat('work')).kind === 'active');
    },
    release: closeStore,
  },
};

/** Removes the directory of a try. */
export const removeAll = (dir: string): void => rmSync(dir, { recursive: true, force: true });
