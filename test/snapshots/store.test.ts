/** The store: damage, versions, processes, a missing package, bad roots. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { crc32 } from 'node:zlib';
import test, { type ExecutionContext } from 'ava';
import { OverlayError } from 'overlayfs';
import { SnapshotError, type SnapshotInfo, Snapshotter } from 'overlayfs/snapshots';
import { BlockingTransactions, loadLmdb } from '../../lib/snapshots/lmdb.js';
import { overlayfs } from '../cli/run.js';
import { generator, mountTest, native, packageRoot, scaled, scratch } from '../support/index.js';
import { checkRoot } from './check-root.js';

const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);

async function namesOf(walk: AsyncIterable<SnapshotInfo>): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of walk) names.push(name);
  return names;
}

/** Makes a root with some snapshots, and a long key that needs pages of its own. */
async function makeRoot(t: ExecutionContext, count = 200): Promise<string> {
  const root = join(scratch(t), 'root');
  const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
  const labels = { long: 'x'.repeat(4000), other: 'y'.repeat(3000) };
  await snapshotter.prepare('long', '', { labels });
  await snapshotter.commit('base', 'long', { labels });
  await Promise.all(
    Array.from({ length: count }, (_, i) => snapshotter.prepare(`key ${i}`, i % 2 === 0 ? 'base' : '')),
  );
  for (let i = 0; i < count; i += 10) await snapshotter.remove(`key ${i}`);
  await snapshotter.close();
  return root;
}

test('a store of any state that verbs leave is found whole', async (t) => {
  const root = await makeRoot(t, 1000);
  const snapshotter = await Snapshotter.open(root);
  t.is((await namesOf(snapshotter.walk())).length, 901);
  await snapshotter.close();
});

test('a store that is cut short is refused, and readonly reads what is left', async (t) => {
  const root = await makeRoot(t);
  const file = join(root, 'metadata.mdb');
  const whole = readFileSync(file);
  const before = readdirSync(join(root, 'snapshots'));
  for (const share of [0.99, 0.7, 0.4, 0.1, 0.02, 0.001]) {
    const size = Math.floor(whole.length * share);
    writeFileSync(file, whole);
    truncateSync(file, size);
    const error = await t.throwsAsync(() => Snapshotter.open(root), { instanceOf: SnapshotError }, `${size} bytes`);
    t.like(error, { code: 'ERR_SNAPSHOT_STORE_DAMAGED', path: file });
    t.true(readFileSync(file).equals(whole.subarray(0, size)), 'nothing is changed');
    const snapshotter = await Snapshotter.open(root, { readonly: true });
    const names = await namesOf(snapshotter.walk());
    if (names.includes('base')) t.is((await snapshotter.stat('base')).labels['other']?.length, 3000);
    await t.throwsAsync(() => snapshotter.prepare('new'), { code: 'ERR_SNAPSHOT_READ_ONLY' });
    await t.throwsAsync(() => snapshotter.cleanup(), { code: 'ERR_SNAPSHOT_READ_ONLY' });
    await snapshotter.close();
  }
  t.deepEqual(readdirSync(join(root, 'snapshots')), before);
});

test('flipped bytes in pages that are in use are found, and never end the process', async (t) => {
  t.timeout(600_000);
  t.log(`seed ${seed}`);
  const random = generator(seed);
  const root = await makeRoot(t);
  const file = join(root, 'metadata.mdb');
  const whole = readFileSync(file);
  let found = 0;
  const rounds = scaled(1_000);
  for (let round = 0; round < rounds; round++) {
    const bytes = Buffer.from(whole);
    const at = random(bytes.length);
    for (let i = 0; i < 1 + random(8) && at + i < bytes.length; i++) bytes[at + i] = random(256);
    writeFileSync(file, bytes);
    try {
      const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
      try {
        // The bytes are not in use, or of no importance: all can be read.
        t.true((await namesOf(snapshotter.walk())).length > 0, `round ${round} of seed ${seed}, at ${at}`);
      } finally {
        await snapshotter.close();
      }
    } catch (error) {
      found++;
      t.is((error as SnapshotError).code, 'ERR_SNAPSHOT_STORE_DAMAGED', `round ${round} of seed ${seed}, at ${at}`);
      const snapshotter = await Snapshotter.open(root, { readonly: true });
      await namesOf(snapshotter.walk());
      await snapshotter.close();
    }
  }
  t.log(`${found} of ${rounds} were found`);
  t.true(found > 0);
});

