/** The service for containerd: each request, each status, clients that misbehave, sockets, metrics, the log. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { create, toBinary } from '@bufbuild/protobuf';
import { status } from '@grpc/grpc-js';
import test, { type ExecutionContext } from 'ava';
import { type ServeOptions, type SnapshotServer, serve } from 'overlayfs/containerd';
import { Snapshotter, type SnapshotterOptions } from 'overlayfs/snapshots';
import { SnapshotRequestSchema } from '#lib/containerd/snapshots_pb.js';
import { scratch } from '../support/index.js';
import { TestClient } from './client.js';

interface Fixture {
  readonly dir: string;
  readonly address: string;
  readonly snapshotter: Snapshotter;
  readonly server: SnapshotServer;
  readonly client: TestClient;
}

async function start(
  t: ExecutionContext,
  options: ServeOptions = {},
  snapshotterOptions: SnapshotterOptions = {},
): Promise<Fixture> {
  const dir = scratch(t);
  const address = join(dir, 'socket');
  const snapshotter = await Snapshotter.open(join(dir, 'root'), { fsync: 'none', ...snapshotterOptions });
  const server = await serve(snapshotter, { address, log: () => {}, ...options });
  const client = new TestClient(address);
  t.teardown(async () => {
    client.close();
    await server.close();
    await snapshotter.close();
  });
  return { dir, address, snapshotter, server, client };
}

const ids = { snapshotter: 'overlayfs-node' };

async function fails(t: ExecutionContext, run: Promise<unknown>, code: keyof typeof status, details?: RegExp) {
  const error = await t.throwsAsync(run);
  const { code: found, details: text } = error as unknown as { code: number; details: string };
  t.is(status[found], code, text);
  if (details !== undefined) t.regex(text, details);
}

// ------------------------------------------------------------------------------------------------- each request

test('each request does what the verb does', async (t) => {
  const { client, dir, snapshotter } = await start(t);
  const labels = { 'containerd.io/snapshot/x': 'y' };
  const { mounts } = await client.call('prepare', { ...ids, key: 'default/1/a', labels });
  const fs = join(dir, 'root/snapshots/1/fs');
  t.like(mounts, [{ type: 'bind', source: fs, target: '', options: ['rw', 'rbind'] }]);
  writeFileSync(join(fs, 'file'), 'text');
  await client.call('commit', { ...ids, name: 'default/2/A', key: 'default/1/a', labels });
  const { info } = await client.call('stat', { ...ids, key: 'default/2/A' });
  const { createdNs } = await snapshotter.stat('default/2/A');
  t.like(info, { name: 'default/2/A', parent: '', kind: 3, labels });
  t.is((info?.createdAt?.seconds ?? 0n) * 1_000_000_000n + BigInt(info?.createdAt?.nanos ?? 0), BigInt(createdNs));
  t.like(await client.call('usage', { ...ids, key: 'default/2/A' }), { inodes: 2n });

  const view = await client.call('view', { ...ids, key: 'view', parent: 'default/2/A' });
  t.like(view.mounts, [{ type: 'bind', source: fs, options: ['ro', 'rbind'] }]);
  const { mounts: prepared } = await client.call('prepare', { ...ids, key: 'b', parent: 'default/2/A' });
  t.is(prepared[0]?.type, 'overlay');
  t.deepEqual((await client.call('mounts', { ...ids, key: 'b' })).mounts, prepared);
  t.deepEqual(
    (await client.list(['kind==active'])).flat().map(({ name, kind }) => [name, kind]),
    [['b', 2]],
  );
  t.deepEqual(
    (await client.list(['kind==view'])).flat().map(({ kind }) => kind),
    [1],
  );

  const updated = await client.call('update', {
    ...ids,
    info: { name: 'b', labels: { one: '1', two: '2' } },
    updateMask: { paths: ['labels.one'] },
  });
  t.deepEqual(updated.info?.labels, { one: '1' });
  await client.call('update', { ...ids, info: { name: 'b', labels: { two: '2' } } });
  t.deepEqual((await snapshotter.stat('b')).labels, { two: '2' });

  await client.call('remove', { ...ids, key: 'view' });
  await client.call('remove', { ...ids, key: 'b' });
  mkdirSync(join(dir, 'root/snapshots/99'));
  await client.call('cleanup', ids);
  t.false(existsSync(join(dir, 'root/snapshots/99')));
  t.deepEqual(
    (await client.list()).flat().map(({ name }) => name),
    ['default/2/A'],
  );
});

test('a commit can rebase', async (t) => {
  const { client, snapshotter } = await start(t);
  for (const name of ['A', 'B']) {
    await client.call('prepare', { key: 'key' });
    await client.call('commit', { name, key: 'key', parent: name === 'B' ? 'A' : '' });
  }
  t.is((await snapshotter.stat('B')).parent, 'A');
});

test('a list comes in batches of 100', async (t) => {
  const { client, snapshotter } = await start(t);
  t.deepEqual(await client.list(), []);
  await Promise.all(Array.from({ length: 250 }, (_, i) => snapshotter.prepare(`key ${i}`)));
  const batches = await client.list();
  t.deepEqual(
    batches.map(({ length }) => length),
    [100, 100, 50],
  );
  t.is(new Set(batches.flat().map(({ name }) => name)).size, 250);
  t.deepEqual(await client.list(['name==none']), []);
});

// ---------------------------------------------------------------------------------------------- status codes

test('errors have the status by which containerd knows them', async (t) => {
  const { client } = await start(t);
  await client.call('prepare', { key: 'a' });
  await client.call('commit', { name: 'A', key: 'a' });
  await client.call('prepare', { key: 'b', parent: 'A' });
  await fails(t, client.call('stat', { key: 'none' }), 'NOT_FOUND', /'none' does not exist/);
  await fails(t, client.call('prepare', { key: 'x', parent: 'none' }), 'NOT_FOUND');
  await fails(t, client.call('prepare', { key: 'A' }), 'ALREADY_EXISTS');
  await fails(t, client.call('prepare', { key: 'x', parent: 'b' }), 'INVALID_ARGUMENT');
  await fails(t, client.call('prepare', { key: '' }), 'INVALID_ARGUMENT', /key is empty/);
  await fails(t, client.call('remove', { key: 'A' }), 'FAILED_PRECONDITION', /children/);
  await fails(t, client.call('mounts', { key: 'A' }), 'FAILED_PRECONDITION');
  await fails(t, client.list(['name=']), 'INVALID_ARGUMENT');
  const mask = { info: { name: 'b' }, updateMask: { paths: ['labels', 'parent'] } };
  await fails(t, client.call('update', mask), 'INVALID_ARGUMENT', /'parent'/);
  await fails(t, client.call('update', {}), 'INVALID_ARGUMENT', /no info/);
  await fails(t, client.call('prepare', { key: 'x', labels: { a: 'x'.repeat(5000) } }), 'INVALID_ARGUMENT', /4096/);
});

test('a snapshotter that is closed or read-only', async (t) => {
  const { client, snapshotter, dir } = await start(t);
  await client.call('prepare', { key: 'a' });
  await snapshotter.close();
  await fails(t, client.call('stat', { key: 'a' }), 'UNAVAILABLE');
  const readonly = await Snapshotter.open(join(dir, 'root'), { readonly: true });
  t.teardown(() => readonly.close());
  await t.throwsAsync(serve(readonly, { address: join(dir, 'other') }), { code: 'ERR_SNAPSHOT_SERVED' });
});

// -------------------------------------------------------------------------------------------------- bad input

test('keys of any text come back as they are', async (t) => {
  const { client } = await start(t);
  const keys = ['a/b', '..', '\x01', 'ä\n\u{1f600}', 'x'.repeat(10_000), ' '];
  for (const key of keys) await client.call('prepare', { key });
  t.deepEqual(
    (await client.list())
      .flat()
      .map(({ name }) => name)
      .sort(),
    [...keys].sort(),
  );
  await fails(t, client.call('stat', { key: `\u{1f600}`.repeat(8000) }), 'NOT_FOUND', /16000 characters/);
  await fails(t, client.call('prepare', { key: 'x'.repeat(40_000) }), 'INVALID_ARGUMENT', /40000 bytes/);
});

test('a request that is not right is refused, and the server goes on', async (t) => {
  const { client } = await start(t);
  const key = (bytes: string) => Buffer.from(`12${(bytes.length / 2).toString(16).padStart(2, '0')}${bytes}`, 'hex');
  await fails(t, client.send('stat', key('ff')), 'INVALID_ARGUMENT', /no SnapshotRequest/);
  for (const bytes of ['12', '1205', 'ff', '0a0141120341', '12ffffffffff', '0f']) {
    await fails(t, client.send('stat', Buffer.from(bytes, 'hex')), 'INVALID_ARGUMENT', /no SnapshotRequest/);
  }
  await fails(t, client.send('list', Buffer.from('12', 'hex')), 'INVALID_ARGUMENT');
  // A field that the request does not have, of each type.
  const unknown = Buffer.from(`a80601a2060178b106${'00'.repeat(8)}`, 'hex');
  const request = toBinary(SnapshotRequestSchema, create(SnapshotRequestSchema, { key: 'none' }));
  await fails(t, client.send('stat', Buffer.concat([unknown, request])), 'NOT_FOUND');
  await fails(t, client.call('stat', { key: 'x'.repeat(17 * 2 ** 20) }), 'RESOURCE_EXHAUSTED');
  await client.call('prepare', { key: 'still here' });
});

test('1,000 connections that send nothing, or nonsense, disturb nobody', async (t) => {
  const { client, address } = await start(t);
  const sockets: Socket[] = [];
  while (sockets.length < 1000) {
    const socket = connect(address);
    const isOpen = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true));
      socket.on('error', () => resolve(false));
    });
    // Too many wait already.
    if (!isOpen) continue;
    if (sockets.length % 10 === 0) socket.write('GET / HTTP/1.1\r\n\r\n');
    sockets.push(socket);
  }
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
  });
  await client.call('prepare', { key: 'a' }, { deadline: 20_000 });
  t.is((await client.list()).flat().length, 1);
});

test('a client that does not read its list disturbs nobody', async (t) => {
  const { client, snapshotter, address } = await start(t, { concurrency: 1 });
  const labels = { long: 'x'.repeat(4000) };
  await Promise.all(Array.from({ length: 500 }, (_, i) => snapshotter.prepare(`key ${i}`, '', { labels })));
  const slow = new TestClient(address);
  t.teardown(() => slow.close());
  const streams = Array.from({ length: 10 }, () => slow.stream());
  for (const stream of streams) stream.on('error', () => {}).pause();
  await client.call('stat', { key: 'key 1' }, { deadline: 20_000 });
  t.is((await client.list()).flat().length, 500);
  for (const stream of streams) stream.cancel();
});

// ------------------------------------------------------------------------------- turns, deadlines, cancellation

/** Holds verbs up until the promise is fulfilled. */
function holdUp(snapshotter: Snapshotter): { release: () => void; begun: () => number } {
  let release = (): void => {};
  const held = new Promise<void>((resolve) => (release = resolve));
  const { stat } = snapshotter;
  let begun = 0;
  snapshotter.stat = async (key) => {
    begun++;
    await held;
    return stat.call(snapshotter, key);
  };
  return { release, begun: () => begun };
}

