/** Paths mean what they meant at the call: the working directory may change during it, and bytes may be overwritten. */
import { existsSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setImmediate as later } from 'node:timers/promises';
import {
  bind,
  bindSync,
  findHolders,
  findMount,
  isOpaque,
  isWhiteout,
  listMounts,
  makeOpaque,
  mountOverlay,
  mountOverlaySync,
  type OverlayMount,
  spawn,
  unmount,
  watchMounts,
  whiteout,
} from 'overlayfs';
import { serve } from 'overlayfs/containerd';
import { commitImage, createImage, createLayout, openLayout, runContainer, unpack } from 'overlayfs/images';
import { apply, baseline, changes, check, lookup, merge, pack, remove, squash } from 'overlayfs/layers';
import { mountAll, Snapshotter, unmountAll, withTempMount } from 'overlayfs/snapshots';
import { TestClient } from '../containerd/client.js';
import { makeProgramImage, openSnapshotter } from '../images/helper.js';
import { hasFeature, makeTree, mountTest, scratch } from '../support/index.js';

type Paths = (path: string) => string | Buffer;

const drain = async (source: AsyncIterable<unknown> | Iterable<unknown>) => {
  const found: unknown[] = [];
  for await (const one of source) found.push(one);
  if (found.length === 0) throw new Error('nothing was found');
};

/** Makes a call with paths of `p`, and returns its promise. */
type Scene = (p: Paths) => unknown;

const overlay = (p: Paths) => ({ lowerdir: [p('lower')], upperdir: p('upper'), workdir: p('work') });
const bound = { type: 'bind', source: 'upper', options: ['bind', 'ro'] };
const merged = { type: 'overlay', source: 'overlay', options: ['lowerdir=lower', 'upperdir=upper', 'workdir=work'] };

/** The state before the call. */
type Before = 'nothing' | 'mounted';