test('a file that is no store is refused', async (t) => {
  const root = join(scratch(t), 'root');
  mkdirSync(root);
  for (const text of ['something else entirely', '\0', '\0'.repeat(8192)]) {
    writeFileSync(join(root, 'metadata.mdb'), text);
    await t.throwsAsync(() => Snapshotter.open(root), { code: 'ERR_SNAPSHOT_STORE_DAMAGED' });
    t.is(readFileSync(join(root, 'metadata.mdb'), 'utf8'), text);
  }
});

test('without enough file descriptors, open fails, and does not end the process', (t) => {
  const root = join(scratch(t), 'root');
  const script = `import { closeSync, openSync } from 'node:fs';
    import { Snapshotter } from 'overlayfs/snapshots';
    const root = process.argv[1];
    const open = async (name, options) => (await Snapshotter.open(root + name, options)).close();
    await open('old');
    for (let free = 0, opened = 0; opened < 6; free++) {
      const held = [];
      try {
        for (;;) held.push(openSync('/'));
      } catch {}
      for (let i = 0; i < free; i++) closeSync(held.pop());
      for (const [name, options] of [['old'], ['old', { readonly: true }], ['new' + free]]) {
        await open(name, options).then(() => opened++, ({ code, message }) => {
          if (!/EMFILE/.test(code + message)) throw new Error(code + message);
        });
      }
      held.forEach(closeSync);
    }`;
  const command = 'ulimit -n 64 && exec "$@"';
  const args = ['-c', command, 'sh', process.execPath, '--input-type=module', '-e', script, root];
  const { status, stderr } = spawnSync('sh', args, { cwd: packageRoot, encoding: 'utf8', timeout: 60_000 });
  t.is(status, 0, stderr);
});

test('what is no regular file is refused, and not read', async (t) => {
  const root = join(scratch(t), 'root');
  const file = join(root, 'metadata.mdb');
  mkdirSync(join(root, 'snapshots'), { recursive: true });
  const refused = { code: 'ERR_SNAPSHOT_STORE_FAILED', message: /is no regular file/ };
  execFileSync('mkfifo', [file]);
  for (const readonly of [false, true]) await t.throwsAsync(() => Snapshotter.open(root, { readonly }), refused);
  rmSync(file);
  mkdirSync(file);
  await t.throwsAsync(() => Snapshotter.open(root), refused);
});

test('readonly finds no store in a file to which nobody has written', async (t) => {
  const root = join(scratch(t), 'root');
  const file = join(root, 'metadata.mdb');
  mkdirSync(join(root, 'snapshots'), { recursive: true });
  const { open } = await loadLmdb();
  const steps = [
    () => writeFileSync(file, ''),
    () => open({ path: file, noSubdir: true, overlappingSync: false, maxDbs: 8 }).close(),
    async () => {
      const environment = open({ path: file, noSubdir: true, overlappingSync: false, maxDbs: 8 });
      environment.openDB({ name: 'about', encoding: 'binary', keyEncoding: 'binary' });
      await environment.close();
    },
  ];
  for (const step of steps) {
    await step();
    await t.throwsAsync(() => Snapshotter.open(root, { readonly: true }), { code: 'ERR_SNAPSHOT_NOT_FOUND' });
  }
  await (await Snapshotter.open(root)).close();
  await (await Snapshotter.open(root, { readonly: true })).close();
});

interface RawTable {
  putSync(key: Buffer, value: Buffer): unknown;
  get(key: Buffer): Buffer | undefined;
}