test('requests beyond the limit wait in their order; those given up are never performed', async (t) => {
  const { client, snapshotter, server } = await start(t, { concurrency: 2, metrics: '127.0.0.1:0' });
  const [host, port] = server.metrics?.split(':') ?? [];
  const wait = async (count: number): Promise<void> => {
    while (!(await get({ host, port }, '/metrics'))[1].includes(`_waiting ${count}\n`)) await sleep(5);
  };
  await client.call('prepare', { key: 'a' });
  const { release, begun } = holdUp(snapshotter);
  const running = [client.call('stat', { key: 'a' }), client.call('stat', { key: 'a' })];
  while (begun() < 2) await sleep(5);
  const controller = new AbortController();
  const cancelled = client.call('stat', { key: 'a' }, { signal: controller.signal });
  const patient = client.call('prepare', { key: 'b' });
  await wait(2);
  await fails(t, client.call('stat', { key: 'a' }, { deadline: 500 }), 'DEADLINE_EXCEEDED');
  await wait(2);
  controller.abort();
  await fails(t, cancelled, 'CANCELLED');
  await wait(1);
  t.is(begun(), 2);
  release();
  await Promise.all([...running, patient]);
  t.is(begun(), 2);
});

test('close waits for requests under way, but not for ever', async (t) => {
  const { client, snapshotter, server, address } = await start(t);
  await client.call('prepare', { key: 'a' });
  const { release, begun } = holdUp(snapshotter);
  const call = client.call('stat', { key: 'a' });
  while (begun() < 1) await sleep(5);
  const closing = server.close();
  t.false(existsSync(address));
  await sleep(50);
  release();
  t.is((await call).info?.name, 'a');
  await closing;
  await server.closed;

  const again = await serve(snapshotter, { address, gracePeriod: 100, log: () => {} });
  const other = new TestClient(address);
  t.teardown(() => other.close());
  const never = holdUp(snapshotter);
  const hanging = other.call('stat', { key: 'a' });
  while (never.begun() < 1) await sleep(5);
  await Promise.all([again.close(), t.throwsAsync(hanging)]);
  never.release();
});

