import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { ExecutionContext } from 'ava';
import test from 'ava';
import { bind, listMounts, mountOverlay, mountOverlaySync, OverlayError, unmount } from 'overlayfs';
import {
  countDescriptors,
  countThreads,
  evaluateIn,
  eventually,
  forms,
  layers,
  makeTree,
  mountsBelow,
  mountTest,
  native,
  scaled,
  scratch,
  withoutCapabilities,
} from '../support/index.js';

/** A process in a mount namespace of its own. */
async function other(t: ExecutionContext): Promise<{ child: ChildProcess; namespace: string; root: string }> {
  const child = spawn('unshare', ['-m', '--propagation', 'private', 'sh', '-c', 'echo ready; exec sleep 1000'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout as NodeJS.ReadableStream, 'data');
  return { child, namespace: `/proc/${child.pid}/ns/mnt`, root: `/proc/${child.pid}/root` };
}

const tableOf = ({ pid }: ChildProcess): string => readFileSync(`/proc/${pid}/mountinfo`, 'utf8');

for (const { form, of } of forms) {
  const calls = { mount: of('mountOverlay'), bind: of('bind'), unmount: of('unmount') };

  mountTest(`an overlay in another process's namespace is seen there and not here (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const { child, namespace, root } = await other(t);
    const mounted = await calls.mount({ ...options, namespace });
    t.is(mountsBelow(options.target).length, 0);
    t.deepEqual(readdirSync(options.target), []);
    t.true(tableOf(child).includes(` ${options.target} `));
    t.deepEqual(readdirSync(join(root, options.target)), ['from-lower']);
    writeFileSync(join(root, options.target, 'new'), 'there');
    t.is(readFileSync(join(options.upperdir, 'new'), 'utf8'), 'there');

    const again = await t.throwsAsync(() => calls.mount({ ...options, namespace }), { instanceOf: OverlayError });
    t.like(again, { reason: 'upper-in-use', path: options.upperdir });
    const shared = () => calls.mount({ ...options, namespace, exclusive: false });
    t.like(await t.throwsAsync(shared), { reason: 'target-mounted', path: options.target });
    await mounted.unmount();
    t.false(tableOf(child).includes(` ${options.target} `));
    await mounted.unmount();
  });

  mountTest(`a bind in another namespace, and its unmount by path and by descriptor (${form})`, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'source/file': 'bound', 'target/': '' });
    const { child, namespace, root } = await other(t);
    const target = join(dir, 'target');
    await calls.bind(join(dir, 'source'), target, { namespace });
    t.deepEqual(readdirSync(target), []);
    t.deepEqual(readdirSync(join(root, target)), ['file']);
    const notHere = await t.throwsAsync(() => calls.unmount(target), { instanceOf: OverlayError });
    t.like(notHere, { reason: 'not-mounted' });
    const fd = openSync(namespace, 'r');
    await calls.unmount(target, { namespace: fd });
    closeSync(fd);
    t.false(tableOf(child).includes(` ${target} `));
  });

  mountTest(`what was made for a mount in another namespace goes when it fails (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const { namespace, root } = await other(t);
    const descriptors = countDescriptors();
    const target = join(dir, 'merged/a/b');
    await t.throwsAsync(
      () => calls.mount({ ...options, target, create: true, lowerdir: join(dir, 'none'), namespace }),
      {
        instanceOf: OverlayError,
      },
    );
    t.false(existsSync(join(root, dir, 'merged/a')));
    await t.throwsAsync(() => calls.mount({ ...options, target: join(dir, 'none'), namespace }), {
      instanceOf: OverlayError,
    });
    // Garbage collection may have closed what an earlier test forgot.
    t.true(countDescriptors() <= descriptors);
    const mounted = await calls.mount({ ...options, target, create: true, namespace });
    t.deepEqual(readdirSync(join(root, target)), ['from-lower']);
    await mounted.unmount();
  });

  mountTest(
    `a mount that fails in another namespace removes its directories here, and no others (${form})`,
    async (t) => {
      const dir = scratch(t);
      const options = layers(dir);
      const { child, namespace, root } = await other(t);
      makeTree(dir, { 'shared/': '' });
      const shared = join(dir, 'shared');
      // At the same paths, the other namespace has empty directories of its own.
      const script = `mount -t tmpfs none ${shared} && mkdir -p ${shared}/new/upper ${shared}/new/work`;
      execFileSync('nsenter', ['-t', String(child.pid), '-m', 'sh', '-c', script]);
      const made = { upperdir: join(shared, 'new/upper'), workdir: join(shared, 'new/work'), create: true };
      const descriptors = countDescriptors();
      await t.throwsAsync(() => calls.mount({ ...options, ...made, target: '/proc/none', namespace }), {
        instanceOf: OverlayError,
      });
      t.deepEqual(readdirSync(shared), []);
      t.deepEqual(readdirSync(join(root, shared, 'new')), ['upper', 'work']);
      t.is(countDescriptors(), descriptors);
    },
  );

  mountTest(`options that have to be verified, in another namespace (${form})`, async (t) => {
    const dir = scratch(t);
    const options = layers(dir);
    const { child, namespace, root } = await other(t);
    const here = () => [readlinkSync('/proc/thread-self/ns/mnt'), process.cwd()];
    const before = here();
    const mounted = await calls.mount({ ...options, namespace, index: true });
    t.deepEqual(here(), before);
    await mounted.unmount();

    makeTree(dir, { 'ram/': '', 'merged/': '' });
    t.is(native.mount('ram', join(dir, 'ram'), 'ramfs', 0, ''), 0);
    mkdirSync(join(dir, 'ram/lower'));
    // This kernel drops the option: ramfs has no file handles.
    const dropped = { ...options, lowerdir: join(dir, 'ram/lower'), index: true, create: true, namespace } as const;
    const made = {
      upperdir: join(dir, 'made/upper'),
      workdir: join(dir, 'made/work'),
      target: join(dir, 'merged/made'),
    };
    const error = await t.throwsAsync(() => calls.mount({ ...dropped, ...made }), { instanceOf: OverlayError });
    t.like(error, { reason: 'feature-dropped' });
    t.deepEqual(here(), before);
    t.false(tableOf(child).includes(made.target));
    t.false(existsSync(join(dir, 'made')));
    t.false(existsSync(join(root, made.target)));
  });
}

mountTest('an abort takes back what was made here for a mount in another namespace', async (t) => {
  const dir = scratch(t);
  const { child, namespace } = await other(t);
  const options = layers(dir);
  makeTree(dir, { 'shared/': '' });
  const shared = join(dir, 'shared');
  execFileSync('nsenter', ['-t', String(child.pid), '-m', 'mount', '-t', 'tmpfs', 'none', shared]);
  const made = { upperdir: join(shared, 'new/upper'), workdir: join(shared, 'new/work'), create: true };
  for (let i = 0; i < scaled(300, 30); i++) {
    const controller = new AbortController();
    const promise = mountOverlay({ ...options, ...made, namespace, signal: controller.signal });
    const end = process.hrtime.bigint() + BigInt(i * 4000);
    while (process.hrtime.bigint() < end);
    controller.abort();
    const error = await promise.then(
      (mounted) => mounted.unmount(),
      (reason: Error) => reason,
    );
    if (error !== undefined) {
      t.is(error.message, 'The operation was aborted');
      t.deepEqual(readdirSync(shared), [], `round ${i}`);
    }
    rmSync(join(shared, 'new'), { recursive: true, force: true });
  }
});

mountTest('an abort takes back what was done in another namespace', async (t) => {
  const dir = scratch(t);
  const { child, namespace } = await other(t);
  const options = layers(dir);
  for (let i = 0; i < scaled(200, 20); i++) {
    const controller = new AbortController();
    const promise = mountOverlay({ ...options, namespace, signal: controller.signal });
    setTimeout(() => controller.abort(), i % 3);
    const mounted = await promise.catch((error: Error) => {
      t.is(error.name, 'AbortError');
      t.is(error.message, 'The operation was aborted');
    });
    if (mounted) await mounted.unmount();
    t.false(tableOf(child).includes(` ${options.target} `), `round ${i}`);
  }
});

mountTest('a thousand mounts in another namespace leave no thread and no descriptor', async (t) => {
  const dir = scratch(t);
  const { child, namespace } = await other(t);
  const options = layers(dir);
  // Mounts of other programs may go meanwhile, with the directories that they are on.
  const own = () =>
    tableOf(child)
      .split('\n')
      .filter((line) => line.includes(` ${dir}`));
  const before = own();
  const descriptors = countDescriptors();
  for (let i = 0; i < scaled(500, 20); i++) {
    await (await mountOverlay({ ...options, namespace })).unmount();
    mountOverlaySync({ ...options, namespace }).unmountSync();
  }
  t.deepEqual(own(), before);
  t.true(countDescriptors() <= descriptors);
  await eventually(t, () => countThreads() === 0);
});

test('what is no namespace is an argument error', async (t) => {
  const options = { lowerdir: ['/a', '/b'], target: '/m' };
  await t.throwsAsync(mountOverlay({ ...options, namespace: -1 }), {
    code: 'ERR_INVALID_ARG_TYPE',
    message: /namespace/,
  });
  // Larger numbers are those of the steps of a plan, or others when they are cut.
  for (const namespace of [2 ** 30, 2 ** 31, 2 ** 40]) {
    await t.throwsAsync(listMounts({ namespace }), { code: 'ERR_INVALID_ARG_TYPE', message: /namespace/ });
  }
  await t.throwsAsync(mountOverlay({ ...options, namespace: '' }), { code: 'ERR_INVALID_ARG_VALUE' });
  await t.throwsAsync(mountOverlay({ ...options, target: 'm', namespace: '/proc/1/ns/mnt' }), {
    code: 'ERR_INVALID_ARG_VALUE',
    message: /"target" must be an absolute path when `namespace` is given/,
  });
  await t.throwsAsync(bind('/a', 'b', { namespace: '/proc/1/ns/mnt' }), { code: 'ERR_INVALID_ARG_VALUE' });
  await t.throwsAsync(unmount('/m', { namespace: '/proc/1/ns/mnt', recursive: true }), {
    code: 'ERR_INVALID_ARG_VALUE',
    message: /`recursive` and `namespace` exclude each other/,
  });
});

mountTest('a namespace that is not there, is none, or may not be joined', async (t) => {
  const dir = scratch(t);
  const options = layers(dir);
  const descriptors = countDescriptors();
  const missing = { instanceOf: OverlayError };
  execFileSync('mkfifo', [join(dir, 'fifo')]);
  for (const namespace of ['/proc/0/ns/mnt', '/dev/null', '/proc/self/ns/net', join(dir, 'fifo')]) {
    t.like(await t.throwsAsync(listMounts({ namespace }), missing), { reason: 'namespace-missing' });
    t.like(await t.throwsAsync(mountOverlay({ ...options, namespace }), missing), { reason: 'namespace-missing' });
    t.like(await t.throwsAsync(bind(dir, options.target, { namespace }), missing), { reason: 'namespace-missing' });
    t.like(await t.throwsAsync(unmount(options.target, { namespace }), missing), { reason: 'namespace-missing' });
  }
  t.true(countDescriptors() <= descriptors);
  const denied = (call: string) => evaluateIn(withoutCapabilities, call);
  t.like(denied(`overlayfs.unmount('/tmp', { namespace: '/proc/self/ns/mnt' })`), { reason: 'namespace-denied' });
});

mountTest('closed in a worker, where Node watches over descriptors, it brings no warning', async (t) => {
  const program = `
    const warnings = [];
    process.on('warning', (warning) => warnings.push(String(warning)));
    import('overlayfs').then(async ({ watchMounts }) => {
      await watchMounts().return();
      setTimeout(() => require('node:worker_threads').parentPort.postMessage(warnings), 20);
    });`;
  const worker = new Worker(program, { eval: true });
  const [warnings] = await once(worker, 'message');
  t.deepEqual(warnings, []);
  await worker.terminate();
});