/** Changes the store behind the back of the library. */
async function change(root: string, table: string, key: string, edit: (text: string) => string): Promise<void> {
  const name: string = 'lmdb';
  const { open } = await import(name);
  const options = { encoding: 'binary', keyEncoding: 'binary' };
  const environment = open({
    path: join(root, 'metadata.mdb'),
    noSubdir: true,
    ...options,
    overlappingSync: false,
    maxDbs: 8,
  });
  const raw: RawTable = environment.openDB({ name: table, ...options });
  const text = Buffer.from(edit(String(raw.get(Buffer.from(key))?.subarray(4))));
  const checksum = Buffer.alloc(4);
  checksum.writeUInt32LE(crc32(text));
  raw.putSync(Buffer.from(key), Buffer.concat([checksum, text]));
  await environment.close();
}

test('a newer store is refused, also by a process that has it open', async (t) => {
  const root = await makeRoot(t, 2);
  const snapshotter = await Snapshotter.open(root);
  t.teardown(() => snapshotter.close());
  await change(root, 'about', 'version', () => '2');
  const error = await t.throwsAsync(() => snapshotter.remove('key 1'), { code: 'ERR_SNAPSHOT_STORE_VERSION' });
  t.regex(error?.message ?? '', /has version 2.*newer version/);
  await t.throwsAsync(() => Snapshotter.open(root), { code: 'ERR_SNAPSHOT_STORE_VERSION' });
  await t.throwsAsync(() => Snapshotter.open(root, { readonly: true }), { code: 'ERR_SNAPSHOT_STORE_VERSION' });
  t.is((await checkRoot(root, false)).records.get('key 1')?.name, 'key 1');
});

test('parents that form a circle, or are missing, are a damaged store', async (t) => {
  const root = await makeRoot(t, 0);
  await change(root, 'snapshots', 'base', (text) => JSON.stringify({ ...JSON.parse(text), parent: 'base' }));
  const snapshotter = await Snapshotter.open(root);
  t.teardown(() => snapshotter.close());
  await t.throwsAsync(() => snapshotter.view('view', 'base'), {
    code: 'ERR_SNAPSHOT_STORE_DAMAGED',
    message: /circle/,
  });
  await change(root, 'snapshots', 'base', (text) => JSON.stringify({ ...JSON.parse(text), parent: 'gone' }));
  await t.throwsAsync(() => snapshotter.view('view', 'base'), {
    code: 'ERR_SNAPSHOT_STORE_DAMAGED',
    message: /'gone'/,
  });
  t.deepEqual(await namesOf(snapshotter.walk()), ['base']);
});

test('what is no record is a damaged store, and changes nothing', async (t) => {
  const root = await makeRoot(t, 0);
  const whole = { name: 'base', id: 2, kind: 'committed', parent: '', created: '1', updated: '1' };
  const odd = [
    '',
    'null',
    '{}',
    ...['x', -1, 1.5, '../..'].map((id) => JSON.stringify({ ...whole, id })),
    ...[{ kind: 'odd' }, { parent: 7 }, { created: 'x' }, { labels: 7 }, { name: null }].map((more) =>
      JSON.stringify({ ...whole, ...more }),
    ),
  ];
  for (const text of odd) {
    await change(root, 'snapshots', 'base', () => text);
    const snapshotter = await Snapshotter.open(root);
    const verbs = [
      () => snapshotter.stat('base'),
      () => namesOf(snapshotter.walk()),
      () => snapshotter.prepare('child', 'base'),
      () => snapshotter.update({ name: 'base', labels: {} }),
      () => snapshotter.remove('base'),
    ];
    for (const verb of verbs) await t.throwsAsync(verb, { code: 'ERR_SNAPSHOT_STORE_DAMAGED' }, text);
    await snapshotter.close();
  }
  t.deepEqual(readdirSync(join(root, 'snapshots')), ['1']);
});