test('close does not wait for clients that never close their connections', async (t) => {
  const { address, server } = await start(t, { gracePeriod: 2 ** 31 });
  const socket = connect({ path: address, allowHalfOpen: true });
  t.teardown(() => socket.destroy());
  socket.on('error', () => {}).resume();
  socket.write(`PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n${'\0\0\0\x04\0\0\0\0\0'}`);
  await once(socket, 'data');
  await server.close();
  t.truthy(await new Promise((resolve) => socket.write('x', resolve)));
});

test('the signal stops the server', async (t) => {
  const controller = new AbortController();
  const { server, address } = await start(t, { signal: controller.signal });
  controller.abort();
  await server.closed;
  t.false(existsSync(address));
  const { snapshotter } = await start(t);
  await t.throwsAsync(serve(snapshotter, { address, signal: controller.signal }), { name: 'AbortError' });
});

// ----------------------------------------------------------------------------------------------------- sockets

test('the socket has mode 0600, and goes with the server', async (t) => {
  const { address, server } = await start(t);
  t.is(statSync(address).mode & 0o7777, 0o600);
  await server.close();
  t.false(existsSync(address));
});

test('a socket that a server has left is replaced; one on which somebody answers is not', async (t) => {
  const { dir, address, server, client } = await start(t);
  const other = await Snapshotter.open(join(dir, 'other'), { fsync: 'none' });
  t.teardown(() => other.close());
  await t.throwsAsync(serve(other, { address }), { code: 'ERR_SNAPSHOT_SERVED', message: /Somebody answers/ });
  await client.call('prepare', { key: 'still here' });
  await server.close();
  const metrics = join(dir, 'metrics');
  const script = `require('net').createServer().listen(process.argv[1], () => process.kill(process.pid, 'SIGKILL'))`;
  for (const path of [address, metrics]) {
    spawnSync(process.execPath, ['-e', script, path]);
    t.true(existsSync(path));
  }
  const again = await serve(other, { address, metrics, log: () => {} });
  for (const path of [address, metrics]) t.is(statSync(path).mode & 0o7777, 0o600);
  await client.call('prepare', { key: 'in the other one' });
  t.is((await other.stat('in the other one')).kind, 'active');
  await again.close();
  t.deepEqual(
    readdirSync(dir).filter((name) => name !== 'root' && name !== 'other'),
    [],
  );
});

