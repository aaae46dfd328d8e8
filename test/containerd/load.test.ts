/** Many clients at once, and many requests: all are answered, and the memory of the server does not grow. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { program } from '../cli/run.js';
import { checkRoot } from '../snapshots/check-root.js';
import { generator, scaled, scratch } from '../support/index.js';
import { TestClient } from './client.js';

const CLIENTS = 64;
const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);

interface Server {
  readonly address: string;
  readonly root: string;
  /** In MB. */
  memory(): number;
  stop(): Promise<void>;
}

async function start(t: ExecutionContext, ...more: string[]): Promise<Server> {
  const dir = scratch(t, 'disk');
  const [root, address] = [join(dir, 'root'), join(dir, 'socket')];
  const args = [program, 'serve', '--root', root, '--address', address, '--log-level', 'error', ...more];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  const ended = once(child, 'exit');
  t.teardown(() => child.kill('SIGKILL'));
  while (!existsSync(address)) await sleep(20);
  return {
    address,
    root,
    memory: () => Number(/RssAnon:\s+(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1]) / 1024,
    async stop() {
      child.kill('SIGTERM');
      const [code] = await ended;
      t.is(code, 0);
    },
  };
}

/** A life of a snapshot: six requests. */
async function live(client: TestClient, key: string): Promise<void> {
  await client.call('prepare', { key, labels: { a: 'b' } });
  await client.call('mounts', { key });
  await client.call('stat', { key });
  await client.call('commit', { name: `${key} committed`, key });
  await client.call('usage', { key: `${key} committed` });
  await client.call('remove', { key: `${key} committed` });
}

test('64 clients', async (t) => {
  t.timeout(200_000);
  const milliseconds = scaled(scaled(60_000), 2_000);
  const server = await start(t);
  const end = performance.now() + milliseconds;
  const times: number[] = [];
  await Promise.all(
    Array.from({ length: CLIENTS }, async (_, number) => {
      const client = new TestClient(server.address);
      const random = generator(seed + number);
      for (let i = 0; performance.now() < end; i++) {
        const start = performance.now();
        await live(client, `${number} ${i}`);
        times.push((performance.now() - start) / 6);
        if (random(50) === 0) await client.list(['kind==active']);
        if (random(200) === 0) await client.call('cleanup', {});
      }
      client.close();
    }),
  );
  times.sort((a, b) => a - b);
  const at = (share: number) => times[Math.floor(times.length * share)]?.toFixed(1);
  t.log(`${times.length * 6} requests in ${milliseconds} ms; ${at(0.5)} ms each, ${at(0.99)} in the slowest hundredth`);
  await server.stop();
  const { records, problems } = await checkRoot(server.root, false);
  t.deepEqual(problems, []);
  t.is(records.size, 0);
});

test('memory is flat over many requests', async (t) => {
  t.timeout(900_000);
  const lives = Math.ceil(scaled(scaled(100_000), 2_000) / 6 / CLIENTS);
  const server = await start(t, '--fsync', 'none');
  const clients = Array.from({ length: 8 }, () => new TestClient(server.address));
  let key = 0;
  const work = async (count: number): Promise<void> => {
    await Promise.all(
      Array.from({ length: CLIENTS }, async (_, i) => {
        for (let j = 0; j < count; j++) await live(clients[i % clients.length] as TestClient, `key ${key++}`);
      }),
    );
    await clients[0]?.call('cleanup', {});
  };
  // Half as many first: code is compiled, and the heap gets its size.
  await work(Math.ceil(lives / 2));
  const before = server.memory();
  await work(lives);
  const after = server.memory();
  t.log(`${lives * 6 * CLIENTS} requests: ${before.toFixed(0)} MB before, ${after.toFixed(0)} MB after`);
  t.true(after - before < 64, `${before} MB grew to ${after} MB`);
  for (const client of clients) client.close();
  await server.stop();
});