test('readonly needs a root that is there, and makes nothing', async (t) => {
  const root = join(scratch(t), 'root');
  await t.throwsAsync(() => Snapshotter.open(root, { readonly: true }), { code: 'ENOENT' });
  t.false(existsSync(root));
});

for (const how of ['open', 'openBlocking'] as const) {
  test(`verbs after close are refused; close waits for those before it: ${how}`, async (t) => {
    const root = join(scratch(t), 'root');
    const snapshotter = await Snapshotter[how](root);
    await snapshotter.prepare('first');
    const verbs = [
      ...Array.from({ length: 20 }, (_, i) => snapshotter.prepare(`key ${i}`)),
      snapshotter.usage('first'),
      snapshotter.commit('name', 'first'),
      snapshotter.cleanup(),
    ];
    const closing = [snapshotter.close(), snapshotter.close()];
    for (const verb of ['stat', 'prepare', 'mounts', 'usage', 'remove'] as const) {
      await t.throwsAsync(async () => snapshotter[verb]('key 1'), { code: 'ERR_SNAPSHOT_CLOSED' });
    }
    await Promise.all(closing);
    await t.throwsAsync(() => namesOf(snapshotter.walk()), { code: 'ERR_SNAPSHOT_CLOSED' });
    await t.notThrowsAsync(Promise.all(verbs));
    const { records, problems } = await checkRoot(root, true);
    t.deepEqual(problems, []);
    t.is(records.size, 21);
  });
}

test('a transaction on the calling thread is undone if a function in it fails after a change', async (t) => {
  const { open } = await loadLmdb();
  const environment = open({ path: join(scratch(t), 'store'), noSubdir: true, overlappingSync: false });
  t.teardown(() => environment.close());
  const table = environment.openDB<string>({ name: 'table' });
  const key = (name: string) => Buffer.from(name);
  const transactions = new BlockingTransactions(environment);
  const put = (name: string, error?: Error) => {
    const change = () => {
      table.put(key(name), name);
      if (error !== undefined) throw error;
    };
    return transactions.perform(change);
  };
  const results = await Promise.allSettled([put('a'), put('b', new RangeError('none')), put('c')]);
  t.deepEqual(
    results.map(({ status }) => status),
    ['rejected', 'rejected', 'rejected'],
  );
  await put('d');
  t.deepEqual(
    ['a', 'b', 'c', 'd'].map((name) => table.get(key(name))),
    [undefined, undefined, undefined, 'd'],
  );
});

test('two snapshotters of one process on one root see what each other does', async (t) => {
  const root = join(scratch(t), 'root');
  const [a, b] = [await Snapshotter.open(root), await Snapshotter.open(root)];
  await a.prepare('of a');
  await b.commit('by b', 'of a');
  t.is((await a.stat('by b')).kind, 'committed');
  await a.close();
  await b.prepare('later', 'by b');
  await b.close();
});

test('a program that has a store open cannot open it so that less is promised than asked for', async (t) => {
  const root = join(scratch(t), 'root');
  const refused = { code: 'ERR_SNAPSHOT_FAILED_PRECONDITION', message: /open .*Close/ };
  const careless = await Snapshotter.open(root, { fsync: 'none' });
  for (const fsync of ['store', 'all'] as const) await t.throwsAsync(() => Snapshotter.open(root, { fsync }), refused);
  const reader = await Snapshotter.open(root, { readonly: true });
  await careless.prepare('key');
  t.is((await reader.stat('key')).kind, 'active');
  await careless.close();
  await reader.close();
});

test('a program that reads a store can also open it to write, in any thread', async (t) => {
  const root = await makeRoot(t, 0);
  const script = `import('overlayfs/snapshots').then(async ({ Snapshotter }) => {
    const { parentPort, workerData } = require('node:worker_threads');
    const reader = await Snapshotter.open(workerData, { readonly: true });
    parentPort.postMessage('open');
    parentPort.once('message', () => reader.close());
  });`;
  const worker = new Worker(script, { eval: true, workerData: root });
  await once(worker, 'message');
  const reader = await Snapshotter.open(root, { readonly: true });
  const snapshotter = await Snapshotter.open(root);
  await snapshotter.prepare('key');
  t.is((await reader.stat('key')).kind, 'active');
  await snapshotter.close();
  await reader.close();
  worker.postMessage('close');
  await once(worker, 'exit');
});