const calls: Record<string, readonly [Before, Scene]> = {
  mountOverlay: ['nothing', (p) => mountOverlay({ ...overlay(p), target: p('target') })],
  'mountOverlay with create': [
    'nothing',
    async (p) => (await mountOverlay({ lowerdir: p('lower'), upperdir: p('new'), create: true })).unmount(),
  ],
  bind: ['nothing', (p) => bind(p('upper'), p('target'))],
  unmount: ['mounted', (p) => unmount(p('target'))],
  'unmount recursive': ['mounted', (p) => unmount(p('target'), { recursive: true })],
  findMount: ['mounted', async (p) => assertSome(await findMount(p('target')))],
  'listMounts by target': ['mounted', async (p) => assertSome((await listMounts({ target: p('target') }))[0])],
  'listMounts by layer': ['mounted', async (p) => assertSome((await listMounts({ layer: p('upper') }))[0])],
  findHolders: ['mounted', (p) => findHolders(p('target'))],
  watchMounts: [
    'nothing',
    async (p) => {
      const [from, to] = [resolve('upper'), resolve('target')];
      const watch = watchMounts({ namespace: p('namespace') });
      const event = watch.next();
      await later();
      bindSync(from, to);
      await event;
      await watch.return?.();
    },
  ],
  'spawn, and show': [
    'nothing',
    (p) => exitOf(spawn('cat', ['file'], { mounts: [{ source: p('upper'), target: p('lower') }], cwd: p('lower') })),
  ],
  whiteout: ['nothing', (p) => whiteout([p('upper/a'), p('upper/b')])],
  isWhiteout: ['nothing', (p) => isWhiteout(p('upper/file'))],
  makeOpaque: ['nothing', (p) => makeOpaque(p('upper'))],
  isOpaque: ['nothing', (p) => isOpaque(p('upper'))],
  remove: ['nothing', (p) => remove(p('upper'))],
  changes: ['nothing', (p) => drain(changes({ upperdir: p('upper'), lowerdir: [p('lower')] }))],
  'changes, read later': ['nothing', (p) => afterwards(changes({ upperdir: p('upper'), lowerdir: p('lower') }), drain)],
  'mountOverlaySync, used later': [
    'nothing',
    (p) => afterwards(mountOverlaySync({ ...overlay(p), target: p('target') }), (mount) => drain(changes(mount))),
  ],
  'bindSync, unmounted later': [
    'nothing',
    (p) => afterwards(bindSync(p('upper'), p('target')), (mount) => mount.unmountSync()),
  ],
  lookup: ['nothing', (p) => lookup({ lowerdir: [p('upper'), p('lower')] }, p('file'))],
  check: ['nothing', (p) => check({ upperdir: p('upper'), lowerdir: p('lower') })],
  baseline: ['nothing', (p) => baseline(p('lower'))],
  merge: ['nothing', (p) => merge(p('upper'), { into: p('lower') })],
  squash: ['nothing', (p) => squash({ upperdir: [p('upper'), p('lower')] }, { into: p('folded') })],
  'squash to plain': [
    'nothing',
    (p) => squash({ lowerdir: [p('upper'), p('lower')] }, { into: p('folded'), plain: true }),
  ],
  pack: ['nothing', (p) => drain(pack({ upperdir: p('upper'), lowerdir: p('lower') }))],
  'pack of states': ['nothing', (p) => drain(pack({ before: p('lower'), after: p('upper') }))],
  apply: ['nothing', (p) => apply('layer.tar', p('applied'))],
  createLayout: ['nothing', (p) => createLayout(p('layout')).then(({ path }) => openLayout(path))],
  'createImage and openLayout': [
    'nothing',
    async (p) => {
      const [archive, made] = [pack(p('upper')), createLayout(p('layout'))];
      const { digest } = await createImage(await made, [archive], { tag: 'one' });
      if ((await (await made).image('one')).digest !== digest) throw new Error('another image was found');
    },
  ],
  serve: [
    'nothing',
    async () => {
      const address = resolve('socket');
      const snapshotter = await Snapshotter.open('root', { fsync: 'none' });
      const server = await serve(snapshotter, { address });
      const client = new TestClient(address);
      const { mounts } = await client.call('prepare', { snapshotter: '', key: 'a' });
      client.close();
      await server.close();
      await snapshotter.close();
      if (!existsSync(mounts[0]?.source ?? '')) throw new Error(`${mounts[0]?.source} is not there`);
    },
  ],
  'Snapshotter.open': ['nothing', async () => (await Snapshotter.open('root')).close()],
  mountAll: ['nothing', (p) => mountAll([bound, merged], p('target'))],
  withTempMount: ['nothing', () => withTempMount([merged], () => {})],
  'withTempMount of several': ['nothing', () => withTempMount([bound, merged], () => {})],
  unmountAll: ['mounted', (p) => unmountAll([merged], p('target'))],
};

/** Uses the result of a synchronous call when the working directory is another one. */
async function afterwards<T>(result: T, use: (result: T) => unknown): Promise<void> {
  await later();
  await use(result);
}

function assertSome(value: unknown): void {
  if (value === undefined) throw new Error('nothing was found');
}

const exitOf = (child: ReturnType<typeof spawn>) =>
  new Promise<void>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`ended with ${code}`))));
  });

/** Calls a function in a directory, leaves the directory and overwrites the bytes, and awaits the result. */
async function leaving<T>(dir: string, asBytes: boolean, call: (p: Paths) => T): Promise<Awaited<T>> {
  const given: Buffer[] = [];
  const before = process.cwd();
  process.chdir(dir);
  let result: T;
  try {
    result = call((path) => {
      if (!asBytes) return path;
      given.push(Buffer.from(path));
      return given.at(-1) as Buffer;
    });
  } finally {
    process.chdir(before);
    for (const bytes of given) bytes.fill('?');
  }
  return await result;
}

let count = 0;
function makeScene(dir: string): string {
  const own = join(dir, String(count++));
  makeTree(own, { 'lower/below': 'below', 'upper/file': 'file', 'work/': '', 'target/': '' });
  symlinkSync('/proc/thread-self/ns/mnt', join(own, 'namespace'));
  return own;
}

mountTest('a path is that of the moment of the call, in each call', async (t) => {
  const dir = scratch(t);
  const packed = join(dir, 'packed');
  makeTree(packed, { file: 'packed' });
  const chunks = await pack(packed).toArray();
  for (const asBytes of [false, true]) {
    for (const [name, [first, call]] of Object.entries(calls)) {
      const own = makeScene(dir);
      writeFileSync(join(own, 'layer.tar'), Buffer.concat(chunks));
      if (first === 'mounted') await leaving(own, asBytes, (p) => mountOverlay({ ...overlay(p), target: p('target') }));
      await t.notThrowsAsync(async () => leaving(own, asBytes, (p) => call(p)), `${name}, ${asBytes}`);
      await unmount(own, { recursive: true });
    }
  }
});

