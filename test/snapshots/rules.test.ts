/** containerd's rules for the verbs of a snapshotter: one test a rule. */
import { execFileSync } from 'node:child_process';
import { existsSync, lchownSync, linkSync, lstatSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { SnapshotError, type SnapshotInfo, Snapshotter, type SnapshotterOptions } from 'overlayfs/snapshots';
import { scaled, scratch } from '../support/index.js';
import { cleanUp } from './verbs.js';

interface Fixture {
  readonly root: string;
  readonly snapshotter: Snapshotter;
}

async function open(t: ExecutionContext, options?: SnapshotterOptions): Promise<Fixture> {
  const root = join(scratch(t), 'root');
  const snapshotter = await Snapshotter.open(root, options);
  t.teardown(() => snapshotter.close());
  return { root, snapshotter };
}

/** Makes committed snapshots, each on the one before. */
async function makeChain(snapshotter: Snapshotter, ...names: string[]): Promise<void> {
  let parent = '';
  for (const name of names) {
    await snapshotter.prepare(`preparing ${name}`, parent);
    await snapshotter.commit(`preparing ${name}`, { name });
    parent = name;
  }
}

async function refuses(t: ExecutionContext, run: () => Promise<unknown>, code: string, key?: string): Promise<void> {
  const error = await t.throwsAsync(run, { instanceOf: SnapshotError });
  t.is(error?.code as string, `ERR_SNAPSHOT_${code}`);
  if (key !== undefined) t.is(error?.key, key);
  t.regex(error?.message ?? '', /\. .+\.$/);
  t.truthy(error?.hint);
}

async function namesOf(walk: AsyncIterable<SnapshotInfo>): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of walk) names.push(name);
  return names;
}

const umask = process.umask();
const modeOf = (path: string): number => statSync(path).mode & 0o7777;

test('a snapshot that others remove meanwhile is not found', async (t) => {
  const { root, snapshotter } = await open(t);
  const other = await Snapshotter.open(root);
  t.teardown(() => other.close());
  const codes = new Set<unknown>();
  for (let i = 0; i < scaled(500); i++) {
    await snapshotter.prepare('key');
    const removal = other.remove('key');
    const verbs = [snapshotter.usage('key'), snapshotter.commit('key', { name: 'name' }), snapshotter.usage('key')];
    for (const { reason } of (await Promise.allSettled(verbs)) as PromiseRejectedResult[]) codes.add(reason?.code);
    await removal.catch(() => snapshotter.remove('name'));
  }
  codes.delete(undefined);
  t.deepEqual([...codes], ['ERR_SNAPSHOT_NOT_FOUND']);
});

// ---------------------------------------------------------------------------------------------------- creating

for (const verb of ['prepare', 'view'] as const) {
  test(`${verb}: a missing parent is not found`, async (t) => {
    const { snapshotter } = await open(t);
    await refuses(t, () => snapshotter[verb]('key', 'none'), 'NOT_FOUND', 'none');
  });

  test(`${verb}: a parent that is not committed is an invalid argument`, async (t) => {
    const { snapshotter } = await open(t);
    await snapshotter.prepare('active');
    await snapshotter.view('view');
    for (const parent of ['active', 'view']) {
      await refuses(t, () => snapshotter[verb]('key', parent), 'INVALID_ARGUMENT', parent);
    }
  });

  test(`${verb}: a key that exists is refused, whatever its kind`, async (t) => {
    const { root, snapshotter } = await open(t);
    await makeChain(snapshotter, 'committed');
    await snapshotter.prepare('active');
    await snapshotter.view('view');
    const before = readdirSync(join(root, 'snapshots'));
    for (const key of ['active', 'view', 'committed']) {
      await refuses(t, () => snapshotter[verb](key), 'ALREADY_EXISTS', key);
    }
    t.deepEqual(readdirSync(join(root, 'snapshots')), before);
  });

  test(`${verb}: a parent is checked before the key`, async (t) => {
    const { snapshotter } = await open(t);
    await snapshotter.prepare('active');
    await refuses(t, () => snapshotter[verb]('active', 'none'), 'NOT_FOUND');
    await refuses(t, () => snapshotter[verb]('active', 'active'), 'INVALID_ARGUMENT');
  });
}

