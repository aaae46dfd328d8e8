/** The mounts of snapshots, performed and taken back. */
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { bindSync, listMountsSync, unmountSync } from 'overlayfs';
import {
  mountAll,
  mountAllSync,
  type SnapshotMount,
  Snapshotter,
  unmountAll,
  unmountAllSync,
  withTempMount,
} from 'overlayfs/snapshots';
import { countDescriptors, makeTree, mountsBelow, mountTest, scratch } from '../support/index.js';
import { cleanUp } from './verbs.js';

async function open(
  t: ExecutionContext,
  kind: 'tmpfs' | 'disk' = 'tmpfs',
): Promise<{ dir: string; target: string; snapshotter: Snapshotter }> {
  const dir = scratch(t, kind);
  const snapshotter = await Snapshotter.open(join(dir, 'root'));
  t.teardown(() => snapshotter.close());
  const target = join(dir, 'target');
  mkdirSync(target);
  return { dir, target, snapshotter };
}

/** Commits a layer with one file of its name. */
async function commitLayer(snapshotter: Snapshotter, target: string, name: string, parent?: string): Promise<void> {
  const mounts = await snapshotter.prepare(`making ${name}`, parent);
  await mountAll(mounts, target);
  writeFileSync(join(target, name), name);
  await unmountAll(mounts, target);
  await snapshotter.commit(`making ${name}`, { name });
}

mountTest('layers are made through their mounts, and a view shows them all', async (t) => {
  const { target, snapshotter } = await open(t);
  await commitLayer(snapshotter, target, 'a');
  await commitLayer(snapshotter, target, 'b', 'a');
  await commitLayer(snapshotter, target, 'c', 'b');
  t.deepEqual(readdirSync(target), []);
  const mounts = await snapshotter.view('view', 'c');
  const [mount] = mountAllSync(mounts, target);
  t.deepEqual(readdirSync(target).sort(), ['a', 'b', 'c']);
  t.throws(() => writeFileSync(join(target, 'new'), ''), { code: 'EROFS' });
  t.is(mount?.path, target);
  unmountAllSync(mounts, target);
  unmountAllSync(mounts, target);
  t.deepEqual(readdirSync(target), []);
});

mountTest('a view of one layer is a read-only bind', async (t) => {
  const { target, snapshotter } = await open(t);
  await commitLayer(snapshotter, target, 'a');
  const mounts = await snapshotter.view('view', 'a');
  await mountAll(mounts, target);
  t.throws(() => writeFileSync(join(target, 'a'), 'changed'), { code: 'EROFS' });
  await unmountAll(mounts, target);
});

mountTest('options of mount(8): attributes, and their opposites', async (t) => {
  const { dir, target } = await open(t);
  makeTree(dir, { 'source/file': 'x' });
  const options = ['rbind', 'ro', 'nosuid', 'nodev', 'noexec', 'noatime', 'rw', 'suid'];
  mountAllSync([{ type: 'bind', source: join(dir, 'source'), options }], target);
  const [entry] = listMountsSync({ target });
  t.like(entry?.flags, { readonly: false, nosuid: false, nodev: true, noexec: true, atime: 'noatime' });
  unmountSync(target);
});

mountTest('several mounts in order, below each other and over each other', async (t) => {
  const { dir, target } = await open(t);
  makeTree(dir, { 'one/sub/': '', 'one/of-one': '', 'two/of-two': '', 'three/of-three': '' });
  const bind = (name: string, more: object = {}): SnapshotMount => ({
    type: 'bind',
    source: join(dir, name),
    options: ['rbind', 'rw'],
    ...more,
  });
  const mounts = [bind('one'), bind('two', { target: '/sub' }), bind('three', { target: 'sub' })];
  await mountAll(mounts, target);
  t.deepEqual(readdirSync(join(target, 'sub')), ['of-three']);
  t.is(mountsBelow(target).length, 3);
  await unmountAll(mounts, target);
  t.is(mountsBelow(target).length, 0);
});