test('without the package lmdb the error says how to get it', (t) => {
  const copy = scratch(t);
  for (const name of ['package.json', 'dist']) cpSync(join(packageRoot, name), join(copy, name), { recursive: true });
  mkdirSync(join(copy, 'build/Release'), { recursive: true });
  copyFileSync(join(packageRoot, 'build/Release/overlayfs.node'), join(copy, 'build/Release/overlayfs.node'));
  const script = `import { Snapshotter } from 'overlayfs/snapshots';
    const error = await Snapshotter.open(process.argv[1]).catch((error) => error);
    console.log(error.code + ': ' + error.message);`;
  const args = ['--input-type=module', '-e', script, join(copy, 'root')];
  const printed = execFileSync(process.execPath, args, { cwd: copy, encoding: 'utf8' });
  t.regex(printed, /^ERR_SNAPSHOT_DEPENDENCY_MISSING: .*npm install lmdb\./);
});

test('a root whose place cannot be made is refused', async (t) => {
  const link = join(scratch(t), 'link');
  symlinkSync('nowhere', link);
  for (const root of [join(link, 'root'), '/proc/overlayfs/root']) {
    await t.throwsAsync(() => Snapshotter.open(root), { instanceOf: OverlayError, code: 'ENOENT' });
  }
});

test('a root that was moved is left alone, and so is what has its place', async (t) => {
  const root = join(scratch(t), 'root');
  const before = await Snapshotter.open(root);
  await before.prepare('key');
  renameSync(root, `${root}-moved`);
  const after = await Snapshotter.open(root);
  const refused = { code: 'ERR_SNAPSHOT_FAILED_PRECONDITION', message: /moved or replaced/ };
  await after.prepare('other');
  t.is((await before.stat('key')).id, (await after.stat('other')).id);
  for (const verb of [() => before.remove('key'), () => before.mounts('key'), () => before.prepare('more')]) {
    await t.throwsAsync<Error>(verb, refused);
  }
  await t.throwsAsync(() => before.cleanup(), refused);
  await before.close();
  await after.close();
  for (const place of [root, `${root}-moved`]) t.deepEqual((await checkRoot(place, true)).problems, []);
});