test('prepare: numbers count from 1, and are not used again', async (t) => {
  const { root, snapshotter } = await open(t);
  await snapshotter.prepare('a');
  await snapshotter.prepare('b');
  await snapshotter.remove('b');
  await snapshotter.prepare('c');
  t.deepEqual((await snapshotter.stat('a')).id, 1);
  t.deepEqual((await snapshotter.stat('c')).id, 3);
  t.deepEqual(readdirSync(join(root, 'snapshots')).sort(), ['1', '3']);
});

test('prepare: directories have the modes that containerd gives them', async (t) => {
  const { root, snapshotter } = await open(t);
  await snapshotter.prepare('active');
  await snapshotter.view('view');
  t.is(modeOf(root), 0o700);
  t.is(modeOf(join(root, 'snapshots')), 0o700);
  t.is(modeOf(join(root, 'snapshots/1')), 0o700);
  t.is(modeOf(join(root, 'snapshots/1/fs')), 0o755 & ~umask);
  t.is(modeOf(join(root, 'snapshots/1/work')), 0o711 & ~umask);
  t.is(modeOf(join(root, 'snapshots/2/fs')), 0o755 & ~umask);
  t.false(existsSync(join(root, 'snapshots/2/work')));
});

test("prepare: the root directory of the files has its parent's owner", async (t) => {
  const { root, snapshotter } = await open(t);
  await snapshotter.prepare('a');
  lchownSync(join(root, 'snapshots/1/fs'), 123, 456);
  await snapshotter.commit('a', { name: 'A' });
  await snapshotter.prepare('b', 'A');
  const { uid, gid } = lstatSync(join(root, 'snapshots/2/fs'));
  t.deepEqual([uid, gid], [123, 456]);
});

test('prepare: labels with id maps give the files their owner, and the mounts their options', async (t) => {
  const { root, snapshotter } = await open(t, { remapIds: true });
  await makeChain(snapshotter, 'base');
  const labels = {
    'containerd.io/snapshot/uidmapping': '0:100000:65536',
    'containerd.io/snapshot/gidmapping': '5:7:2,0:200000:65536',
  };
  const mapping = ['uidmap=0:100000:65536', 'gidmap=5:7:2,0:200000:65536'];
  const [bound] = await snapshotter.prepare('alone', '', { labels });
  t.deepEqual(bound?.options, [...mapping, 'rw', 'rbind']);
  const [overlay] = await snapshotter.prepare('child', 'base', { labels });
  t.deepEqual(overlay?.options.slice(0, 3), [...mapping, `workdir=${root}/snapshots/3/work`]);
  for (const id of [2, 3]) {
    const { uid, gid } = lstatSync(join(root, `snapshots/${id}/fs`));
    t.deepEqual([uid, gid], [100000, 200000]);
  }
});

test('prepare: without remapIds, labels with id maps give the owner only', async (t) => {
  const { root, snapshotter } = await open(t, { remapIds: false });
  const labels = { 'containerd.io/snapshot/uidmapping': '0:7:1' };
  const [bound] = await snapshotter.prepare('alone', '', { labels });
  t.deepEqual(bound?.options, ['rw', 'rbind']);
  const { uid, gid } = lstatSync(join(root, 'snapshots/1/fs'));
  t.deepEqual([uid, gid], [7, 0]);
});

for (const value of ['x', '0:1', '1:2:3', '0:1:99999999999', '-1:0:1', '0:1:0']) {
  test(`prepare: the id map '${value}' is an invalid argument`, async (t) => {
    const { root, snapshotter } = await open(t);
    const labels = { 'containerd.io/snapshot/uidmapping': value };
    await refuses(t, () => snapshotter.prepare('key', '', { labels }), 'INVALID_ARGUMENT');
    t.deepEqual(readdirSync(join(root, 'snapshots')), []);
  });
}

