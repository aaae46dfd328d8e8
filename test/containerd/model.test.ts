/**
 * Random requests by several clients at the same time, compared with the plain model of containerd's rules. Some are cut
 * off by a deadline, by their client, or by SIGKILL of the server: they have happened or not, nothing in between.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { status } from '@grpc/grpc-js';
import test, { type ExecutionContext } from 'ava';
import { program } from '../cli/run.js';
import { checkRoot } from '../snapshots/check-root.js';
import { chooseStep, Model } from '../snapshots/model.js';
import { generator, scaled, scratch } from '../support/index.js';
import { TestClient } from './client.js';

/** Twice: by default a hundredth, since killed servers take their time to start. */
const ROUNDS = scaled(scaled(5_000), 30);
const CLIENTS = 3;
const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);

class Server {
  readonly root: string;
  readonly #address: string;
  readonly #metrics: string;
  readonly #more: readonly string[];
  #child: ChildProcess | undefined;
  clients: TestClient[] = [];

  constructor(dir: string, more: readonly string[]) {
    this.root = join(dir, 'root');
    this.#address = join(dir, 'socket');
    this.#metrics = join(dir, 'metrics');
    this.#more = more;
  }

  async start(): Promise<void> {
    const places = ['--root', this.root, '--address', this.#address, '--metrics', this.#metrics];
    const args = [program, 'serve', ...places, '--log-level', 'silent', '--fsync', 'none', ...this.#more];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'inherit'] });
    this.#child = child;
    // A socket of the killed server is there until this one replaces it.
    for (;;) {
      if (child.exitCode !== null) throw new Error(`the server has ended with ${child.exitCode}`);
      if (existsSync(this.#address) && (await this.#running().catch(() => -1)) >= 0) break;
      await sleep(20);
    }
    this.clients = Array.from({ length: CLIENTS }, () => new TestClient(this.#address));
  }

  /** Returns how many requests are under way or wait. */
  #running(): Promise<number> {
    return new Promise((resolve, reject) => {
      httpRequest({ socketPath: this.#metrics, path: '/metrics' }, async (response) => {
        let text = '';
        for await (const piece of response) text += piece;
        const counts = Array.from(text.matchAll(/^overlayfs_snapshots_requests_(?:running|waiting) (\d+)$/gm));
        resolve(counts.reduce((sum, [, count]) => sum + Number(count), 0));
      })
        .on('error', reject)
        .end();
    });
  }

  /** Waits until what clients have given up is over. */
  async settle(): Promise<void> {
    // The server has read the earlier requests of a connection when it answers this one.
    for (const client of this.clients) await client.call('stat', { key: 'nobody' }).catch(() => {});
    while ((await this.#running()) > 0) await sleep(5);
  }

  async end(signal: 'SIGKILL' | 'SIGTERM'): Promise<unknown> {
    const child = this.#child as ChildProcess;
    if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
    const ended = once(child, 'exit');
    child.kill(signal);
    for (const client of this.clients) client.close();
    const [code] = await ended;
    return code;
  }
}

type Step = readonly [verb: string, args: readonly unknown[]];
type Methods = Parameters<TestClient['call']>[0];

/** The message for a verb. */
function toRequest([verb, args]: Step): object {
  const [first, second, third] = args as [
    string,
    string,
    { labels?: object; parent?: string; replace?: boolean } | undefined,
  ];
  if (verb === 'prepare' || verb === 'view') return { key: first, parent: second, ...third };
  if (verb === 'commit') return { key: first, ...(second as unknown as object) };
  if (verb === 'setLabels') {
    const names = ['none', ...Object.keys(second)].map((name) => `labels.${name}`);
    return { info: { name: first, labels: second }, updateMask: { paths: third?.replace ? [] : names } };
  }
  return verb === 'cleanup' ? {} : { key: first };
}

const unknown = new Set(['CANCELLED', 'DEADLINE_EXCEEDED', 'UNAVAILABLE']);

/** Returns the code of a request; `'?'` if nobody can say if it has happened. */
async function attempt(client: TestClient, step: Step, random: (below: number) => number): Promise<string> {
  const controller = new AbortController();
  const options = { ...(random(12) === 0 && { deadline: random(4) }), signal: controller.signal };
  if (random(12) === 0) setTimeout(() => controller.abort(), random(3));
  try {
    await client.call((step[0] === 'setLabels' ? 'update' : step[0]) as Methods, toRequest(step), options);
    return '';
  } catch (error) {
    const name = status[(error as { code: number }).code] ?? String(error);
    return unknown.has(name) ? '?' : `ERR_SNAPSHOT_${name}`;
  }
}

function* ordersOf<T>(items: readonly T[]): Generator<T[]> {
  if (items.length === 0) yield [];
  for (const [i, item] of items.entries()) {
    for (const rest of ordersOf(items.filter((_, j) => j !== i))) yield [item, ...rest];
  }
}

interface Answered {
  readonly step: Step;
  readonly code: string;
}

/** Yields the states in which these requests may leave the model: in any order, and unknown ones performed or not. */
function* statesAfter(model: Model, answered: readonly Answered[]): Generator<Model> {
  const cutOff = answered.filter(({ code }) => code === '?');
  for (let bits = 0; bits < 2 ** cutOff.length; bits++) {
    const performed = answered.filter((one) => one.code !== '?' || (bits & (1 << cutOff.indexOf(one))) !== 0);
    for (const order of ordersOf(performed)) {
      const next = new Model(model.records);
      const agrees = order.every(({ step: [verb, args], code }) => {
        const outcome = next.perform(verb, args);
        return code === '?' || code === ('code' in outcome ? outcome.code : '');
      });
      if (agrees) yield next;
    }
  }
}

const kinds = ['', 'view', 'active', 'committed'];
const shown = (records: Iterable<[string, { kind: string; parent: string; labels: object }]>): string[] =>
  Array.from(records, ([name, { kind, parent, labels }]) =>
    JSON.stringify([name, kind, parent, Object.entries(labels).sort()]),
  ).sort();

async function listed(client: TestClient): Promise<string[]> {
  const infos = (await client.list()).flat();
  return shown(infos.map(({ name, kind, parent, labels }) => [name, { kind: kinds[kind] as string, parent, labels }]));
}

async function play(t: ExecutionContext, ...more: string[]): Promise<void> {
  t.timeout(3_600_000);
  t.log(`seed ${seed}, ${ROUNDS} rounds`);
  const random = generator(seed);
  const server = new Server(scratch(t, 'disk'), more);
  await server.start();
  t.teardown(() => server.end('SIGKILL'));
  let model = new Model();
  const counts = { requests: 0, cutOff: 0, kills: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    const steps: Step[] = Array.from({ length: 1 + random(CLIENTS) }, () => chooseStep(random));
    const requests = steps.map((step, i) => attempt(server.clients[i] as TestClient, step, random));
    const isKilled = random(20) === 0;
    if (isKilled) {
      await sleep(random(4));
      await server.end('SIGKILL');
    }
    const codes = await Promise.all(requests);
    const answered = steps.map((step, i) => ({ step, code: codes[i] as string }));
    counts.requests += steps.length;
    counts.cutOff += codes.filter((code) => code === '?').length;
    if (isKilled) {
      counts.kills++;
      t.deepEqual((await checkRoot(server.root, false)).problems, []);
      await server.start();
    } else if (codes.includes('?')) await server.settle();
    const found = await listed(server.clients[0] as TestClient);
    const text = found.join('\n');
    const next = Array.from(statesAfter(model, answered)).find(({ records }) => shown(records).join('\n') === text);
    if (next === undefined) {
      t.log('before', shown(model.records));
      t.log('requests', JSON.stringify(answered));
      t.log('after', found);
      return t.fail(`round ${round} of seed ${seed}: no order of the requests leads here`);
    }
    model = next;
  }
  t.log(`${counts.requests} requests, ${counts.cutOff} cut off, ${counts.kills} kills`);
  await server.clients[0]?.call('cleanup', {});
  t.is(await server.end('SIGTERM'), 0);
  const { records, problems } = await checkRoot(server.root, true);
  t.deepEqual(problems, []);
  t.deepEqual(shown(records), shown(model.records));
}

test('random requests by several clients agree with the model', (t) => play(t));
test('random requests agree with the model, with removal at once', (t) => play(t, '--sync-remove'));