test('something else than a socket is never replaced', async (t) => {
  const { dir } = await start(t);
  const other = await Snapshotter.open(join(dir, 'other'), { fsync: 'none' });
  t.teardown(() => other.close());
  writeFileSync(join(dir, 'file'), 'precious');
  symlinkSync('nowhere', join(dir, 'link'));
  for (const name of ['file', 'link', 'root']) {
    await t.throwsAsync(serve(other, { address: join(dir, name) }), { code: 'ERR_SNAPSHOT_SERVED' }, name);
  }
  t.is(readFileSync(join(dir, 'file'), 'utf8'), 'precious');
  const missing = { code: 'ERR_SNAPSHOT_SERVED', message: /directory '.*none' does not exist. Run mkdir -p/ };
  await t.throwsAsync(serve(other, { address: join(dir, 'none/socket') }), missing);
});

test('one server for a root', async (t) => {
  const { dir, server, address } = await start(t);
  const again = await Snapshotter.open(join(dir, 'root'), { fsync: 'none' });
  t.teardown(() => again.close());
  await t.throwsAsync(serve(again, { address: join(dir, 'second') }), { code: 'ERR_SNAPSHOT_SERVED', message: /root/ });
  t.false(existsSync(join(dir, 'second')));
  await server.close();
  await (await serve(again, { address, log: () => {} })).close();
});