// ------------------------------------------------------------------------------------------------------ mounts

test('mounts: an active snapshot without a parent is a writable bind', async (t) => {
  const { root, snapshotter } = await open(t);
  const mounts = [{ type: 'bind', source: `${root}/snapshots/1/fs`, options: ['rw', 'rbind'] }];
  t.deepEqual(await snapshotter.prepare('key'), mounts);
  t.deepEqual(await snapshotter.mounts('key'), mounts);
});

test('mounts: a view without a parent is a read-only bind of its own directory', async (t) => {
  const { root, snapshotter } = await open(t);
  t.deepEqual(await snapshotter.view('key'), [
    { type: 'bind', source: `${root}/snapshots/1/fs`, options: ['ro', 'rbind'] },
  ]);
});

test('mounts: a view of one parent is a read-only bind of the parent', async (t) => {
  const { root, snapshotter } = await open(t);
  await makeChain(snapshotter, 'A');
  t.deepEqual(await snapshotter.view('key', 'A'), [
    { type: 'bind', source: `${root}/snapshots/1/fs`, options: ['ro', 'rbind'] },
  ]);
});

test('mounts: an overlay has workdir, upperdir, lowerdir with the immediate parent first, then the configured options', async (t) => {
  const { root, snapshotter } = await open(t, { mountOptions: ['volatile', 'metacopy=off'] });
  await makeChain(snapshotter, 'A', 'B', 'C');
  const directory = (id: number, name = 'fs') => `${root}/snapshots/${id}/${name}`;
  const lowerdir = `lowerdir=${[3, 2, 1].map((id) => directory(id)).join(':')}`;
  const last = [
    'volatile',
    'metacopy=off',
    ...(existsSync('/sys/module/overlay/parameters/index') ? ['index=off'] : []),
  ];
  t.deepEqual(await snapshotter.prepare('active', 'C'), [
    {
      type: 'overlay',
      source: 'overlay',
      options: [`workdir=${directory(4, 'work')}`, `upperdir=${directory(4)}`, lowerdir, ...last],
    },
  ]);
  t.deepEqual(await snapshotter.view('view', 'C'), [
    { type: 'overlay', source: 'overlay', options: [lowerdir, ...last] },
  ]);
});

test('mounts: index is not added where it is configured', async (t) => {
  const { snapshotter } = await open(t, { mountOptions: ['index=on'] });
  await makeChain(snapshotter, 'A', 'B');
  const [mount] = await snapshotter.view('view', 'B');
  t.deepEqual(mount?.options.slice(1), ['index=on']);
});

test('mounts: a committed snapshot has none: failed precondition', async (t) => {
  const { snapshotter } = await open(t);
  await makeChain(snapshotter, 'A');
  await refuses(t, () => snapshotter.mounts('A'), 'FAILED_PRECONDITION', 'A');
  await refuses(t, () => snapshotter.mounts('none'), 'NOT_FOUND', 'none');
});

// ------------------------------------------------------------------------------------------------------ commit

test('commit: the key goes, the number stays, labels are replaced, both times are now', async (t) => {
  const { snapshotter } = await open(t);
  await snapshotter.prepare('key', '', { labels: { a: '1', b: '2' } });
  const before = await snapshotter.stat('key');
  await snapshotter.commit('key', { name: 'name', labels: { c: '3' } });
  await refuses(t, () => snapshotter.stat('key'), 'NOT_FOUND', 'key');
  const { created, createdNs, updated, updatedNs, ...rest } = await snapshotter.stat('name');
  t.deepEqual(rest, { name: 'name', parent: '', kind: 'committed', labels: { c: '3' }, id: 1 });
  t.is(createdNs, updatedNs);
  t.deepEqual(created, updated);
  t.is(BigInt(created.getTime()), BigInt(createdNs) / 1_000_000n);
  t.true(BigInt(createdNs) > BigInt(before.createdNs));
});

