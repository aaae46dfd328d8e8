/**
 * Many callers on few keys. Arguments: the root, the seed, the number of callers, the milliseconds. It prints, as JSON, how
 * often each key came and went, and how long verbs took.
 */
import { Snapshotter } from 'overlayfs/snapshots';
import { generator } from '../support/random.js';
import { codeOf } from './verbs.js';

const [root = '', seed = '', callers = '', duration = ''] = process.argv.slice(2);
const KEYS = 200;

export interface Crowd {
  /** By key: how often it came, less how often it went. */
  readonly balance: Record<string, number>;
  /** In ms. */
  readonly latencies: Record<string, { readonly count: number; readonly median: number; readonly most: number }>;
}

const snapshotter = await Snapshotter.open(root);
const end = performance.now() + Number(duration);
const balance: Record<string, number> = {};
const took: Record<string, number[]> = {};
const add = (key: string, change: 1 | -1): void => {
  balance[key] = (balance[key] ?? 0) + change;
};

async function time(verb: string, run: () => Promise<unknown>, done: () => void = () => {}): Promise<void> {
  const start = performance.now();
  try {
    await run();
    done();
  } catch (error) {
    if (!codeOf(error).startsWith('ERR_SNAPSHOT_')) throw error;
  }
  const list = took[verb] ?? [];
  took[verb] = list;
  list.push(performance.now() - start);
}

async function call(number: number): Promise<void> {
  const random = generator(Number(seed) + number);
  const key = () => `key ${random(KEYS)}`;
  while (performance.now() < end) {
    const [a, b] = [key(), key()];
    const parent = random(2) === 0 ? key() : '';
    const steps = [
      () =>
        time(
          'prepare',
          () => snapshotter.prepare(a, parent),
          () => add(a, 1),
        ),
      () =>
        time(
          'view',
          () => snapshotter.view(a, parent),
          () => add(a, 1),
        ),
      () =>
        time(
          'commit',
          () => snapshotter.commit(a, { name: b }),
          () => {
            add(a, -1);
            add(b, 1);
          },
        ),
      () =>
        time(
          'remove',
          () => snapshotter.remove(a),
          () => add(a, -1),
        ),
      () =>
        time(
          'remove',
          () => snapshotter.remove(a),
          () => add(a, -1),
        ),
      () => time('mounts', () => snapshotter.mounts(a)),
      () => time('stat', () => snapshotter.stat(a)),
      () => time('setLabels', () => snapshotter.setLabels(a, { b }, { replace: true })),
      () => (random(20) === 0 ? time('cleanup', () => snapshotter.cleanup()) : Promise.resolve()),
      () =>
        time('walk', async () => {
          for await (const _ of snapshotter.list('kind==active'));
        }),
    ];
    await steps[random(steps.length)]?.();
  }
}

await Promise.all(Array.from({ length: Number(callers) }, (_, i) => call(i)));
await snapshotter.close();
const latencies = Object.entries(took).map(([verb, list]) => {
  list.sort((x, y) => x - y);
  return [verb, { count: list.length, median: list[list.length >> 1] ?? 0, most: list.at(-1) ?? 0 }] as const;
});
process.stdout.write(JSON.stringify({ balance, latencies: Object.fromEntries(latencies) } satisfies Crowd));