mountTest('a mount that fails takes the others back', async (t) => {
  const { dir, target } = await open(t);
  makeTree(dir, { 'one/': '', 'two/': '' });
  const before = countDescriptors();
  const good = { type: 'bind', source: join(dir, 'one'), options: ['bind'] };
  const bad = { type: 'bind', source: join(dir, 'none'), options: ['bind'] };
  await t.throwsAsync(() => mountAll([good, good, bad], target), { code: 'ENOENT' });
  t.throws(() => mountAllSync([good, good, bad], target), { code: 'ENOENT' });
  t.is(mountsBelow(target).length, 0);
  t.is(countDescriptors(), before);
});

mountTest('a target of a mount cannot lead out of the target', async (t) => {
  const { dir, target } = await open(t);
  makeTree(dir, { 'one/': '', 'outside/sub/': '' });
  symlinkSync('../outside', join(target, 'link'));
  for (const inside of ['../outside', 'link/sub', 'a/../../outside']) {
    const mount = { type: 'bind', source: join(dir, 'one'), target: inside, options: ['bind'] };
    await t.throwsAsync(() => mountAll([mount], target), { code: 'ERR_INVALID_ARG_VALUE' });
  }
  t.is(mountsBelow(dir).length, 1);
});

test('what is no mount of a snapshot is refused before anything is mounted', async (t) => {
  const wrong: Readonly<Record<string, unknown>> = {
    'another type': [{ type: 'ext4', source: '/dev/null', options: [] }],
    'an unknown option of a bind': [{ type: 'bind', source: '/', options: ['rbind', 'size=3'] }],
    'an unknown option of an overlay': [{ type: 'overlay', source: 'overlay', options: ['lowerdir=/a:/b', 'what=3'] }],
    'half a map': [{ type: 'bind', source: '/', options: ['rbind', 'uidmap=0:1:1'] }],
    'options that are no list': [{ type: 'bind', source: '/', options: 'rbind' }],
    'no list': {},
    'no object': [undefined],
  };
  for (const [what, mounts] of Object.entries(wrong)) {
    const error = await t.throwsAsync(() => mountAll(mounts as SnapshotMount[], '/nowhere'), undefined, what);
    t.regex((error as NodeJS.ErrnoException).code ?? '', /^ERR_INVALID_ARG_/, what);
  }
});

mountTest('uidmap and gidmap show other owners', { needs: 'idmapped layers' }, async (t) => {
  const { target, snapshotter } = await open(t, 'disk');
  await commitLayer(snapshotter, target, 'a');
  await commitLayer(snapshotter, target, 'b', 'a');
  const labels = {
    'containerd.io/snapshot/uidmapping': '0:100000:65536',
    'containerd.io/snapshot/gidmapping': '0:200000:65536',
  };
  const mounts = await snapshotter.prepare('mapped', 'b', { labels });
  await mountAll(mounts, target);
  for (const path of [target, join(target, 'a'), join(target, 'b')]) {
    const { uid, gid } = statSync(path);
    t.deepEqual([uid, gid], [100000, 200000], path);
  }
  await unmountAll(mounts, target);
  const bound = await snapshotter.view('view', 'a', { labels });
  await mountAll(bound, target);
  const { uid, gid } = statSync(join(target, 'a'));
  t.deepEqual([uid, gid], [100000, 200000]);
  await unmountAll(bound, target);
});

mountTest('withTempMount: the path is there during the call only, and nothing is left', async (t) => {
  const { dir, target, snapshotter } = await open(t);
  await commitLayer(snapshotter, target, 'a');
  const [table, descriptors] = [mountsBelow('/').length, countDescriptors()];
  for (const mounts of [await snapshotter.prepare('active', 'a'), await snapshotter.view('view', 'a')]) {
    let path = '';
    const read = await withTempMount(mounts, (place) => {
      path = place;
      t.is(mountsBelow('/').length, table, 'nobody sees it');
      return readFileSync(join(place, 'a'), 'utf8');
    });
    t.is(read, 'a');
    t.false(existsSync(join(path, 'a')));
    await t.throwsAsync(() => withTempMount(mounts, () => Promise.reject(new Error('mine'))), { message: 'mine' });
  }
  const two = [
    { type: 'bind', source: join(dir, 'root/snapshots/1/fs'), options: ['bind'] },
    { type: 'bind', source: join(dir, 'root/snapshots/1/fs'), options: ['bind'] },
  ];
  let place = '';
  await withTempMount(two, (path) => {
    place = path;
    t.deepEqual(readdirSync(path), ['a']);
  });
  t.false(existsSync(place));
  t.is(mountsBelow('/').length, table);
  // Garbage collection may have closed what an earlier test forgot.
  t.true(countDescriptors() <= descriptors);
});