test('commit: a missing key is not found, even if the name exists', async (t) => {
  const { snapshotter } = await open(t);
  await makeChain(snapshotter, 'A');
  await refuses(t, () => snapshotter.commit('none', { name: 'B' }), 'NOT_FOUND', 'none');
  await refuses(t, () => snapshotter.commit('none', { name: 'A' }), 'NOT_FOUND', 'none');
});

test('commit: a name that exists is refused, also if it is the key itself', async (t) => {
  const { snapshotter } = await open(t);
  await makeChain(snapshotter, 'A');
  await snapshotter.prepare('key');
  await refuses(t, () => snapshotter.commit('key', { name: 'A' }), 'ALREADY_EXISTS', 'A');
  await refuses(t, () => snapshotter.commit('key', { name: 'key' }), 'ALREADY_EXISTS', 'key');
  t.is((await snapshotter.stat('key')).kind, 'active');
});

test('commit: a snapshot that is not active is a failed precondition', async (t) => {
  const { snapshotter } = await open(t);
  await makeChain(snapshotter, 'A');
  await snapshotter.view('view', 'A');
  for (const key of ['A', 'view']) {
    await refuses(t, () => snapshotter.commit(key, { name: 'B' }), 'FAILED_PRECONDITION', key);
  }
});

test('commit: a snapshot without a parent can get one', async (t) => {
  const { root, snapshotter } = await open(t);
  await makeChain(snapshotter, 'A');
  await snapshotter.prepare('key');
  await snapshotter.commit('key', { name: 'B', parent: 'A' });
  t.is((await snapshotter.stat('B')).parent, 'A');
  await refuses(t, () => snapshotter.remove('A'), 'FAILED_PRECONDITION', 'A');
  const [mount] = await snapshotter.view('view', 'B');
  t.is(mount?.options[0], `lowerdir=${root}/snapshots/2/fs:${root}/snapshots/1/fs`);
});

test('commit: the parent that a snapshot has may be named', async (t) => {
  const { snapshotter } = await open(t);
  await makeChain(snapshotter, 'A');
  await snapshotter.prepare('key', 'A');
  await snapshotter.commit('key', { name: 'B', parent: 'A' });
  t.is((await snapshotter.stat('B')).parent, 'A');
});

test('commit: another parent is an invalid argument', async (t) => {
  const { snapshotter } = await open(t);
  await makeChain(snapshotter, 'A', 'B');
  await snapshotter.prepare('key', 'A');
  await refuses(t, () => snapshotter.commit('key', { name: 'C', parent: 'B' }), 'INVALID_ARGUMENT', 'key');
});

test('commit: a new parent that is missing is not found; one that is not committed is a failed precondition', async (t) => {
  const { snapshotter } = await open(t);
  await snapshotter.prepare('active');
  await snapshotter.prepare('key');
  await refuses(t, () => snapshotter.commit('key', { name: 'C', parent: 'none' }), 'NOT_FOUND', 'none');
  await refuses(t, () => snapshotter.commit('key', { name: 'C', parent: 'active' }), 'FAILED_PRECONDITION', 'active');
  t.is((await snapshotter.stat('key')).kind, 'active');
});

// ------------------------------------------------------------------------------------------------------ remove

test('remove: a missing key is not found; one with children is a failed precondition', async (t) => {
  const { snapshotter } = await open(t);
  await makeChain(snapshotter, 'A', 'B');
  await snapshotter.view('view', 'B');
  await refuses(t, () => snapshotter.remove('none'), 'NOT_FOUND', 'none');
  await refuses(t, () => snapshotter.remove('A'), 'FAILED_PRECONDITION', 'A');
  await refuses(t, () => snapshotter.remove('B'), 'FAILED_PRECONDITION', 'B');
  for (const key of ['view', 'B', 'A']) await snapshotter.remove(key);
  t.deepEqual(await namesOf(snapshotter.list()), []);
});

test('remove: the directory goes, and the key is free', async (t) => {
  const { root, snapshotter } = await open(t);
  await snapshotter.prepare('key');
  writeFileSync(join(root, 'snapshots/1/fs/file'), 'text');
  await snapshotter.remove('key');
  t.deepEqual(readdirSync(join(root, 'snapshots')), []);
  t.deepEqual(readdirSync(join(root, 'removed')), []);
  await snapshotter.prepare('key');
  t.is((await snapshotter.stat('key')).id, 2);
});

