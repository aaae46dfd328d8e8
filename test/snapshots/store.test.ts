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
import test, { type ExecutionContext, type ImplementationFn } from 'ava';
import { OverlayError } from 'overlayfs';
import { SnapshotError, type SnapshotInfo, Snapshotter } from 'overlayfs/snapshots';
import { overlayfs } from '../cli/run.js';
import { generator, mountTest, native, packageRoot, scaled, scratch } from '../support/index.js';
import { openPaths } from '../support/process.js';
import { checkRoot, openDatabase } from './check-root.js';

const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);

async function namesOf(walk: AsyncIterable<SnapshotInfo>): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of walk) names.push(name);
  return names;
}

const hasSqlite = process.getBuiltinModule('node:sqlite') !== undefined;

/** A test for a Node that has node:sqlite, or for one that has not. */
function sqliteTest(title: string, { needsSqlite }: { needsSqlite: boolean }, body: ImplementationFn<[]>): void {
  if (needsSqlite === hasSqlite) test(title, body);
  else
    test.skip(
      `${title} (needs a Node ${needsSqlite ? 'with' : 'without'} node:sqlite, which this machine lacks)`,
      body,
    );
}

/** Makes a root with some snapshots, and a long key that needs pages of its own. */
async function makeRoot(t: ExecutionContext, count = 200): Promise<string> {
  const root = join(scratch(t), 'root');
  const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
  const labels = { long: 'x'.repeat(4000), other: 'y'.repeat(3000) };
  await snapshotter.prepare('long', '', { labels });
  await snapshotter.commit('long', { name: 'base', labels });
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
  t.is((await namesOf(snapshotter.list())).length, 901);
  await snapshotter.close();
});

/** Opens a damaged store for reading; undefined, if the error says that nothing can be read. */
async function openRemains(t: ExecutionContext, root: string): Promise<Snapshotter | undefined> {
  try {
    return await Snapshotter.open(root, { readonly: true });
  } catch (error) {
    t.like(error as SnapshotError, { code: 'ERR_SNAPSHOT_STORE_DAMAGED' });
    return undefined;
  }
}