mountTest('withTempMount leaves volatile out', async (t) => {
  const dir = scratch(t);
  const snapshotter = await Snapshotter.open(join(dir, 'root'), { mountOptions: ['volatile'] });
  t.teardown(() => snapshotter.close());
  makeTree(dir, { 'target/': '' });
  await commitLayer(snapshotter, join(dir, 'target'), 'a');
  const mounts = await snapshotter.prepare('active', 'a');
  t.true(mounts[0]?.options.includes('volatile'));
  for (let i = 0; i < 2; i++) await withTempMount(mounts, (path) => writeFileSync(join(path, 'new'), ''));
  t.false(existsSync(join(dir, 'root/snapshots/2/work/work/incompat')));
});

mountTest('a temporary mount that cannot be unmounted is not removed', async (t) => {
  const { dir, target, snapshotter } = await open(t);
  await commitLayer(snapshotter, target, 'a');
  const bind = { type: 'bind', source: join(dir, 'root/snapshots/1/fs'), options: ['bind'] };
  let place = '';
  let file = -1;
  await t.throwsAsync(
    withTempMount([bind, bind], (path) => {
      place = path;
      file = openSync(join(path, 'a'), 'r');
    }),
    { code: 'EBUSY' },
  );
  t.is(readFileSync(join(dir, 'root/snapshots/1/fs/a'), 'utf8'), 'a');
  closeSync(file);
  await unmountAll([bind], place);
  rmdirSync(place);
});

// ------------------------------------------------------------------------------- removal of what is mounted

mountTest('remove leaves the directory of a snapshot that is mounted to a later cleanup', async (t) => {
  const { dir, target, snapshotter } = await open(t);
  await commitLayer(snapshotter, target, 'a');
  const mounts = await snapshotter.prepare('active', 'a');
  await mountAll(mounts, target);
  writeFileSync(join(target, 'mine'), 'still here');
  await snapshotter.remove('active');
  await t.throwsAsync(() => snapshotter.stat('active'), { code: 'ERR_SNAPSHOT_NOT_FOUND' });
  t.is(readFileSync(join(target, 'mine'), 'utf8'), 'still here');
  const { removed, kept } = await snapshotter.cleanup();
  t.deepEqual(removed, []);
  t.like(kept, [{ path: join(dir, 'root/snapshots/2') }]);
  t.like(kept[0]?.error, { reason: 'layer-in-use' });
  t.is(readFileSync(join(target, 'mine'), 'utf8'), 'still here');
  await unmountAll(mounts, target);
  t.deepEqual(await cleanUp(snapshotter), { removed: [2], kept: [] });
  t.deepEqual(readdirSync(join(dir, 'root/snapshots')), ['1']);
});

mountTest('remove does not enter a mount inside a snapshot', async (t) => {
  const { dir, snapshotter } = await open(t);
  makeTree(dir, { 'precious/file': 'x' });
  await snapshotter.prepare('key');
  const inside = join(dir, 'root/snapshots/1/fs/inside');
  mkdirSync(inside);
  bindSync(join(dir, 'precious'), inside);
  await snapshotter.remove('key');
  t.is((await snapshotter.cleanup()).kept.length, 1);
  t.is(readFileSync(join(dir, 'precious/file'), 'utf8'), 'x');
  unmountSync(inside);
  t.deepEqual((await snapshotter.cleanup()).kept, []);
  t.is(readFileSync(join(dir, 'precious/file'), 'utf8'), 'x');
});