test('remove: with asyncRemove the directory stays until cleanup', async (t) => {
  const { root, snapshotter } = await open(t, { asyncRemove: true });
  await snapshotter.prepare('key');
  await snapshotter.prepare('other');
  await snapshotter.remove('key');
  await snapshotter.prepare('key');
  t.deepEqual(readdirSync(join(root, 'snapshots')).sort(), ['1', '2', '3']);
  t.deepEqual(await cleanUp(snapshotter), { removed: [1], kept: [] });
  t.deepEqual(readdirSync(join(root, 'snapshots')).sort(), ['2', '3']);
  t.deepEqual(readdirSync(join(root, 'removed')), []);
  t.deepEqual(await cleanUp(snapshotter), { removed: [], kept: [] });
});

test('cleanup: what could not be removed is named, until it can', async (t) => {
  const root = join(scratch(t, 'disk'), 'root');
  const snapshotter = await Snapshotter.open(root);
  t.teardown(() => snapshotter.close());
  await snapshotter.prepare('key');
  writeFileSync(join(root, 'snapshots/1/fs/file'), '');
  execFileSync('chattr', ['+i', join(root, 'snapshots/1/fs/file')]);
  await snapshotter.remove('key');
  for (let i = 0; i < 2; i++) {
    const { removed, kept } = await snapshotter.cleanup();
    t.deepEqual(removed, []);
    t.like(kept, [{ path: join(root, 'removed/1'), error: { reason: 'permission-denied' } }]);
  }
  execFileSync('chattr', ['-i', join(root, 'removed/1/fs/file')]);
  t.deepEqual(await cleanUp(snapshotter), { removed: [1], kept: [] });
  t.deepEqual(await cleanUp(snapshotter), { removed: [], kept: [] });
});

// --------------------------------------------------------------------------------------------------- setLabels

test('setLabels: sets the labels that are given, and an empty value deletes one', async (t) => {
  const { snapshotter } = await open(t);
  await snapshotter.prepare('key', '', { labels: { a: '1', b: '2', 'c.d': '3', e: '4' } });
  const { labels } = await snapshotter.setLabels('key', { a: '7', b: '', 'c.d': '', x: '8' });
  t.deepEqual(labels, { a: '7', e: '4', x: '8' });
  t.deepEqual((await snapshotter.stat('key')).labels, labels);
  t.deepEqual((await snapshotter.setLabels('key', { c: '3' }, { replace: true })).labels, { c: '3' });
  await refuses(t, () => snapshotter.setLabels('none', {}), 'NOT_FOUND', 'none');
});

test('setLabels: created and kind stay, updated is now; a record passes JSON', async (t) => {
  const { snapshotter } = await open(t);
  await snapshotter.prepare('key');
  const before = await snapshotter.stat('key');
  const after = await snapshotter.setLabels('key', { a: '1' });
  t.true(BigInt(after.updatedNs) > BigInt(before.updatedNs));
  t.deepEqual({ ...after, labels: {}, updated: before.updated, updatedNs: before.updatedNs }, before);
  t.like(JSON.parse(JSON.stringify(after)), { createdNs: after.createdNs, created: after.created.toISOString() });
});

test('labels: name and value have at most 4,096 bytes together; an empty value is no label', async (t) => {
  const { snapshotter } = await open(t);
  const most = { ä: 'x'.repeat(4094) };
  await snapshotter.prepare('key', '', { labels: { ...most, none: '' } });
  t.deepEqual((await snapshotter.stat('key')).labels, most);
  const more = { ä: 'x'.repeat(4095) };
  await refuses(t, () => snapshotter.prepare('other', '', { labels: more }), 'INVALID_ARGUMENT');
  await refuses(t, () => snapshotter.commit('key', { name: 'other', labels: more }), 'INVALID_ARGUMENT');
  await refuses(t, () => snapshotter.setLabels('key', more, { replace: true }), 'INVALID_ARGUMENT');
  await snapshotter.prepare('odd', '', { labels: JSON.parse('{"__proto__": "a", "constructor": "b"}') });
  t.deepEqual(Object.entries((await snapshotter.stat('odd')).labels), [
    ['__proto__', 'a'],
    ['constructor', 'b'],
  ]);
});

