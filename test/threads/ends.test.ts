import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { ExecutionContext } from 'ava';
import { unmountSync } from 'overlayfs';
import {
  countDescriptors,
  countThreads,
  eventually,
  layers,
  mountsBelow,
  mountTest,
  packageRoot,
  scaled,
  scratch,
} from '../support/index.js';

/** How often something ends with calls under way. */
const ROUNDS = scaled(scaled(500), 12);

/** The sets 0 to 3 of directories that the programs below mount. */
function makeSets(dir: string): void {
  for (let i = 0; i < 4; i++) layers(join(dir, String(i)));
}

/** Coverage of each worker would cost more than its work. */
const { NODE_V8_COVERAGE: _, ...env } = process.env;

const program = join(packageRoot, 'dist-test/test/support/busy.js');

mountTest('a process that exits with calls under way leaves no mount behind', async (t) => {
  const dir = scratch(t);
  const atOnce = 4;
  const run = async (round: number) => {
    const child = spawn(process.execPath, [program, join(dir, `lane-${round % atOnce}`), String(round)], {
      stdio: ['ignore', 'inherit', 'inherit'],
      env,
    });
    const [code, signal] = await once(child, 'exit');
    t.is(signal, null, `round ${round} was ended by ${signal}`);
    t.is(code, 0, `round ${round}`);
  };
  for (let lane = 0; lane < atOnce; lane++) makeSets(join(dir, `lane-${lane}`));
  // Half of the rounds are processes, the other half workers (below).
  await Promise.all(
    Array.from({ length: atOnce }, async (_, lane) => {
      for (let round = lane; round < ROUNDS / 2; round += atOnce) await run(round);
    }),
  );
  t.deepEqual(mountsBelow(dir).slice(1), []);
});

mountTest('workers that end with calls under way leave no mount, thread or descriptor behind', async (t) => {
  const dir = scratch(t);
  await endWorkers(t, dir, 3);
  await eventually(t, () => countThreads() === 0);
  const descriptors = countDescriptors();
  await endWorkers(t, dir, ROUNDS / 2);
  t.deepEqual(mountsBelow(dir).slice(1), []);
  await eventually(t, () => countThreads() === 0);
  t.is(countDescriptors(), descriptors);
});

async function endWorkers(t: ExecutionContext, dir: string, rounds: number): Promise<void> {
  makeSets(dir);
  let left = 0;
  for (let round = 0; round < rounds; round++) {
    const worker = new Worker(program, { argv: [dir, String(round)], execArgv: [], env });
    const exited = once(worker, 'exit');
    const failed = once(worker, 'error').then(([error]) => t.fail(String(error)));
    await Promise.race([once(worker, 'message'), failed]);
    if (round % 3 !== 0) await exited;
    else {
      await worker.terminate();
      // A worker that is terminated between the promise of a mount and the unmount leaves it, as one that is killed does.
      const mounts = mountsBelow(dir).slice(1);
      for (const { target } of mounts) unmountSync(target);
      left += mounts.length;
    }
  }
  t.true(left <= 1 + rounds / 50, `${left} mounts stayed`);
}

mountTest('many mounts from four workers at once leave no thread, descriptor or mount', async (t) => {
  const dir = scratch(t);
  const loop = join(packageRoot, 'dist-test/test/support/loop.js');
  const MOUNTS = scaled(scaled(10_000), 400);
  const WORKERS = 4;
  const run = async (worker: number, count: number) => {
    makeSets(join(dir, String(worker)));
    const thread = new Worker(loop, { argv: [join(dir, String(worker)), String(count)], execArgv: [], env });
    const [code] = await once(thread, 'exit');
    t.is(code, 0);
  };
  await Promise.all(Array.from({ length: WORKERS }, (_, i) => run(i, 8)));
  await eventually(t, () => countThreads() === 0);
  const descriptors = countDescriptors();
  const tasks = readFileSync('/proc/self/status', 'latin1').match(/Threads:\s+(\d+)/)?.[1];
  await Promise.all(Array.from({ length: WORKERS }, (_, i) => run(i, MOUNTS / WORKERS)));
  t.deepEqual(mountsBelow(dir).slice(1), []);
  await eventually(t, () => countThreads() === 0);
  t.is(countDescriptors(), descriptors);
  await eventually(t, () => readFileSync('/proc/self/status', 'latin1').match(/Threads:\s+(\d+)/)?.[1] === tasks);
});

mountTest('workers that are terminated while they load the addon do no harm', async (t) => {
  const worker = `
    const { workerData } = require('node:worker_threads');
    import('overlayfs').then(({ featuresSync }) => {
      Atomics.store(workerData, 0, 1);
      featuresSync();
    });`;
  // In a process of its own, which would be aborted.
  const main = `
    import { Worker } from 'node:worker_threads';
    await import('overlayfs');
    for (let round = 0; round < ${scaled(60, 10)}; round++) {
      const workerData = new Int32Array(new SharedArrayBuffer(4));
      const worker = new Worker(${JSON.stringify(worker)}, { eval: true, execArgv: [], workerData });
      await new Promise((resolve) => worker.once('online', resolve));
      while (Atomics.load(workerData, 0) === 0) await new Promise((resolve) => setImmediate(resolve));
      const end = performance.now() + (round % 20) / 30;
      while (performance.now() < end);
      await worker.terminate();
    }`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', main], {
    cwd: packageRoot,
    stdio: ['ignore', 'inherit', 'inherit'],
    env,
  });
  t.deepEqual(await once(child, 'exit'), [0, null]);
});
