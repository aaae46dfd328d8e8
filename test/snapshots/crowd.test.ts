/** Many callers in two processes on one root: each change of a key is seen by all, and nobody waits forever. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { Snapshotter } from 'overlayfs/snapshots';
import { scaled, scratch } from '../support/index.js';
import { checkRoot } from './check-root.js';
import type { Crowd } from './crowd.js';

const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);

test('64 callers in two processes on 200 keys', async (t) => {
  t.timeout(300_000);
  const milliseconds = scaled(scaled(60_000), 2_000);
  t.log(`seed ${seed}, ${milliseconds} ms`);
  const root = join(scratch(t, 'disk'), 'root');
  const run = async (number: number): Promise<Crowd> => {
    const args = [join(import.meta.dirname, 'crowd.js'), root, `${seed + 100 * number}`, '32', `${milliseconds}`];
    const { stdout } = await promisify(execFile)(process.execPath, args, { maxBuffer: 2 ** 24 });
    return JSON.parse(stdout);
  };
  const crowds = await Promise.all([run(0), run(1)]);
  for (const { latencies } of crowds) {
    const shown = Object.entries(latencies).map(
      ([verb, { count, median, most }]) => `${verb} ${count}: ${median.toFixed(1)} ms, at most ${most.toFixed(0)}`,
    );
    t.log(shown.join('; '));
  }
  const snapshotter = await Snapshotter.open(root);
  t.deepEqual((await snapshotter.cleanup()).kept, []);
  await snapshotter.close();
  const { records, problems } = await checkRoot(root, true);
  t.deepEqual(problems, []);
  for (const key of new Set(crowds.flatMap(({ balance }) => Object.keys(balance)))) {
    const count = crowds.reduce((sum, { balance }) => sum + (balance[key] ?? 0), 0);
    t.is(count, records.has(key) ? 1 : 0, key);
  }
});