test('labels: with upperdirLabel each info says where the upperdir is', async (t) => {
  const { root, snapshotter } = await open(t, { upperdirLabel: true });
  await snapshotter.prepare('key', '', { labels: { a: '1' } });
  const labels = { a: '1', 'containerd.io/snapshot/overlay.upperdir': `${root}/snapshots/1/fs` };
  t.deepEqual((await snapshotter.stat('key')).labels, labels);
  for await (const info of snapshotter.list()) t.deepEqual(info.labels, labels);
  t.deepEqual((await snapshotter.setLabels('key', { a: '1' }, { replace: true })).labels, labels);
});

// ------------------------------------------------------------------------------------------------------- usage

test('usage: an active snapshot is measured, each file once; a committed one keeps what it had; a view has none', async (t) => {
  const { root, snapshotter } = await open(t);
  await snapshotter.prepare('key');
  const fs = join(root, 'snapshots/1/fs');
  t.is((await snapshotter.usage('key')).inodes, 1);
  writeFileSync(join(fs, 'file'), Buffer.alloc(100_000, 1));
  linkSync(join(fs, 'file'), join(fs, 'link'));
  const used = await snapshotter.usage('key');
  t.is(used.inodes, 2);
  t.is(used.bytes, 512 * (lstatSync(fs).blocks + lstatSync(join(fs, 'file')).blocks));
  await snapshotter.commit('key', { name: 'name' });
  writeFileSync(join(fs, 'another'), 'x');
  t.deepEqual(await snapshotter.usage('name'), used);
  await snapshotter.view('view', 'name');
  t.deepEqual(await snapshotter.usage('view'), { bytes: 0, inodes: 0 });
  await refuses(t, () => snapshotter.usage('none'), 'NOT_FOUND', 'none');
});

// -------------------------------------------------------------------------------------------------------- walk

const filters: Readonly<Record<string, string[]>> = {
  '': ['A', 'B', 'active', 'view'],
  'name==A': ['A'],
  'name=="A"': ['A'],
  "name=='A'": [],
  ' name == "A", kind ==committed': ['A'],
  'name=="\\x41"': ['A'],
  'name=="\\101"': ['A'],
  'labels.utf8=="\\xc3\\xbc"': ['A'],
  'name~=/^\\x41$/': ['A'],
  'labels.dot~=/^a\\\\.b$/': ['A'],
  'name!=A': ['B', 'active', 'view'],
  'name~=^[AB]$': ['A', 'B'],
  'name~=/^[AB]$/': ['A', 'B'],
  'name~=|^a.tive|': ['active'],
  'name~=(?i)^a$': ['A'],
  'kind==active': ['active'],
  'kind==view': ['view'],
  'kind==committed': ['A', 'B'],
  'kind!=committed': ['active', 'view'],
  'kind==Committed': [],
  'parent==A': ['B'],
  'parent!=A': ['A', 'active', 'view'],
  'parent==""': ['A'],
  parent: ['A', 'B', 'active', 'view'],
  'parent==B,kind==view': ['view'],
  'labels.plain': ['A'],
  'labels.plain==1': ['A'],
  'labels.plain!=1': ['B', 'active', 'view'],
  'labels.plain~=^$': ['B', 'active', 'view'],
  'labels."with/slash.and.dots"==x': ['B'],
  'labels.dots.in.name==y': ['B'],
  'labels."quoted \\"name\\""=="a,b c"': ['active'],
  'labels.none': [],
  unknown: [],
  'unknown!=x': ['A', 'B', 'active', 'view'],
};