mountTest('a mount keeps its paths after the working directory has changed', async (t) => {
  const dir = scratch(t);
  for (const asBytes of [false, true]) {
    const own = makeScene(dir);
    makeTree(own, { 'other/': '', 'other-work/': '', 'place/': '' });
    const mount = await leaving(own, asBytes, (p) => mountOverlay({ ...overlay(p), target: p('target') }));
    const { lowerdir, upperdir, workdir, target } = mount.options;
    const text = (path: unknown) => String(path);
    t.deepEqual([lowerdir].flat().map(text), [join(own, 'lower')]);
    t.deepEqual(
      [upperdir, workdir, target, mount.target].map(text),
      ['upper', 'work', 'target', 'target'].map((name) => join(own, name)),
    );
    const uses: Record<string, (mount: OverlayMount) => unknown> = {
      changes: (mount) => drain(changes(mount)),
      pack: (mount) => drain(pack(mount)),
      lookup: (mount) => lookup(mount, 'file'),
      'squash to plain': (mount) => squash(mount, { into: join(own, 'flat'), plain: true }),
      merge: (mount) => merge(mount, { into: join(own, 'place') }),
      spawn: (mount) =>
        exitOf(
          spawn('cat', ['file'], { mounts: [{ source: mount, target: join(own, 'lower') }], cwd: join(own, 'lower') }),
        ),
      findHolders: (mount) => findHolders(mount),
      remount: (mount) => mount.remount({ readonly: false }),
    };
    for (const [name, use] of Object.entries(uses))
      await t.notThrowsAsync(async () => use(mount), `${name}, ${asBytes}`);
    if (hasFeature('mountBeneath')) {
      // The second waits for the first, and is elsewhere by then.
      const first = mount.replace({ lowerdir: [join(own, 'lower'), join(own, 'upper')] });
      await leaving(own, asBytes, (p) =>
        mount.replace({ lowerdir: p('lower'), upperdir: p('other'), workdir: p('other-work') }),
      );
      await first;
      t.is(text(mount.options.upperdir), join(own, 'other'));
      writeFileSync(join(own, 'target/new'), '');
      await drain(changes(mount));
    }
    await mount.unmount();
    const detached = await leaving(own, asBytes, (p) => mountOverlay({ lowerdir: [p('lower'), p('upper')] }));
    await leaving(own, asBytes, (p) => detached.attach(p('target')));
    t.is(text(detached.target), join(own, 'target'));
    t.is(readFileSync(join(own, 'target/below'), 'utf8'), 'below');
    await detached.unmount();
  }
});

mountTest(
  'an image and a snapshotter keep their paths, and a container has those of the call',
  { needs: 'mountSetattr' },
  async (t) => {
    const dir = scratch(t, 'disk');
    await makeProgramImage(dir);
    for (const asBytes of [false, true]) {
      const own = makeScene(dir);
      const layout = await leaving(dir, asBytes, (p) => openLayout(p('layout')));
      const snapshotter = await leaving(own, asBytes, () => openSnapshotter(t, 'root'));
      const image = await layout.image('one');
      const { chainId } = await unpack(image, snapshotter);
      await snapshotter.prepare('changed', chainId);
      const made = await commitImage(image, snapshotter, 'changed', { tag: 'two' });
      t.is((await layout.image('two')).digest, made.digest);
      const runs = (runtime: string | false) =>
        leaving(own, asBytes, (p) => {
          const volumes = [{ source: p('upper'), target: '/volume' }];
          return runContainer(image, {
            snapshotter,
            runtime,
            volumes,
            command: ['cat', '/volume/file'],
            stdio: 'ignore',
          });
        });
      t.is((await runs(false)).exitCode, 0);
      writeFileSync(join(own, 'runtime'), '#!/bin/sh\nexit 7\n', { mode: 0o755 });
      await t.throwsAsync(runs('./runtime'), { message: /runtime' ended with 7/ });
    }
  },
);