test('a store that is cut short is refused, and readonly reads what is left', async (t) => {
  const root = await makeRoot(t);
  const file = join(root, 'metadata.db');
  const whole = readFileSync(file);
  const before = readdirSync(join(root, 'snapshots'));
  for (const share of [0.99, 0.7, 0.4, 0.1, 0.02, 0.001]) {
    const size = Math.floor(whole.length * share);
    writeFileSync(file, whole);
    truncateSync(file, size);
    const error = await t.throwsAsync(() => Snapshotter.open(root), { instanceOf: SnapshotError }, `${size} bytes`);
    t.like(error, { code: 'ERR_SNAPSHOT_STORE_DAMAGED', path: file });
    t.true(readFileSync(file).equals(whole.subarray(0, size)), 'nothing is changed');
    const snapshotter = await openRemains(t, root);
    if (snapshotter === undefined) continue;
    const names: string[] = [];
    const walked = (async () => {
      for await (const { name } of snapshotter.list()) names.push(name);
    })();
    await walked.catch((damage) => t.is(damage.code, 'ERR_SNAPSHOT_STORE_DAMAGED'));
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
  const file = join(root, 'metadata.db');
  const whole = readFileSync(file);
  let found = 0;
  const rounds = scaled(1_000);
  for (let round = 0; round < rounds; round++) {
    const bytes = Buffer.from(whole);
    // Half of them in the first page, which has the header and the tables' SQL.
    const at = random(round % 2 === 0 ? bytes.length : 4096);
    const end = Math.min(at + 1 + random(8), bytes.length);
    for (let i = at; i < end; i++) bytes[i] = random(256);
    writeFileSync(file, bytes);
    const where = `round ${round} of seed ${seed}, at ${at}`;
    // The version itself.
    const isOther = at < 64 && end > 60 && bytes.readUInt32BE(60) !== 2;
    const expected = (error: unknown): boolean => {
      const { code } = error as SnapshotError;
      return code === 'ERR_SNAPSHOT_STORE_DAMAGED' || (isOther && code === 'ERR_SNAPSHOT_STORE_VERSION');
    };
    try {
      const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
      try {
        // The bytes are not in use, or of no importance: all can be read.
        t.is((await namesOf(snapshotter.list())).length, 181, where);
      } finally {
        await snapshotter.close();
      }
    } catch (error) {
      found++;
      if (!expected(error)) t.fail(`${where}: ${(error as Error).stack}`);
      try {
        const snapshotter = await Snapshotter.open(root, { readonly: true });
        await namesOf(snapshotter.list()).finally(() => snapshotter.close());
      } catch (again) {
        if (!expected(again)) t.fail(`${where}, readonly: ${(again as Error).stack}`);
      }
    }
  }
  t.log(`${found} of ${rounds} were found`);
  t.true(found > 0);
});

test('a file that is no store is refused', async (t) => {
  const root = join(scratch(t), 'root');
  mkdirSync(root);
  for (const text of ['something else entirely', '\0', '\0'.repeat(8192)]) {
    writeFileSync(join(root, 'metadata.db'), text);
    await t.throwsAsync(() => Snapshotter.open(root), { code: 'ERR_SNAPSHOT_STORE_DAMAGED' });
    t.is(readFileSync(join(root, 'metadata.db'), 'utf8'), text);
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

test('a store that reaches the limit of file sizes says so, and goes on once that is raised', async (t) => {
  const dir = scratch(t);
  const script = `import { execFileSync } from 'node:child_process';
    import { Snapshotter } from 'overlayfs/snapshots';
    const [root, limit] = process.argv.slice(1);
    const labels = { filler: 'x'.repeat(3000) };
    const print = (error) => console.log(error.code, error.reason, error.message);
    const snapshotter = await Snapshotter.open(root).catch(print);
    const make = (key) => snapshotter.prepare(limit + key, '', { labels });
    for (let i = 0, isFull = false; snapshotter && !isFull; i++) await make(i).catch((error) => (isFull = print(error) ?? true));
    execFileSync('prlimit', ['--pid', process.pid, '--fsize=unlimited:']);
    await (snapshotter ?? await Snapshotter.open(root)).prepare(limit + ' raised');
    if (!snapshotter) process.exit();
    execFileSync('prlimit', ['--pid', process.pid, '--fsize=' + limit + ':']);
    // The log is at the limit, the file is not.
    if (limit === '150000') await snapshotter.remove(limit + '0');
    await snapshotter.close();`;
  // The first that reaches it: the file, its shared memory, the log, the file again.
  for (const limit of [20_000, 28_000, 150_000, 1_500_000]) {
    const root = join(dir, `${limit}`);
    const args = [`--fsize=${limit}:`, process.execPath, '--input-type=module', '-e', script, root, `${limit}`];
    const { status, stdout, stderr } = spawnSync('prlimit', args, { cwd: packageRoot, encoding: 'utf8' });
    t.is(status, 0, `${limit}: ${stderr}`);
    t.regex(
      stdout,
      /^ERR_SNAPSHOT_STORE_FAILED out-of-space .*\(\d+ bytes\)\. Raise that limit \(ulimit -f\)/,
      `${limit}`,
    );
    t.deepEqual((await checkRoot(root, false)).problems, [], `${limit}`);
  }
});

test('what is no regular file is refused, and not read', async (t) => {
  const root = join(scratch(t), 'root');
  const file = join(root, 'metadata.db');
  mkdirSync(join(root, 'snapshots'), { recursive: true });
  const refused = { code: 'ERR_SNAPSHOT_STORE_FAILED', message: /is not a regular file/ };
  execFileSync('mkfifo', [file]);
  for (const readonly of [false, true]) await t.throwsAsync(() => Snapshotter.open(root, { readonly }), refused);
  rmSync(file);
  mkdirSync(file);
  await t.throwsAsync(() => Snapshotter.open(root), refused);
});

test('readonly finds no store in a file to which nobody has written', async (t) => {
  const root = join(scratch(t), 'root');
  mkdirSync(join(root, 'snapshots'), { recursive: true });
  for (const isThere of [false, true]) {
    if (isThere) writeFileSync(join(root, 'metadata.db'), '');
    await t.throwsAsync(() => Snapshotter.open(root, { readonly: true }), { code: 'ERR_SNAPSHOT_NOT_FOUND' });
  }
  await t.throwsAsync(() => Snapshotter.open(root), { code: 'ERR_SNAPSHOT_STORE_FAILED', message: /empty file/ });
  rmSync(join(root, 'metadata.db'));
  await (await Snapshotter.open(root)).close();
  await (await Snapshotter.open(root, { readonly: true })).close();
});

test('processes that make a store at one moment make one', async (t) => {
  const script = `import { Snapshotter } from 'overlayfs/snapshots';
    const snapshotter = await Snapshotter.open(process.argv[1], { fsync: 'none' });
    for (let i = 0; i < 5; i++) await snapshotter.prepare(process.pid + ' ' + i);
    await snapshotter.close();`;
  for (let round = 0; round < scaled(20); round++) {
    const root = join(scratch(t), 'root');
    const args = ['--input-type=module', '-e', script, root];
    const children = Array.from({ length: 4 }, () =>
      spawn(process.execPath, args, { cwd: packageRoot, stdio: 'inherit' }),
    );
    const codes = await Promise.all(children.map((child) => once(child, 'exit')));
    t.deepEqual(codes.flat(), [0, null, 0, null, 0, null, 0, null]);
    const { records, problems } = await checkRoot(root, true);
    t.deepEqual(problems, []);
    t.is(records.size, 20);
  }
});

test('an empty file beside directories of snapshots is damage, and nothing is removed', async (t) => {
  const root = await makeRoot(t, 10);
  const before = readdirSync(join(root, 'snapshots'));
  const file = join(root, 'metadata.db');
  const spoil = [() => truncateSync(file, 0), () => rmSync(file)];
  for (const step of spoil) {
    step();
    for (const readonly of [false, true]) {
      const error = await t.throwsAsync(() => Snapshotter.open(root, { readonly }));
      t.like(error, { code: 'ERR_SNAPSHOT_STORE_DAMAGED', path: file });
      t.regex(error?.message ?? '', /holds 10 directories/);
    }
  }
  t.deepEqual(readdirSync(join(root, 'snapshots')), before);
});

test('a store of the package lmdb is refused', async (t) => {
  const root = join(scratch(t), 'root');
  mkdirSync(root);
  writeFileSync(join(root, 'metadata.mdb'), 'pages');
  const error = await t.throwsAsync(() => Snapshotter.open(root), { code: 'ERR_SNAPSHOT_STORE_VERSION' });
  t.regex(error?.message ?? '', /lmdb.*another root/);
});

/** Changes the store behind the back of the library. */
async function change(root: string, sql: string): Promise<void> {
  const database = await openDatabase(root);
  database.exec(`PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF; ${sql}`);
  database.close();
}

test('a newer store is refused, also by a process that has it open', async (t) => {
  const root = await makeRoot(t, 2);
  const snapshotter = await Snapshotter.open(root);
  t.teardown(() => snapshotter.close());
  await change(root, 'PRAGMA user_version = 3');
  const error = await t.throwsAsync(() => snapshotter.remove('key 1'), { code: 'ERR_SNAPSHOT_STORE_VERSION' });
  t.regex(error?.message ?? '', /has version 3.*newer version/);
  await t.throwsAsync(() => Snapshotter.open(root), { code: 'ERR_SNAPSHOT_STORE_VERSION' });
  await t.throwsAsync(() => Snapshotter.open(root, { readonly: true }), { code: 'ERR_SNAPSHOT_STORE_VERSION' });
  t.is((await checkRoot(root, false)).records.get('key 1')?.name, 'key 1');
});

test('parents that form a circle are a damaged store', async (t) => {
  const root = await makeRoot(t, 0);
  const snapshotter = await Snapshotter.open(root);
  t.teardown(() => snapshotter.close());
  await change(root, "UPDATE snapshots SET parent = id WHERE name = 'base'");
  await t.throwsAsync(() => snapshotter.view('view', 'base'), {
    code: 'ERR_SNAPSHOT_STORE_DAMAGED',
    message: /circle/,
  });
});

for (const [what, sql] of [
  ['a parent that is missing', 'UPDATE snapshots SET parent = 77'],
  ['an odd kind', "UPDATE snapshots SET kind = 'odd'"],
  ['labels that are not an object', "UPDATE snapshots SET labels = '7'"],
  ['a committed snapshot without its size', 'UPDATE snapshots SET size = NULL'],
  ['the tables of another program', 'DROP TABLE removing; PRAGMA application_id = 1; PRAGMA user_version = 1'],
] as const) {
  test(`damage is found at open, and changes nothing: ${what}`, async (t) => {
    const root = await makeRoot(t, 0);
    await change(root, sql);
    const error = await t.throwsAsync(() => Snapshotter.open(root), { code: 'ERR_SNAPSHOT_STORE_DAMAGED' });
    t.regex(error?.message ?? '', /metadata\.db' is damaged: .*backup/);
    t.deepEqual(readdirSync(join(root, 'snapshots')), ['1']);
  });
}

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
      snapshotter.commit('first', { name: 'name' }),
      snapshotter.cleanup(),
    ];
    const closing = [snapshotter.close(), snapshotter.close()];
    for (const verb of ['stat', 'prepare', 'mounts', 'usage', 'remove'] as const) {
      await t.throwsAsync(async () => snapshotter[verb]('key 1'), { code: 'ERR_SNAPSHOT_CLOSED' });
    }
    await Promise.all(closing);
    await t.throwsAsync(() => namesOf(snapshotter.list()), { code: 'ERR_SNAPSHOT_CLOSED' });
    await t.notThrowsAsync(Promise.all(verbs));
    const { records, problems } = await checkRoot(root, true);
    t.deepEqual(problems, []);
    t.is(records.size, 21);
  });
}

test('two snapshotters of one process on one root see what each other does', async (t) => {
  const root = join(scratch(t), 'root');
  const [a, b] = [await Snapshotter.open(root), await Snapshotter.open(root)];
  await a.prepare('of a');
  await b.commit('of a', { name: 'by b' });
  t.is((await a.stat('by b')).kind, 'committed');
  await a.close();
  await b.prepare('later', 'by b');
  await b.close();
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

for (const [place, command] of [
  ['project/node_modules', 'npm install'],
  ['lib/node_modules', 'npm install -g'],
  ['_npx/0123/node_modules', 'npx -p'],
] as const) {
  sqliteTest(`without SQLite the error says how to get it: in ${place}`, { needsSqlite: false }, (t) => {
    const copy = join(scratch(t), place, 'overlayfs');
    for (const name of ['package.json', 'dist']) cpSync(join(packageRoot, name), join(copy, name), { recursive: true });
    mkdirSync(join(copy, 'build/Release'), { recursive: true });
    copyFileSync(join(packageRoot, 'build/Release/overlayfs.node'), join(copy, 'build/Release/overlayfs.node'));
    const script = `import { Snapshotter } from 'overlayfs/snapshots';
      const error = await Snapshotter.open(process.argv[1]).catch((error) => error);
      console.log(error.code + ': ' + error.message);`;
    const args = ['--input-type=module', '-e', script, join(copy, 'root')];
    const printed = execFileSync(process.execPath, args, { cwd: copy, encoding: 'utf8' });
    t.true(printed.startsWith('ERR_SNAPSHOT_DEPENDENCY_MISSING: '), printed);
    t.true(printed.includes(`Run ${command} @photostructure/sqlite@1`), printed);
  });
}

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
  const names = await namesOf(again.list());
  for (const key of made) t.true(names.includes(key), key);
  await again.close();
  t.deepEqual((await checkRoot(root, false)).problems, []);
});

// @photostructure/sqlite 1.2 ends the process if its thread is terminated in one of its calls.
sqliteTest('workers that are terminated at any moment leave nothing behind', { needsSqlite: true }, async (t) => {
  t.timeout(300_000);
  const root = join(scratch(t, 'disk'), 'root');
  const snapshotter = await Snapshotter.open(root, { fsync: 'store' });
  t.teardown(() => snapshotter.close());
  const script = `import('overlayfs/snapshots').then(async ({ Snapshotter }) => {
    const { workerData: { root, round }, parentPort } = require('node:worker_threads');
    const snapshotter = await Snapshotter.open(root, { fsync: 'store' });
    parentPort.postMessage('open');
    for (let i = 0; ; i++) {
      const key = round + ' ' + i;
      await snapshotter.prepare(key);
      for await (const _ of snapshotter.list());
      await (i % 2 ? snapshotter.commit(key, { name: 'committed ' + key }) : snapshotter.remove(key));
      await snapshotter.cleanup();
    }
  })`;
  const random = generator(seed);
  // SQLite keeps some descriptors of the file itself, for connections to come.
  const held = () =>
    openPaths()
      .filter((path) => path?.startsWith(root) && !path.endsWith('.db'))
      .sort();
  const before = held();
  for (let round = 0; round < scaled(100); round++) {
    const worker = new Worker(script, { eval: true, workerData: { root, round } });
    await once(worker, 'message');
    await new Promise((resolve) => setTimeout(resolve, random(20)));
    await worker.terminate();
    await snapshotter.prepare(`after ${round}`);
  }
  for (let i = 0; i < 200 && held().length > before.length; i++)
    await new Promise((resolve) => setTimeout(resolve, 50));
  t.deepEqual(held(), before, `seed ${seed}`);
  t.deepEqual((await snapshotter.cleanup()).kept, []);
  t.deepEqual((await checkRoot(root, true)).problems, [], `seed ${seed}`);
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