test('readonly names the directory that is missing', async (t) => {
  const root = scratch(t);
  await t.throwsAsync(() => Snapshotter.open(root, { readonly: true }), { message: /\/snapshots' does not exist/ });
  t.deepEqual(readdirSync(root), []);
});

test('roots that cannot be written in options are refused', async (t) => {
  const dir = scratch(t);
  for (const root of [join(dir, 'a:b'), Buffer.from(`${dir}/\xff`, 'latin1')]) {
    await t.throwsAsync(() => Snapshotter.open(root), { code: 'ERR_SNAPSHOT_INVALID_ARGUMENT' });
  }
  t.deepEqual(readdirSync(dir), []);
});

mountTest('a root on a file system that can hold no upper is refused at open', async (t) => {
  const dir = scratch(t);
  t.is(native.mount('none', dir, 'ramfs', 0, ''), 0);
  const error = await t.throwsAsync(() => Snapshotter.open(join(dir, 'root')), { instanceOf: OverlayError });
  t.like(error, { reason: 'upper-without-xattrs' });
});

mountTest('a root on a read-only mount is refused at open', async (t) => {
  const dir = scratch(t);
  mkdirSync(join(dir, 'root'));
  t.is(native.mount(dir, dir, '', 4096, ''), 0);
  t.is(native.mount('', dir, '', 4096 | 32 | 1, ''), 0);
  const error = await t.throwsAsync(() => Snapshotter.open(join(dir, 'root')), { instanceOf: OverlayError });
  t.like(error, { code: 'EROFS' });
});

mountTest('a full disk: verbs fail, and what was acknowledged is there', async (t) => {
  const dir = scratch(t);
  t.is(native.mount('none', dir, 'tmpfs', 0, 'size=1m'), 0);
  const root = join(dir, 'root');
  const snapshotter = await Snapshotter.open(root);
  const made: string[] = [];
  const codes = new Set<unknown>();
  for (let i = 0; i < 3000 && codes.size === 0; i++) {
    const key = `key ${i}`;
    try {
      await snapshotter.prepare(key, '', { labels: { filler: 'x'.repeat(2000) } });
      made.push(key);
    } catch (error) {
      codes.add((error as NodeJS.ErrnoException).code);
    }
  }
  t.log([...codes], made.length);
  t.is(codes.size, 1);
  for (const key of made.splice(0, 20)) await snapshotter.remove(key).catch(() => made.push(key));
  await snapshotter.close();
  const again = await Snapshotter.open(root);
  await again.cleanup();
  const names = await namesOf(again.walk());
  for (const key of made) t.true(names.includes(key), key);
  await again.close();
  t.deepEqual((await checkRoot(root, false)).problems, []);
});

test('a worker that exits in the midst of a transaction leaves the other threads', async (t) => {
  const root = join(scratch(t, 'disk'), 'root');
  const script = `import('overlayfs/snapshots').then(async ({ Snapshotter }) => {
    const { workerData } = require('node:worker_threads');
    const snapshotter = await Snapshotter.open(workerData);
    for (let i = 0; i < 20; i++) snapshotter.prepare('' + i).catch(() => {});
    setImmediate(() => process.exit(5));
  })`;
  const worker = new Worker(script, { eval: true, workerData: root });
  t.deepEqual(await once(worker, 'exit'), [5]);
  // A process that exits with a transaction under way is ended after half a second.
  await new Promise((resolve) => setTimeout(resolve, 1000));
  t.pass();
});

test('a process that exits in the midst of a transaction ends, with its code and its error', (t) => {
  const root = join(scratch(t, 'disk'), 'root');
  const script = `import { Snapshotter } from 'overlayfs/snapshots';
    const [root, wait, way] = process.argv.slice(1);
    const snapshotter = await Snapshotter.open(root);
    for (let i = 0; i < 20; i++) snapshotter.prepare(\`\${process.pid} \${i}\`).catch(() => {});
    const end = performance.now() + Number(wait);
    const step = () => {
      if (performance.now() < end) setImmediate(step);
      else if (way === 'exit') process.exit(3);
      else throw new Error('thrown');
    };
    step();`;
  for (const way of ['exit', 'throw']) {
    for (let wait = 0; wait < scaled(40); wait++) {
      const args = ['--input-type=module', '-e', script, root, `${wait}`, way];
      const options = { cwd: import.meta.dirname, encoding: 'utf8', timeout: 20_000 } as const;
      const { status, stderr } = spawnSync(process.execPath, args, options);
      t.is(status, way === 'exit' ? 3 : 1, `${way} after ${wait} ms`);
      t.is(/Error: thrown/.test(stderr), way === 'throw');
    }
  }
});

/** Locks a directory as another process. Returns what ends that. */
async function lockAs(kind: 'exclusive' | 'shared', directory: string): Promise<() => Promise<unknown>> {
  const other = spawn('flock', [`--${kind}`, directory, 'sh', '-c', 'echo locked; cat']);
  await once(other.stdout, 'data');
  return () => {
    other.stdin.end();
    return once(other, 'exit');
  };
}

test('nobody writes while another process opens the store, and the other way round', async (t) => {
  const root = join(scratch(t), 'root');
  const directory = join(root, 'snapshots');
  const snapshotter = await Snapshotter.open(root);
  t.teardown(() => snapshotter.close());
  const waits = async (release: () => Promise<unknown>, promise: Promise<unknown>): Promise<void> => {
    let isSettled = false;
    const settled = promise.finally(() => {
      isSettled = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 100));
    t.false(isSettled);
    await release();
    await settled;
  };
  await waits(await lockAs('exclusive', directory), snapshotter.prepare('a'));
  const opened = lockAs('shared', directory).then((release) => {
    const opening = Snapshotter.open(root, { readonly: true });
    return waits(release, opening).then(() => opening);
  });
  t.is((await (await opened).stat('a')).kind, 'active');
  await (await opened).close();
  const release = await lockAs('shared', directory);
  await snapshotter.prepare('b');
  await release();
  await waits(await lockAs('exclusive', directory), snapshotter.close());
});

/** Returns true if a lock on a directory cannot be had at once. */
const isLocked = (directory: string): boolean =>
  spawnSync('flock', ['--nonblock', '--exclusive', directory, 'true']).status !== 0;

test('a transaction that comes after an opening waits for it', async (t) => {
  const root = join(scratch(t), 'root');
  const snapshotter = await Snapshotter.open(root);
  const release = await lockAs('shared', join(root, 'snapshots'));
  const done: string[] = [];
  const opening = Snapshotter.open(root).finally(() => done.push('opening'));
  while (!isLocked(join(root, 'removed'))) await new Promise((resolve) => setTimeout(resolve, 5));
  const transaction = snapshotter.prepare('key').finally(() => done.push('transaction'));
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.deepEqual(done, []);
  await release();
  await transaction;
  t.deepEqual(done, ['opening', 'transaction']);
  await snapshotter.close();
  await (await opening).close();
});

test('a thread that ends without a close keeps openings off while it ends', async (t) => {
  const root = join(scratch(t), 'root');
  const script = `import('overlayfs/snapshots').then(async ({ Snapshotter }) => {
    const { workerData, parentPort } = require('node:worker_threads');
    await Snapshotter.open(workerData);
    parentPort.postMessage('open');
    setInterval(() => {}, 1000);
  });`;
  await (await Snapshotter.open(root)).close();
  const worker = new Worker(script, { eval: true, workerData: root });
  await once(worker, 'message');
  const release = await lockAs('exclusive', join(root, 'snapshots'));
  let isEnded = false;
  const start = performance.now();
  const ended = worker.terminate().finally(() => {
    isEnded = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  // It waits for half a second at most.
  t.true(!isEnded || performance.now() - start >= 500);
  await release();
  await ended;
  t.false(isLocked(join(root, 'snapshots')));
});

/** Has several callers write without end. Returns what ends that. */
function keepWriting(snapshotter: Snapshotter, callers: number): () => Promise<unknown> {
  let isDone = false;
  const write = async (caller: number): Promise<void> => {
    for (let i = 0; !isDone; i++) await snapshotter.prepare(`${caller} ${i}`);
  };
  const writing = Array.from({ length: callers }, (_, caller) => write(caller));
  return () => {
    isDone = true;
    return Promise.all(writing);
  };
}

test('an opening has its turn among transactions without end', async (t) => {
  const root = join(scratch(t), 'root');
  const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
  t.teardown(() => snapshotter.close());
  const endWriting = keepWriting(snapshotter, 8);
  await snapshotter.prepare('first');
  const { code, stderr } = await overlayfs('snapshot', 'ls', '--root', root);
  await endWriting();
  t.is(code, 0, stderr);
});

test('a thread that writes, and waits for the disk, does not stop its own openings', async (t) => {
  const root = join(scratch(t), 'root');
  const snapshotter = await Snapshotter.openBlocking(root, { fsync: 'none' });
  t.teardown(() => snapshotter.close());
  const endWriting = keepWriting(snapshotter, 4);
  for (let i = 0; i < 20; i++) await (await Snapshotter.open(root, { readonly: true })).close();
  await endWriting();
  t.is((await snapshotter.stat('0 0')).kind, 'active');
});
