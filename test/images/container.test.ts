/** Images by their names: run, started as containers, committed, and nothing left of what was not. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { listMountsSync } from 'overlayfs';
import { type Container, openImage } from 'overlayfs/images';
import type { Snapshotter } from 'overlayfs/snapshots';
import { generator, mountTest, scaled, scratch } from '../support/index.js';
import { makeProgramImage, openSnapshotter } from './helper.js';

async function open(t: ExecutionContext) {
  const dir = scratch(t, 'disk');
  await makeProgramImage(dir);
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  return { dir, snapshotter, name: `oci:${join(dir, 'layout')}` };
}

const quiet = { runtime: false, stdio: 'ignore' } as const;

async function pathsOf(container: Container): Promise<string[]> {
  const paths: string[] = [];
  for await (const { path } of container.changes()) paths.push(String(path));
  // Others are the places of its mounts, which the image lacks.
  return paths.filter((path) => /^(new|file)/.test(path));
}

/** The snapshots that no image has. */
async function leftIn(snapshotter: Snapshotter): Promise<string[]> {
  const left: string[] = [];
  for await (const { name, kind } of snapshotter.list()) if (kind !== 'committed') left.push(name);
  return left;
}

mountTest('openImage: run waits for the end; start gives a container with changes, commit and disposal', async (t) => {
  const { dir, snapshotter, name } = await open(t);
  const image = await openImage(`${name}:one`, { snapshotter });
  t.is((await image.run(['sh', '-c', 'exit 3'], quiet)).exitCode, 3);
  {
    await using container = await image.start(['sh', '-c', 'echo new > /new; read x'], {
      ...quiet,
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    while (!existsSync(join(container.path, 'new'))) await new Promise((resolve) => setTimeout(resolve, 5));
    t.deepEqual(await pathsOf(container), ['new']);
    container.process.stdin?.end();
    t.is(await container.exited, 1);
    t.is((await container.commit('two')).tag, 'two');
  }
  const two = await openImage(`${name}:two`, { root: join(dir, 'root') });
  t.is((await two.run(['cat', '/new'], quiet)).exitCode, 0);
  await two[Symbol.asyncDispose]();
  t.deepEqual(await leftIn(snapshotter), []);
});

mountTest('openImage: bad names and options are named', async (t) => {
  const { snapshotter, name } = await open(t);
  for (const [reference, code] of [
    ['', 'ERR_INVALID_ARG_VALUE'],
    ['oci:', 'ERR_INVALID_ARG_VALUE'],
    ['redis:alpine', 'ERR_INVALID_ARG_VALUE'],
    [7, 'ERR_INVALID_ARG_TYPE'],
    ['oci:/none:one', 'ERR_IMAGE_NOT_FOUND'],
    [`${name}:none`, 'ERR_IMAGE_NOT_FOUND'],
  ] as const) {
    await t.throwsAsync(openImage(reference as string, { snapshotter }), { code }, String(reference));
  }
  const image = await openImage(name, { snapshotter });
  for (const options of [{ commit: 'x' }, { command: ['x'] }, { none: 1 }]) {
    await t.throwsAsync(image.start(['ls'], options as object), { code: 'ERR_INVALID_ARG_VALUE' });
  }
  await using container = await image.start(['/none'], quiet);
  await t.throwsAsync(container.exited, { message: /\/none/ });
  await container[Symbol.asyncDispose]();
  t.deepEqual(await leftIn(snapshotter), []);
});

mountTest('containers: random steps, and kills of their process, leave nothing', async (t) => {
  t.timeout(900_000);
  const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 2 ** 31);
  const steps = scaled(400, 25);
  t.log(`seed ${seed}, ${steps} steps`);
  const random = generator(seed);
  const { dir, snapshotter, name } = await open(t);
  const image = await openImage(`${name}:one`, { snapshotter });
  const running = new Map<Container, string>();
  const take = () => [...running.keys()][random(running.size)];
  let made = 0;
  const start = async () => {
    const file = `file${made++}`;
    running.set(await image.start(['sh', '-c', `echo ${file} > /${file}`], quiet), file);
  };
  const actions = [
    start,
    async () => void running.set(await image.start(['sleep', '1000'], quiet), ''),
    async () => {
      const container = take();
      if (container === undefined || running.get(container) === '') return;
      t.is(await container.exited, 0);
      t.deepEqual(await pathsOf(container), [running.get(container)]);
    },
    async () => {
      const container = take();
      const file = container && running.get(container);
      if (container === undefined || !file) return;
      await container.commit(file);
      running.delete(container);
      await container[Symbol.asyncDispose]();
      const committed = await openImage(`${name}:${file}`, { snapshotter });
      t.is((await committed.run(['cat', `/${file}`], quiet)).exitCode, 0);
    },
    async () => {
      const container = take();
      if (container === undefined) return;
      running.delete(container);
      await container[Symbol.asyncDispose]();
      t.true(container.process.exitCode !== null || container.process.signalCode !== null);
    },
    async () => {
      const child = fork(join(import.meta.dirname, 'starter.js'), [join(dir, 'root'), `${name}:one`]);
      const [pid] = (await once(child, 'message')) as [number];
      child.kill('SIGKILL');
      await once(child, 'close');
      // The kernel kills the container's program with its parent.
      while (existsSync(`/proc/${pid}`) && !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))) {
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    },
  ];
  for (let step = 0; step < steps; step++) await actions[random(actions.length)]?.();
  for (const container of running.keys()) await container[Symbol.asyncDispose]();
  t.deepEqual((await snapshotter.cleanup()).kept, []);
  t.deepEqual(await leftIn(snapshotter), []);
  t.deepEqual(listMountsSync({ type: 'overlay' }), []);
  let committed = 0;
  for await (const _ of snapshotter.list()) committed++;
  t.is(readdirSync(join(dir, 'root/snapshots')).length, committed);
});
