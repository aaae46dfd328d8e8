import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import {
  mountOverlay,
  mountOverlaySync,
  type OverlayError,
  type UnmountOptions,
  unmount,
  unmountSync,
} from 'overlayfs';
import {
  countDescriptors,
  countThreads,
  eventually,
  layers,
  makeTree,
  mountsBelow,
  mountTest,
  scratch,
} from '../support/index.js';

const MOST_THREADS = 16;

mountTest('an unmount waits while the mount is busy', async (t) => {
  const options = layers(scratch(t));
  const calls = {
    unmount: () => unmount(options.target, { timeout: 60_000 }),
    'unmount, by a signal': () => unmount(options.target, { signal: new AbortController().signal, timeout: Infinity }),
    recursive: () => unmount(options.target, { recursive: true, timeout: 60_000 }),
  };
  for (const [name, call] of Object.entries(calls)) {
    mountOverlaySync(options);
    const fd = openSync(join(options.target, 'from-lower'), 'r');
    const pending = call();
    await setTimeout(20);
    t.is(mountsBelow(options.target).length, 1, name);
    closeSync(fd);
    await pending;
    t.is(mountsBelow(options.target).length, 0, name);
  }
});

mountTest('until its time is over, and then tells who uses it', async (t) => {
  const options = layers(scratch(t));
  const mounted = mountOverlaySync(options);
  const fd = openSync(join(options.target, 'from-lower'), 'r');
  const descriptors = countDescriptors();
  for (const call of [
    async () => unmount(options.target, { timeout: 30 }),
    async () => unmountSync(options.target, { timeout: 30 }),
    async () => mounted.unmount({ timeout: 30 }),
    async () => mounted.unmountSync({ timeout: 30 }),
    async () => unmount(options.target, { timeout: 30, signal: new AbortController().signal }),
  ]) {
    const start = performance.now();
    const error = await t.throwsAsync<OverlayError>(call, { code: 'EBUSY' });
    t.true(performance.now() - start >= 29, 'it has waited');
    t.like(error?.holders?.[0], { what: 'file', pid: process.pid, descriptor: fd });
  }
  t.is(countDescriptors(), descriptors);
  closeSync(fd);
  await mounted.unmount();
});

mountTest('with the options that there were when it was called', async (t) => {
  const options = layers(scratch(t));
  const mounted = mountOverlaySync(options);
  const fd = openSync(join(options.target, 'from-lower'), 'r');
  for (const call of [
    (given: UnmountOptions) => unmount(options.target, given),
    (given: UnmountOptions) => mounted.unmount(given),
    (given: UnmountOptions) => unmount(options.target, Object.assign(given, { recursive: true })),
  ]) {
    const given: UnmountOptions = { timeout: 30 };
    const pending = call(given);
    Object.assign(given, { detach: true, timeout: 60_000 });
    await t.throwsAsync(pending, { code: 'EBUSY' });
    t.is(mountsBelow(options.target).length, 1);
  }
  closeSync(fd);
  await mounted.unmount();
});

mountTest('until its signal aborts', async (t) => {
  const options = layers(scratch(t));
  const mounted = mountOverlaySync(options);
  const fd = openSync(join(options.target, 'from-lower'), 'r');
  const reason = new Error('enough');
  for (const call of [
    (signal: AbortSignal) => unmount(options.target, { signal, timeout: Infinity }),
    (signal: AbortSignal) => mounted.unmount({ signal, timeout: 60_000 }),
    (signal: AbortSignal) => unmount(options.target, { recursive: true, signal, timeout: 60_000 }),
  ]) {
    const controller = new AbortController();
    const pending = call(controller.signal);
    await setTimeout(20);
    controller.abort(reason);
    t.like(await t.throwsAsync(pending), { name: 'AbortError', code: 'ABORT_ERR', cause: reason });
    t.is(mountsBelow(options.target).length, 1);
  }
  closeSync(fd);
  for (const call of [
    async (signal: AbortSignal) => unmount(options.target, { signal }),
    async (signal: AbortSignal) => unmountSync(options.target, { signal }),
    async (signal: AbortSignal) => mounted.unmount({ signal }),
    async (signal: AbortSignal) => mounted.unmountSync({ signal }),
  ]) {
    await t.throwsAsync(call(AbortSignal.abort(reason)), { code: 'ABORT_ERR' }, 'aborted before it began');
    t.is(mountsBelow(options.target).length, 1);
  }
  await mounted.unmount();
});

mountTest('an unmount that is done counts, however late its signal aborts', async (t) => {
  const options = layers(scratch(t));
  for (let i = 0; i < 50; i++) {
    mountOverlaySync(options);
    const controller = new AbortController();
    const namespace = i % 2 === 0 ? undefined : '/proc/thread-self/ns/mnt';
    const pending = unmount(options.target, { signal: controller.signal, namespace } as UnmountOptions).then(
      () => 'unmounted',
      ({ code }) => code,
    );
    for (let turn = 0; turn < i % 5; turn++) await new Promise(setImmediate);
    controller.abort();
    const outcome = await pending;
    t.is(mountsBelow(options.target).length, outcome === 'unmounted' ? 0 : 1, outcome);
    if (outcome === 'ABORT_ERR') unmountSync(options.target);
  }
});

mountTest('those that wait keep no thread', async (t) => {
  const dir = scratch(t);
  const busy = Array.from({ length: 3 * MOST_THREADS }, (_, i) => layers(join(dir, String(i))));
  const fds = busy.map((options) => {
    mountOverlaySync(options);
    return openSync(join(options.target, 'from-lower'), 'r');
  });
  const pending = busy.map(({ target }) => unmount(target, { timeout: 60_000 }));
  const other = await mountOverlay(layers(join(dir, 'other')));
  await other.unmount();
  t.true(countThreads() <= MOST_THREADS + 1, 'and the one that looks whether others are stuck');
  for (const fd of fds) closeSync(fd);
  await Promise.all(pending);
  t.is(mountsBelow(dir).length, 1);
  await eventually(t, () => countThreads() === 0);
});

mountTest('one that waits does not keep another one of the same object from what it can do', async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'other/': '' });
  const options = layers(dir);
  const mounted = mountOverlaySync(options);
  const fd = openSync(join(options.target, 'from-lower'), 'r');
  const patient = mounted.unmount({ timeout: 60_000 });
  await mounted.unmount({ detach: true });
  // Not that one's.
  const another = mountOverlaySync({ lowerdir: [options.lowerdir, join(dir, 'other')], target: options.target });
  await patient;
  t.is(mountsBelow(options.target).length, 1);
  closeSync(fd);
  await another.unmount();
});
