/** `watchMounts`. Imports internals: it forces each way of watching. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import {
  bindSync,
  listMounts,
  type MountEvent,
  mountOverlaySync,
  OverlayError,
  unmountSync,
  type WatchMountsOptions,
  watchMounts,
} from 'overlayfs';
import { runSync } from '#lib/kernel/task.js';
import { compareTables, readMountEvents, type WatchWay } from '#lib/mount-table/events.js';
import { watchMountsWith } from '#lib/mount-table/watch.js';
import {
  countDescriptors,
  countThreads,
  evaluateIn,
  eventually,
  layers,
  MNT_DETACH,
  MS_MOVE,
  makeNamespace,
  makeTree,
  mountTest,
  native,
  packageRoot,
  scaled,
  scratch,
  withoutCapabilities,
} from '../support/index.js';

type AnyEvent = MountEvent<string | Buffer>;

/** A watch, and what it has seen below a directory. */
interface Followed {
  readonly watch: AsyncIterableIterator<AnyEvent>;
  readonly seen: AnyEvent[];
  readonly ended: Promise<void>;
}

function follow(t: ExecutionContext, dir: string, way: WatchWay | undefined, options?: WatchMountsOptions): Followed {
  const watch = watchMountsWith(way, options);
  t.teardown(() => watch.return?.());
  const seen: AnyEvent[] = [];
  const ended = (async () => {
    for await (const event of watch) {
      const target = event.mount?.target.toString();
      if (target === undefined || target.startsWith(dir)) seen.push(event);
    }
  })();
  return { watch, seen, ended };
}

const show = ({ type, mount }: AnyEvent): string => `${type} ${mount?.source}`;

/** Nothing is left of watches: descriptors, and the thread. */
async function nothingIsLeft(t: ExecutionContext, descriptors: number): Promise<void> {
  await eventually(t, () => countDescriptors() === descriptors && countThreads() === 0);
  t.is(countDescriptors(), descriptors);
}

const ways: readonly WatchWay[] = ['events', 'table'];

