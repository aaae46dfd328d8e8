/**
 * How long each promise form keeps the event loop at a stretch. Arguments: a directory with layers, and how many mounts
 * there are to be in the table. Prints the milliseconds by call.
 */
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import {
  explain,
  findHolders,
  findMount,
  listMounts,
  mountOverlay,
  type OverlayOptions,
  unmount,
  watchMounts,
} from 'overlayfs';
import { makeNamespace } from './namespaces.js';
import { leastOf, measure } from './stretches.js';

const [dir = '', count = '10000'] = process.argv.slice(2);
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
  'unmount by path': async () => {
    await mountOverlay(lowers);
    await unmount(target);
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
  explain: () => explain(own),
  'mountOverlay that fails': () => expectFailure(mountOverlay({ ...own, lowerdir: at('missing') })),
  'mountOverlay at a mount point': () => expectFailure(mountOverlay({ ...own, target: at('many/0') })),
  'mountOverlay, verified': async () => (await mountOverlay({ ...own, index: true })).unmount(),
  listMounts: () => listMounts(),
  'listMounts, layer': () => listMounts({ layer: at('lower') }),
  'listMounts, namespace': async () => {
    const namespace = makeNamespace();
    await listMounts({ namespace });
    closeSync(namespace);
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
await unmount(at('many'), { recursive: true });
results['unmount, recursive'] = await leastOf(5, async () => {
  fill();
  return measure(() => unmount(at('many'), { recursive: true }));
});
process.stdout.write(JSON.stringify(results));