for (const [filter, expected] of Object.entries(filters)) {
  test(`walk: the filter ${JSON.stringify(filter)}`, async (t) => {
    const { snapshotter } = await open(t);
    await snapshotter.prepare('a');
    await snapshotter.commit('a', { name: 'A', labels: { plain: '1', utf8: 'ü', dot: 'a.b' } });
    await snapshotter.prepare('b', 'A');
    await snapshotter.commit('b', { name: 'B', labels: { 'with/slash.and.dots': 'x', 'dots.in.name': 'y' } });
    await snapshotter.prepare('active', 'B', { labels: { 'quoted "name"': 'a,b c' } });
    await snapshotter.view('view', 'B');
    t.deepEqual(await namesOf(snapshotter.list(filter)), expected);
  });
}

test('walk: one of several filters has to match', async (t) => {
  const { snapshotter } = await open(t);
  await makeChain(snapshotter, 'A', 'B');
  await snapshotter.view('view', 'B');
  t.deepEqual(await namesOf(snapshotter.list(['kind==view', 'name==A,kind==committed', 'name==B,kind==view'])), [
    'A',
    'view',
  ]);
});

for (const filter of [
  '==',
  'name=',
  'name=A',
  'name==',
  'name==a b',
  'name=="a',
  ',',
  'name==a,',
  'name~=(',
  'a..b',
  'name=="\\q"',
  'name~=/\\d/',
  'name=="\\400"',
  'name=="A" ',
  'name==/A/',
  "labels.'a.b'",
  'name==a\0',
  '/x/==y',
]) {
  test(`walk: the filter ${JSON.stringify(filter)} is an invalid argument`, async (t) => {
    const { snapshotter } = await open(t);
    await refuses(t, () => namesOf(snapshotter.list(filter)), 'INVALID_ARGUMENT');
  });
}

// ------------------------------------------------------------------------------------------------------- input

test('keys: any text but an empty one, up to 32,768 bytes', async (t) => {
  const { root, snapshotter } = await open(t);
  const long = 'k'.repeat(10_000);
  const keys = [
    'a/b/c',
    '../..',
    '/',
    '.',
    '\n',
    'ünïcödé 🎉',
    ' ',
    long,
    `${long}l`,
    'k'.repeat(479),
    'k'.repeat(480),
  ];
  for (const key of keys) {
    await snapshotter.prepare(key);
    t.is((await snapshotter.stat(key)).name, key);
  }
  t.deepEqual(readdirSync(root).sort(), [
    'metadata.db',
    'metadata.db-shm',
    'metadata.db-wal',
    'removed',
    'reserve',
    'snapshots',
  ]);
  t.true(isDeepStrictEqual((await namesOf(snapshotter.list())).sort(), keys.toSorted()));
  for (const key of keys) {
    await snapshotter.commit(key, { name: `committed ${key}` });
    await snapshotter.remove(`committed ${key}`);
  }
  await refuses(t, () => snapshotter.prepare(''), 'INVALID_ARGUMENT', '');
  await refuses(t, () => snapshotter.prepare('k'.repeat(32_769)), 'INVALID_ARGUMENT');
  await refuses(t, () => snapshotter.prepare('\ud800'), 'INVALID_ARGUMENT');
  await refuses(t, () => snapshotter.prepare('nul\0nul'), 'INVALID_ARGUMENT');
  await t.throwsAsync(() => snapshotter.prepare(1 as unknown as string), { code: 'ERR_INVALID_ARG_TYPE' });
});

test('walk: names come in the order of their bytes', async (t) => {
  const { snapshotter } = await open(t);
  const names = ['b', 'a', 'ä', 'Z', '10', '9', 'a/b', 'a\x01b'];
  for (const name of names) await snapshotter.prepare(name);
  t.deepEqual(
    await namesOf(snapshotter.list()),
    names.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
  );
});

test('a depth of 500: the mounts name all parents', async (t) => {
  const { snapshotter } = await open(t, { fsync: 'none' });
  await makeChain(snapshotter, ...Array.from({ length: 500 }, (_, i) => `layer ${i}`));
  const [mount] = await snapshotter.view('view', 'layer 499');
  t.is(mount?.options[0]?.split(':').length, 500);
});