test('options that are not right are refused', async (t) => {
  const { snapshotter } = await start(t);
  const bad: [ServeOptions, string][] = [
    [{ address: 'relative' }, 'ERR_INVALID_ARG_VALUE'],
    [{ address: `/${'x'.repeat(107)}` }, 'ERR_INVALID_ARG_VALUE'],
    [{ address: '/a\0b' }, 'ERR_INVALID_ARG_VALUE'],
    [{}, 'ERR_INVALID_ARG_TYPE'],
    [{ address: 1 as never }, 'ERR_INVALID_ARG_TYPE'],
    [{ address: '/s', concurrency: 0 }, 'ERR_OUT_OF_RANGE'],
    [{ address: '/s', metrics: 'nonsense' }, 'ERR_INVALID_ARG_VALUE'],
    [{ address: '/s', metrics: 'host:99999' }, 'ERR_INVALID_ARG_VALUE'],
    [{ address: '/s', logLevel: 'loud' as never }, 'ERR_INVALID_ARG_VALUE'],
    [{ address: '/s', addres: '/s' } as never, 'ERR_INVALID_ARG_VALUE'],
  ];
  for (const [options, code] of bad) {
    await t.throwsAsync(serve(snapshotter, options), { code }, JSON.stringify(options));
  }
  await t.throwsAsync(serve({} as never, { address: '/s' }), { code: 'ERR_INVALID_ARG_TYPE' });
});

// --------------------------------------------------------------------------------------------- metrics, the log

function get(where: object, path: string): Promise<[number | undefined, string]> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ ...where, path, agent: false }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text) => (body += text));
      response.once('end', () => resolve([response.statusCode, body]));
    });
    request.once('error', reject).end();
  });
}

test('metrics and health, where they are asked for', async (t) => {
  const { client, server, snapshotter } = await start(t, { metrics: '127.0.0.1:0' });
  const [host, port] = server.metrics?.split(':') ?? [];
  const at = { host, port };
  await client.call('prepare', { key: 'a' });
  await t.throwsAsync(client.call('stat', { key: 'none' }));
  const [code, text] = await get(at, '/metrics');
  t.is(code, 200);
  t.true(text.includes('overlayfs_snapshots_requests_total{method="Prepare",code="OK"} 1\n'));
  t.true(text.includes('overlayfs_snapshots_requests_total{method="Stat",code="NOT_FOUND"} 1\n'));
  t.true(text.includes('overlayfs_snapshots_request_duration_seconds_count{method="Stat"} 1\n'));
  t.true(text.includes('overlayfs_snapshots_connections 1\n'));
  for (const line of text.trim().split('\n')) {
    t.regex(line, /^(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{([a-z]+="[^"]*",?)+\})? [0-9.e+-]+)$/);
  }
  t.deepEqual(await get(at, '/healthz'), [200, 'ok\n']);
  t.is((await get(at, '/none'))[0], 404);
  await snapshotter.close();
  t.is((await get(at, '/healthz'))[0], 503);
  await server.close();
  await t.throwsAsync(get(at, '/healthz'));
});

test('a log that throws fails no request, and no shutdown', async (t) => {
  const log = () => {
    throw new Error('the disk is full');
  };
  // A shutdown that fails to see its end would last.
  const { client, server } = await start(t, { logLevel: 'debug', log, gracePeriod: 2 ** 31 });
  await client.call('prepare', { key: 'a' });
  t.is((await client.call('stat', { key: 'a' })).info?.name, 'a');
  await server.close();
});

test('the log has a line for each request', async (t) => {
  const lines: string[] = [];
  const { client } = await start(t, { logLevel: 'info', log: (line) => lines.push(line) });
  await client.call('prepare', { key: 'k8s/1/a' }, { namespace: 'k8s.io' });
  await t.throwsAsync(client.call('stat', { key: 'x'.repeat(10_000) }));
  const [ready, prepared, failed] = lines.map((line) => JSON.parse(line));
  t.like(ready, { level: 'info', message: 'ready' });
  t.like(prepared, { message: 'request', method: 'Prepare', namespace: 'k8s.io', key: 'k8s/1/a', code: 'OK' });
  t.is(typeof prepared.milliseconds, 'number');
  t.like(failed, { method: 'Stat', code: 'NOT_FOUND' });
  t.true((lines[2]?.length ?? 0) < 2000);
});
