/**
 * How long each promise form keeps the event loop at a stretch. Arguments: a directory with layers, and how many mounts
 * there are to be in the table. Prints the milliseconds by call.
 */
import { closeSync, mkdirSync, openSync, readSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import {
  createNamespace,
  findHolders,
  findMount,
  listMounts,
  mountOverlay,
  type OverlayOptions,
  unmount,
  unmountTree,
  watchMounts,
} from 'overlayfs';

const [dir = '', count = '10000'] = process.argv.slice(2);
/** In ms. */
const LONGEST = 10;

const schedule = openSync('/proc/thread-self/schedstat', 'r');
const text = Buffer.alloc(128);

/** The time without that in which this thread waited for a processor, in ms. */
function clock(): number {
  const size = readSync(schedule, text, 0, text.length, 0);
  return performance.now() - Number(text.toString('latin1', 0, size).split(' ')[1]) / 1e6;
}

async function longestStretch(call: () => Promise<unknown>): Promise<number> {
  let isOver = false;
  let longest = 0;
  let last = 0;
  const tick = () => {
    const now = clock();
    longest = Math.max(longest, now - last);
    last = now;
    if (!isOver) setImmediate(tick);
  };
  await new Promise(setImmediate);
  last = clock();
  setImmediate(tick);
  await call();
  isOver = true;
  await new Promise(setImmediate);
  return longest;
}

const at = (name: string) => join(dir, name);
const target = at('merged');
const own: OverlayOptions = { lowerdir: at('lower'), upperdir: at('upper'), workdir: at('work'), create: true, target };
const lowers: OverlayOptions = { lowerdir: [at('lower'), at('other')], target };

async function expectFailure(promise: Promise<unknown>): Promise<void> {
  await promise.then(
    () => {
      throw new Error('it did not fail');
    },
    () => {},
  );
}

const calls: Readonly<Record<string, () => Promise<unknown>>> = {
  mountOverlay: async () => (await mountOverlay(own)).unmount(),
  'unmount, removeWork': async () => {
    await mountOverlay(own);
    await unmount(target, { removeWork: true });
  },
  'unmount, busy': async () => {
    const mounted = await mountOverlay(lowers);
    const fd = openSync(join(target, 'from-lower'), 'r');
    await expectFailure(mounted.unmount());
    closeSync(fd);
    await mounted.unmount();
  },
  findHolders: async () => {
    const mounted = await mountOverlay(lowers);
    await findHolders(mounted);
    await mounted.unmount();
  },
  replace: async () => {
    const mounted = await mountOverlay(lowers);
    await mounted.replace({ lowerdir: [at('other'), at('lower')] });
    await mounted.unmount();
  },
  'mountOverlay that fails': () => expectFailure(mountOverlay({ ...own, lowerdir: at('missing') })),
  'mountOverlay at a mount point': () => expectFailure(mountOverlay({ ...own, target: at('many/0') })),
  'mountOverlay, verified': async () => (await mountOverlay({ ...own, index: true })).unmount(),
  listMounts: () => listMounts(),
  'listMounts, layer': () => listMounts({ layer: at('lower') }),
  'listMounts, namespace': async () => {
    const namespace = await createNamespace();
    await listMounts({ namespace });
    await namespace[Symbol.asyncDispose]();
  },
  findMount: () => findMount(at('many/0')),
  watchMounts: async () => {
    const watch = watchMounts();
    const event = watch.next();
    const mounted = await mountOverlay(lowers);
    await event;
    await watch.return?.();
    await mounted.unmount();
  },
};

/** The same; where it is too long, without what an idle loop on this machine is kept for in the same time. */
async function measure(call: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  const longest = await longestStretch(call);
  if (longest <= LONGEST) return longest;
  const took = performance.now() - start;
  const idle = await longestStretch(() => new Promise((resolve) => setTimeout(resolve, took)));
  return Math.max(longest - idle, 0);
}

/** Returns the first of several measurements that is good enough, else the least: the machine does other things too. */
async function leastOf(rounds: number, once: () => Promise<number>): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let round = 0; round < rounds && least > LONGEST; round++) {
    if (round > 0) await new Promise((resolve) => setTimeout(resolve, 100));
    least = Math.min(least, await once());
  }
  return least;
}

const root = resolve(import.meta.dirname, '../../..');
const native = createRequire(import.meta.url)(join(root, 'build/Release/test_support.node'));
const MS_BIND = 4096;

function fill(): void {
  for (let i = 0; i < Number(count); i++) {
    const path = at(`many/${i}`);
    mkdirSync(path, { recursive: true });
    const errno = native.mount(at('other'), path, '', MS_BIND, '');
    if (errno !== 0) throw new Error(`mount ${i}: errno ${errno}`);
  }
}

const results: Record<string, number> = {};

// The first call probes the kernel. Only a fresh process can measure that.
const { target: _, ...detached } = own;
results['mountOverlay, rootless, the first'] = await measure(async () =>
  (await mountOverlay({ ...detached, rootless: true })).unmount(),
);
fill();
for (const [name, call] of Object.entries(calls)) {
  await call();
  results[name] = await leastOf(20, () => measure(call));
}
await unmountTree(at('many'));
results['unmountTree'] = await leastOf(5, async () => {
  fill();
  return measure(() => unmountTree(at('many')));
});
process.stdout.write(JSON.stringify(results));