for (const way of ways) {
  const needs = way === 'events' ? ('mountEvents' as const) : undefined;

  mountTest(`mounts, moves and unmounts (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '', 'b/': '' });
    const { watch, seen, ended } = follow(t, dir, way);
    const steps: readonly (readonly [what: () => unknown, events: readonly string[]])[] = [
      [() => native.mount('one', join(dir, 'a'), 'tmpfs', 0, ''), ['mounted one']],
      [() => mkdirSync(join(dir, 'a/in')), []],
      [() => native.mount('two', join(dir, 'a/in'), 'tmpfs', 0, ''), ['mounted two']],
      [() => native.mount(join(dir, 'a'), join(dir, 'b'), '', MS_MOVE, ''), ['moved one']],
      [() => native.umount(join(dir, 'b/in'), 0), ['unmounted two']],
      [() => native.umount(join(dir, 'b'), 0), ['unmounted one']],
    ];
    for (const [what, events] of steps) {
      const before = seen.length;
      what();
      await eventually(t, () => seen.length >= before + events.length);
      t.deepEqual(seen.slice(before).map(show), events);
    }
    t.is(new Set(seen.map(({ id }) => id)).size, 2);
    for (const { id, mount } of seen) t.is(id, mount?.id ?? 0);
    t.deepEqual(
      seen.filter((event) => show(event).endsWith('one')).map(({ mount }) => mount?.target),
      ['a', 'b', 'b'].map((name) => join(dir, name)),
      'where it is, or was last seen',
    );
    await watch.return?.();
    await ended;
  });

  mountTest(`what happens before the first event is asked for, and while none is (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '', 'b/': '' });
    const watch = watchMountsWith(way, { encoding: 'buffer' });
    native.mount('early', join(dir, 'a'), 'tmpfs', 0, '');
    const next = async () => {
      const { value } = await watch.next();
      return value as AnyEvent;
    };
    const early = await next();
    t.like(early, { type: 'mounted' });
    t.deepEqual(early.mount?.target, Buffer.from(join(dir, 'a')));
    native.mount('late', join(dir, 'b'), 'tmpfs', 0, '');
    await setTimeout(50);
    native.umount(join(dir, 'a'), 0);
    const both = [show(await next()), show(await next())].sort();
    t.deepEqual(both, ['mounted late', 'unmounted early']);
    const asked = [watch.next(), watch.next()];
    native.umount(join(dir, 'b'), 0);
    t.is(show((await asked[0])?.value as AnyEvent), 'unmounted late');
    await watch.return?.();
    t.deepEqual(await asked[1], { done: true, value: undefined });
    t.deepEqual(await watch.next(), { done: true, value: undefined });
  });

  mountTest(`sees each of thousands of mounts and unmounts of another process (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    const count = scaled(5000, 200);
    makeTree(dir, Object.fromEntries(Array.from({ length: count }, (_, i) => [`${i}/`, ''])));
    const { watch, seen, ended } = follow(t, dir, way);
    // By umount2(2) and mount(2) themselves: a program for each would take minutes.
    const script = `
      const { createRequire } = require('node:module');
      const native = require('./build/Release/test_support.node');
      const [dir, count] = process.argv.slice(1);
      for (let i = 0; i < count; i++) native.mount(String(i), dir + '/' + i, 'tmpfs', 0, 'size=4k');
      process.stdin.once('data', () => {
        for (let i = 0; i < count; i++) native.umount(dir + '/' + i, 0);
        process.exit();
      });`;
    const child = spawn(process.execPath, ['-e', script, dir, String(count)], {
      cwd: packageRoot,
      stdio: ['pipe', 'ignore', 'inherit'],
    });
    const of = (type: string) => seen.filter((event) => event.type === type);
    await eventually(t, () => of('mounted').length >= count, 90);
    t.is(new Set(of('mounted').map(({ mount }) => mount?.source)).size, count);
    t.is(of('mounted').length, count);
    child.stdin.write('on');
    await eventually(t, () => of('unmounted').length >= count, 90);
    t.is(new Set(of('unmounted').map(({ mount }) => mount?.source)).size, count);
    const ids = (type: string) => of(type).map(({ id, mount }) => `${id} ${mount?.source}`);
    t.is(ids('unmounted').sort().join(), ids('mounted').sort().join());
    t.is(seen.length, 2 * count);
    await watch.return?.();
    await ended;
    if (child.exitCode === null) await once(child, 'exit');
  });

  mountTest(`ends with its signal, at once, and leaves nothing (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    await eventually(t, () => countThreads() === 0);
    const descriptors = countDescriptors();
    for (let i = 0; i < scaled(50, 5); i++) {
      const ending = new AbortController();
      const { ended, watch } = follow(t, dir, way, { signal: ending.signal });
      if (i % 2) await setTimeout(i % 5);
      ending.abort(new Error('enough'));
      const error = await t.throwsAsync(ended, { name: 'AbortError', code: 'ABORT_ERR' });
      t.like(error?.cause, { message: 'enough' });
      t.deepEqual(await watch.next().catch(({ name }) => name), 'AbortError');
      t.true(countDescriptors() <= descriptors + 2, 'those of the thread that waits, for a moment');
    }
    const aborted = watchMountsWith(way, { signal: AbortSignal.abort() });
    await t.throwsAsync(aborted.next(), { name: 'AbortError' });
    await nothingIsLeft(t, descriptors);
  });

  mountTest(`leaving the loop ends it (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '' });
    await eventually(t, () => countThreads() === 0);
    const descriptors = countDescriptors();
    const watch = watchMountsWith(way);
    native.mount('one', join(dir, 'a'), 'tmpfs', 0, '');
    for await (const event of watch) {
      t.is(show(event), 'mounted one');
      break;
    }
    t.true((await watch.next()).done);
    await nothingIsLeft(t, descriptors);
  });

  mountTest(`many at once share a thread (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '' });
    await eventually(t, () => countThreads() === 0);
    const descriptors = countDescriptors();
    const all = Array.from({ length: 20 }, () => follow(t, dir, way));
    await setTimeout(50);
    native.mount('one', join(dir, 'a'), 'tmpfs', 0, '');
    await eventually(t, () => all.every(({ seen }) => seen.length === 1));
    for (const { watch, ended } of all) {
      await watch.return?.();
      await ended;
    }
    await nothingIsLeft(t, descriptors);
  });

  mountTest(`another namespace: what changes there, and not here (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'a/': '', 'b/': '', 'here/': '', 'early/': '' });
    const [a, b] = [join(dir, 'a'), join(dir, 'b')];
    const child = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', 'echo ready; exec sleep 1000'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.teardown(() => child.kill('SIGKILL'));
    await once(child.stdout, 'data');
    child.stdout.destroy();
    const path = `/proc/${child.pid}/ns/mnt`;
    await eventually(t, () => countThreads() === 0);
    const descriptors = countDescriptors();
    const fd = openSync(path, 'r');
    const other = makeNamespace();
    bindSync(dir, join(dir, 'early'), { namespace: fd });
    const watches = [path, fd, other].map((namespace) => follow(t, dir, way, { namespace }));
    const [byPath, byDescriptor, unrelated] = watches as [Followed, Followed, Followed];
    // Each has one of its own.
    closeSync(fd);
    closeSync(other);
    native.mount('here', join(dir, 'here'), 'tmpfs', 0, '');
    const { id } = mountOverlaySync({ lowerdir: [a, b], target: a, source: 'one', namespace: path });
    for (const { seen } of [byPath, byDescriptor]) {
      await eventually(t, () => seen.length === 1);
      t.deepEqual(seen.map(show), ['mounted one']);
      t.is(seen[0]?.id, id);
      t.is(seen[0]?.mount?.id, id);
      t.is(seen[0]?.mount?.target, a);
      t.deepEqual(seen[0]?.mount?.overlay?.lowerdir, [a, b]);
    }
    unmountSync(a, { namespace: path });
    unmountSync(join(dir, 'early'), { namespace: path });
    for (const { seen } of [byPath, byDescriptor]) {
      await eventually(t, () => seen.length === 3);
      t.deepEqual(
        seen
          .slice(1)
          .map(({ type, mount }) => [type, mount?.target])
          .sort(),
        [
          ['unmounted', a],
          ['unmounted', join(dir, 'early')],
        ],
      );
    }
    t.deepEqual(unrelated.seen, []);
    // The namespace stays as long as the watches, of whatever process it was.
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
    await setTimeout(20);
    t.is(byPath.seen.length, 3);
    for (const { watch, ended } of watches) {
      await watch.return?.();
      await ended;
    }
    await nothingIsLeft(t, descriptors);
  });

  mountTest(`sees each of many mounts and unmounts in another namespace (${way})`, { needs }, async (t) => {
    const dir = scratch(t);
    const count = scaled(500, 50);
    makeTree(dir, Object.fromEntries(Array.from({ length: count }, (_, i) => [`${i}/`, ''])));
    const namespace = makeNamespace();
    t.teardown(() => closeSync(namespace));
    const { watch, seen, ended } = follow(t, dir, way, { namespace });
    for (let i = 0; i < count; i++) bindSync(dir, join(dir, String(i)), { namespace });
    await eventually(t, () => seen.length >= count, 30);
    t.is(new Set(seen.map(({ mount }) => mount?.target)).size, count);
    for (let i = 0; i < count; i++) unmountSync(join(dir, String(i)), { namespace });
    await eventually(t, () => seen.length >= 2 * count, 30);
    const ids = (type: string) => seen.filter((event) => event.type === type).map(({ id }) => id);
    t.deepEqual(ids('unmounted').sort(), ids('mounted').sort());
    t.is(seen.length, 2 * count);
    await watch.return?.();
    await ended;
  });

  mountTest(`a namespace that is not there, or is none (${way})`, { needs }, (t) => {
    const descriptors = countDescriptors();
    for (const namespace of ['/proc/0/ns/mnt', '/dev/null', '/proc/self/ns/net', 12_345]) {
      t.throws(() => watchMountsWith(way, { namespace }), {
        instanceOf: OverlayError,
        message: /namespace.*(does not exist|is not a mount namespace)/,
      });
    }
    t.is(countDescriptors(), descriptors);
  });

  mountTest(`a worker that ends while it watches leaves nothing (${way})`, { needs }, async (t) => {
    await eventually(t, () => countThreads() === 0);
    const descriptors = countDescriptors();
    const script = `
      const { parentPort } = require('node:worker_threads');
      import('${packageRoot}/dist-test/lib/mount-table/watch.js').then(async ({ watchMountsWith }) => {
        const watches = [0, 1, 2].map(() => watchMountsWith('${way}'));
        for (const watch of watches.slice(1)) watch.next();
        setTimeout(() => parentPort.postMessage('watching'), 20);
      });`;
    for (let i = 0; i < 3; i++) {
      const worker = new Worker(script, { eval: true });
      await once(worker, 'message');
      await worker.terminate();
    }
    await nothingIsLeft(t, descriptors);
  });
}

mountTest('each change, also those that are undone at once', { needs: 'mountEvents' }, async (t) => {
  const options = layers(scratch(t));
  const count = scaled(1000, 50);
  const { watch, seen, ended } = follow(t, options.target, 'events');
  for (let i = 0; i < count; i++) mountOverlaySync(options).unmountSync();
  await eventually(t, () => seen.length >= 2 * count);
  t.is(seen.filter(({ type }) => type === 'mounted').length, count);
  t.is(new Set(seen.map(({ id }) => id)).size, count);
  for (let i = 0; i < seen.length; i += 2) {
    t.is(seen[i]?.type, 'mounted');
    t.like(seen[i + 1], { type: 'unmounted', id: seen[i]?.id });
  }
  await watch.return?.();
  await ended;
});

mountTest('what a full queue has lost shows in the table', { needs: 'mountEvents' }, async (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'first/': '', 'churn/': '', 'last/': '', 'after/': '' });
  native.mount('first', join(dir, 'first'), 'tmpfs', 0, '');
  const { watch, seen, ended } = follow(t, dir, 'events');
  // The kernel keeps 16384 events. Meanwhile nothing here is read.
  const bound = join(dir, 'churn');
  for (let i = 0; i < 9000; i++) {
    native.mount(dir, bound, '', 4096, '');
    native.umount(bound, MNT_DETACH);
  }
  native.umount(join(dir, 'first'), 0);
  native.mount('last', join(dir, 'last'), 'tmpfs', 0, '');
  const sources = () => seen.filter(({ mount }) => mount !== undefined).map(show);
  await eventually(t, () => sources().includes('mounted last') && sources().includes('unmounted first'), 30);
  native.mount('after', join(dir, 'after'), 'tmpfs', 0, '');
  await eventually(t, () => sources().includes('mounted after'), 30);
  for (const event of ['mounted last', 'unmounted first', 'mounted after']) {
    t.is(sources().filter((one) => one === event).length, 1, event);
  }
  t.is(seen.filter(({ type }) => type === 'lost').length, 1);
  t.true(seen.length < 18_000, 'some were lost, or this shows nothing');
  await watch.return?.();
  await ended;
});

mountTest('storms under a slow reader: the state is right at the end', { needs: 'mountEvents' }, async (t) => {
  const dir = scratch(t);
  const places = 64;
  makeTree(dir, Object.fromEntries(Array.from({ length: places }, (_, i) => [`${i}/`, ''])));
  // Another process mounts and unmounts, so that events arrive while the queue is read.
  const script = `
    const { createRequire } = require('node:module');
    const native = require('./build/Release/test_support.node');
    const [dir, count] = process.argv.slice(1);
    const isUp = [];
    for (let i = 0; i < count; i++) {
      const at = Math.floor(Math.random() * ${places});
      if (isUp[at]) native.umount(dir + '/' + at, ${MNT_DETACH});
      else native.mount(dir, dir + '/' + at, '', 4096, '');
      isUp[at] = !isUp[at];
    }`;
  for (let storm = 0; storm < scaled(100, 1); storm++) {
    const watch = watchMountsWith('events');
    const there = new Map<number, string>((await listMounts()).map(({ id, target }): [number, string] => [id, target]));
    const before = new Map(there);
    const child = spawn(process.execPath, ['-e', script, dir, '24000'], { cwd: packageRoot, stdio: 'inherit' });
    const ended = once(child, 'exit');
    let losses = 0;
    let events = 0;
    const apply = ({ type, id, mount }: AnyEvent): void => {
      events++;
      if (type === 'lost') losses++;
      else if (type === 'unmounted') there.delete(id);
      else there.set(id, mount?.target.toString() ?? '?');
    };
    makeTree(dir, { 'last/': '' });
    const last = join(dir, 'last');
    const marked = ended.then(() => native.mount('last', last, 'tmpfs', 0, ''));
    // Now and then it sleeps until the queue is full.
    for await (const event of watch) {
      apply(event);
      // Its end comes after all that the watch had to report when it was seen.
      if (event.mount?.source === 'last' && event.type === 'unmounted') break;
      if (event.mount?.source === 'last') native.umount(last, 0);
      if (Math.random() < 0.001) await Promise.race([setTimeout(400), marked]);
    }
    const wanted = new Map((await listMounts()).map(({ id, target }): [number, string] => [id, target]));
    t.deepEqual(
      [...there.keys()].sort(),
      [...wanted.keys()].sort(),
      `storm ${storm}, ${events} events, lost ${losses}`,
    );
    for (const [id, target] of wanted) if (!before.has(id)) native.umount(target, MNT_DETACH);
    if (storm === 0) t.log(`${events} events, lost ${losses} times`);
  }
});

mountTest(
  'a watch that compares tables because the user has no queue left says so',
  { needs: 'mountEvents' },
  async (t) => {
    const said = once(process, 'warning') as Promise<[NodeJS.ErrnoException]>;
    const limit = Number(readFileSync('/proc/sys/fs/fanotify/max_user_groups', 'utf8'));
    const watches = Array.from({ length: limit + 1 }, () => watchMounts());
    const [{ code, message }] = await said;
    t.is(code, 'OVERLAYFS_WATCH_BY_TABLE');
    t.regex(message, /max_user_groups/);
    for (const watch of watches) await watch.return?.();
  },
);

mountTest('without a capability', (t) => {
  const { target } = layers(scratch(t));
  const expression = `{
    const ending = new AbortController();
    const watch = overlayfs.watchMounts({ signal: ending.signal });
    setTimeout(() => ending.abort(), 20);
    return await watch.next().catch(({ name }) => name);
  }`;
  t.is(evaluateIn(withoutCapabilities, `(async () => ${expression})()`, target), 'AbortError');
});

mountTest('a namespace that may not be joined, by the table of a process in it', (t) => {
  const dir = scratch(t);
  makeTree(dir, { 'a/': '', goes: '' });
  // The removal of the directory ends it, however the test ends.
  const goes = join(dir, 'goes');
  const churn = `(while [ -e ${goes} ]; do mount -t tmpfs late ${dir}/a; sleep 0.1; umount ${dir}/a; sleep 0.1; done)`;
  const command = ['sh', '-c', `${churn} >/dev/null 2>&1 & exec "$@"`, 'sh', ...withoutCapabilities];
  const expression = `{
    for await (const { type, mount } of overlayfs.watchMounts({ namespace: '/proc/self/ns/mnt' })) {
      if (type === 'mounted' && mount?.source === 'late') return mount.target;
    }
  }`;
  try {
    t.is(evaluateIn(command, `(async () => ${expression})()`), join(dir, 'a'));
  } finally {
    rmSync(goes);
  }
});

test('what comes of the kernel, taken apart', (t) => {
  const event = (mask: number, id: bigint): Buffer => {
    const bytes = Buffer.alloc(40);
    bytes.writeUInt32LE(40, 0);
    bytes[4] = 3;
    bytes.writeUInt16LE(24, 6);
    bytes.writeBigUInt64LE(BigInt(mask), 8);
    bytes.writeInt32LE(-1, 16);
    bytes[24] = 7;
    bytes.writeUInt16LE(16, 26);
    bytes.writeBigUInt64LE(id, 32);
    return bytes;
  };
  const overflow = event(0x4000, 0n).subarray(0, 24);
  overflow.writeUInt32LE(24, 0);
  const data = Buffer.concat([event(0x01000000, 0x1_2345_6789n), overflow, event(0x03000000, 2n ** 40n)]);
  t.deepEqual(readMountEvents(data), [
    { mask: 0x01000000, id: 0x1_2345_6789 },
    { mask: 0x4000, id: 0 },
    { mask: 0x03000000, id: 2 ** 40 },
  ]);
  t.deepEqual(readMountEvents(Buffer.alloc(0)), []);
});

test('two tables', (t) => {
  const mount = (id: number, parent: number, target: string, source: string, uniqueId?: number) => ({
    ...{ id, uniqueId, parent, target, source, device: '0:1', root: '/', type: 'tmpfs', attributes: 0, options: 'rw' },
    propagation: { unbindable: false },
  });
  const compare = (before: ReturnType<typeof mount>[], after: ReturnType<typeof mount>[]) =>
    runSync(compareTables(new Map(before.map((one) => [one.uniqueId ?? one.id, one])), after)).map(
      ({ type, id, mount: of }) => `${type} ${id} ${of?.source}`,
    );
  const root = mount(1, 1, '/', 'root');
  const a = mount(2, 1, '/a', 'a');
  const inside = mount(3, 2, '/a/in', 'in');
  t.deepEqual(compare([root, a, inside], [root, a, inside]), []);
  t.deepEqual(compare([root], [root, a, inside]), ['mounted 2 a', 'mounted 3 in']);
  t.deepEqual(compare([root, a, inside], [root]), ['unmounted 3 in', 'unmounted 2 a']);
  const moved = { ...a, target: '/b' };
  t.deepEqual(compare([root, a, inside], [root, moved, { ...inside, target: '/b/in' }]), ['moved 2 a']);
  t.deepEqual(compare([root, a, inside], [root, a, { ...inside, parent: 1, target: '/in' }]), ['moved 3 in']);
  t.deepEqual(compare([root, a], [root, mount(2, 1, '/a', 'other')]), ['unmounted 2 a', 'mounted 2 other']);
  t.deepEqual(compare([mount(2, 1, '/a', 'a', 2 ** 32)], [mount(2, 1, '/a', 'a', 2 ** 32 + 1)]), [
    `unmounted ${2 ** 32} a`,
    `mounted ${2 ** 32 + 1} a`,
  ]);
});

test('arguments are checked before anything is opened', (t) => {
  const watch = watchMounts as (options: unknown) => unknown;
  const descriptors = countDescriptors();
  t.throws(() => watch(null), { code: 'ERR_INVALID_ARG_TYPE', message: /"options"/ });
  t.throws(() => watch({ singal: undefined }), { code: 'ERR_INVALID_ARG_VALUE', message: /did you mean "signal"\?/ });
  t.throws(() => watch({ namespace: -1 }), { code: 'ERR_INVALID_ARG_TYPE', message: /"namespace"/ });
  t.throws(() => watch({ namespace: '' }), { code: 'ERR_INVALID_ARG_VALUE', message: /"namespace"/ });
  t.throws(() => watch({ signal: {} }), { code: 'ERR_INVALID_ARG_TYPE', message: /"signal"/ });
  t.throws(() => watch({ encoding: 'hex' }), { code: 'ERR_INVALID_ARG_VALUE', message: /"encoding"/ });
  t.is(countDescriptors(), descriptors);
});
