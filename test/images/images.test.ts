/** Image layouts: read, unpacked into snapshots, committed; and all that may be wrong with one. */
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  createReadStream,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { whiteout } from 'overlayfs';
import {
  commitImage,
  createImage,
  createLayout,
  type Image,
  ImageError,
  type ImageErrorCode,
  openLayout,
  unpack,
} from 'overlayfs/images';
import { pack } from 'overlayfs/layers';
import { type Snapshotter, withTempMount } from 'overlayfs/snapshots';
import { changeTree } from '../layers/random-tree.js';
import { generator, makeTree, mountTest, packageRoot, scaled, scratch } from '../support/index.js';
import { addDependency, evaluateAs, evaluateAsNobody } from '../support/plain-user.js';
import { describeTree, type Tree } from '../support/trees.js';
import { makeImage, openSnapshotter } from './helper.js';

/** Describes the files that the snapshot of an image shows. */
async function treeOf(snapshotter: Snapshotter, { layers }: Image): Promise<Tree> {
  const mounts = await snapshotter.view('look', layers.at(-1)?.chainId);
  try {
    // Other programs look at it, too.
    return await withTempMount(mounts, (path) => describeTree(`${path.replace('self', String(process.pid))}/.`));
  } finally {
    await snapshotter.remove('look');
  }
}

/** Changes the files of a new container. */
const changeSnapshot = async (of: Snapshotter, key: string, parent: string, change: (path: string) => void) =>
  withTempMount(await of.prepare(key, parent), change);

async function namesIn(snapshotter: Snapshotter): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of snapshotter.list()) names.push(name);
  return names;
}

/** Layers of random trees, each with whiteouts of what is below. */
async function randomImage(dir: string, seed: number, count: number): Promise<Image> {
  const random = generator(seed);
  const layers: string[] = [];
  for (let i = 0; i < count; i++) {
    const layer = join(dir, `random-${i}`);
    mkdirSync(layer);
    changeTree(layer, random, 100);
    for (const name of i === 0 ? [] : readdirSync(layers[i - 1] as string, 'latin1').slice(0, 2)) {
      await whiteout(Buffer.from(join(layer, name), 'latin1'), { replace: true, recursive: true }).catch(() => {});
    }
    layers.push(layer);
  }
  return makeImage(dir, layers);
}

mountTest('umoci and this library unpack random images to the same trees', async (t) => {
  const first = Number(process.env['OVERLAYFS_TEST_SEED'] ?? 1);
  for (let seed = first; seed < first + scaled(10, 2); seed++) {
    t.log(`seed ${seed}`);
    const dir = scratch(t, 'disk');
    const image = await randomImage(dir, seed, 4);
    const snapshotter = await openSnapshotter(t, join(dir, 'root'));
    t.deepEqual(await unpack(image, snapshotter), { chainId: image.layers[3]?.chainId, layers: 4, reused: 0 } as never);
    const bundle = join(dir, 'bundle');
    execFileSync('umoci', ['unpack', '--image', `${join(dir, 'layout')}:one`, bundle], { stdio: 'pipe' });
    const [ours, theirs] = [await treeOf(snapshotter, image), describeTree(join(bundle, 'rootfs'))];
    // umoci keeps times in seconds where it makes directories anew, and the time of the root.
    const plain = (tree: Tree) =>
      Object.entries(tree).map(([path, { mtime, linkedTo, xattrs, ...rest }]) => [path, rest]);
    t.deepEqual(plain(ours), plain(theirs), `seed ${seed}`);
  }
});

mountTest('a directory without an entry is as the layers below have it, whatever is unpacked first', async (t) => {
  const dir = scratch(t, 'disk');
  const layout = await createLayout(join(dir, 'layout'));
  makeTree(dir, { 'low/etc/deep/a': 'a', 'up/etc/deep/b': 'b' });
  execFileSync('chmod', ['-R', '0750', join(dir, 'low/etc')]);
  execFileSync('chown', ['-R', '7:8', join(dir, 'low/etc')]);
  execFileSync('chmod', ['0711', join(dir, 'low')]);
  execFileSync('tar', ['-cf', join(dir, 'up.tar'), '-C', join(dir, 'up'), 'etc/deep/b']);
  const tar = readFileSync(join(dir, 'up.tar'));
  const digest = `sha256:${createHash('sha256').update(tar).digest('hex')}`;
  const archive = createReadStream(join(dir, 'up.tar'));
  const summary = Promise.resolve({ diffId: digest, digest, size: tar.length, compression: 'none' });
  const image = await createImage(layout, [pack(join(dir, 'low')), Object.assign(archive, { summary }) as never], {
    tag: 'x',
  });
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  await unpack(image, snapshotter);
  const tree = await treeOf(snapshotter, image);
  for (const path of ['etc', 'etc/deep']) t.like(tree[path], { mode: 0o750, owner: '7:8' });
  t.is(tree['']?.mode, 0o711);
  t.deepEqual(Object.keys(tree), ['', 'etc', 'etc/deep', 'etc/deep/a', 'etc/deep/b']);
});

mountTest('calls at the same time share the work, and layers that are there stay', async (t) => {
  const dir = scratch(t, 'disk');
  const image = await randomImage(dir, 7, 6);
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  const seen: number[] = [];
  const all = await Promise.all(
    Array.from({ length: 5 }, () => unpack(image, snapshotter, { onProgress: ({ entries }) => seen.push(entries) })),
  );
  t.is(
    all.reduce((sum, { layers }) => sum + layers, 0),
    6,
  );
  t.true(seen.length >= 6);
  const names = image.layers.map(({ chainId }) => chainId).sort();
  t.deepEqual(await namesIn(snapshotter), names, 'nothing else is left');
  const [top] = image.layers.slice(-1);
  await snapshotter.remove(top?.chainId ?? '');
  t.like(await unpack(image, snapshotter), { layers: 1, reused: 5 });
});

/** A process that unpacks, and prints a line for each step. */
const unpacker = (layout: string, root: string): ReturnType<typeof spawn> => {
  const script = `import { openLayout, unpack } from 'overlayfs/images';
    import { Snapshotter } from 'overlayfs/snapshots';
    const snapshotter = await Snapshotter.open(${JSON.stringify(root)});
    const image = await (await openLayout(${JSON.stringify(layout)})).image('one');
    const done = await unpack(image, snapshotter, { onProgress: ({ entries }) => console.log(entries) });
    console.log('made ' + done.layers);
    await snapshotter.close();`;
  return spawn(process.execPath, ['--input-type=module', '-e', script], {
    cwd: packageRoot,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
};

mountTest('processes at the same time, and killed ones: the work is done once more, and nothing is left', async (t) => {
  const dir = scratch(t, 'disk');
  const image = await randomImage(dir, 11, 8);
  const [layout, root] = [join(dir, 'layout'), join(dir, 'root')];
  for (let round = 0; round < scaled(20, 2); round++) {
    const killed = unpacker(layout, `${root}${round}`);
    const ended = once(killed, 'close');
    await Promise.race([once(killed.stdout as NodeJS.ReadableStream, 'data'), ended]);
    await setTimeout(round % 10);
    killed.kill('SIGKILL');
    await ended;
    const made = await Promise.all(
      Array.from({ length: 2 }, async () => {
        let text = '';
        const child = unpacker(layout, `${root}${round}`);
        child.stdout?.on('data', (piece) => {
          text += piece;
        });
        const [code] = await once(child, 'close');
        t.is(code, 0);
        return text.trim().split('\n').at(-1);
      }),
    );
    const snapshotter = await openSnapshotter(t, `${root}${round}`);
    t.deepEqual(await namesIn(snapshotter), image.layers.map(({ chainId }) => chainId).sort(), made.join());
    t.is((await unpack(image, snapshotter)).layers, 0);
  }
});

mountTest('an aborted call leaves no half layer', async (t) => {
  const dir = scratch(t, 'disk');
  const image = await randomImage(dir, 5, 3);
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  const controller = new AbortController();
  const onProgress = () => controller.abort();
  const error = await t.throwsAsync(unpack(image, snapshotter, { signal: controller.signal, onProgress }));
  t.is(error?.name, 'AbortError');
  t.true((await namesIn(snapshotter)).every((name) => !name.startsWith('unpack')));
  t.like(await unpack(image, snapshotter), { chainId: image.layers[2]?.chainId });
});

mountTest('a commit has what the container changed, for a machine that has only the layout too', async (t) => {
  const dir = scratch(t, 'disk');
  const image = await makeImage(dir, [{ 'etc/a': 'a', 'etc/b': 'b', 'var/x': 'x' }, { 'etc/c': 'c' }]);
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  const { chainId } = await unpack(image, snapshotter);
  await withTempMount(await snapshotter.prepare('work', chainId), (path) => {
    rmSync(join(path, 'etc/a'));
    rmSync(join(path, 'var'), { recursive: true });
    makeTree(path, { 'var/y': 'y' });
    writeFileSync(join(path, 'etc/b'), 'changed');
  });
  await snapshotter.prepare('other', image.layers[0]?.chainId);
  await snapshotter.view('view', chainId);
  for (const key of ['other', 'view']) {
    const wrong = {
      code: 'ERR_INVALID_ARG_VALUE',
      message: /must be an active snapshot of the image, and not an? (active|view) /,
    };
    await t.throwsAsync(commitImage(image, snapshotter, key, { tag: 'two' }), wrong);
    await snapshotter.remove(key);
  }
  const config = { Cmd: ['cat', '/etc/b'] };
  const committed = await commitImage(image, snapshotter, 'work', { tag: 'two', config, comment: 'changes' });
  t.is(committed.layers.length, 3);
  t.deepEqual(committed.config.Cmd, ['cat', '/etc/b']);
  t.is(committed.document.history?.at(-1)?.comment, 'changes');
  t.deepEqual(await image.layout.tags(), ['one', 'two']);
  t.like(await unpack(committed, snapshotter), { layers: 0 }, 'the snapshot is committed too');
  const other = await openSnapshotter(t, join(dir, 'other'));
  const again = await (await openLayout(join(dir, 'layout'))).image('two');
  t.like(await unpack(again, other), { layers: 3 });
  const names = (tree: Tree) => Object.keys(tree);
  t.deepEqual(names(await treeOf(other, again)), ['', 'etc', 'etc/b', 'etc/c', 'var', 'var/y']);
  t.deepEqual(await treeOf(other, again), await treeOf(snapshotter, committed));
  const bundle = join(dir, 'bundle');
  execFileSync('umoci', ['unpack', '--image', `${join(dir, 'layout')}:two`, bundle], { stdio: 'pipe' });
  t.deepEqual(names(describeTree(join(bundle, 'rootfs'))), names(await treeOf(other, again)), 'umoci reads it too');
  const tagged = await makeImage(dir, [{ 'etc/z': 'z' }], {}, 'two');
  t.is((await image.layout.image('two')).digest, tagged.digest, 'the tag is that of the last one');
});

/** Changes a document of a layout, as another program would: rewrites the blobs that lead to it. */
const rewrite = (layout: string, digest: string, change: (document: Record<string, unknown>) => object): string => {
  const blob = (of: string) => join(layout, 'blobs', of.replace(':', '/'));
  const text = JSON.stringify(change(JSON.parse(readFileSync(blob(digest), 'utf8'))));
  const made = `sha256:${createHash('sha256').update(text).digest('hex')}`;
  writeFileSync(blob(made), text);
  return made;
};

mountTest('an image without history, committed: one entry a layer, as buildah and skopeo want', async (t) => {
  const dir = scratch(t, 'disk');
  const layout = join(dir, 'layout');
  const image = await makeImage(dir, [{ a: 'a' }, { b: 'b' }]);
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  const given = (histories: unknown) => {
    const config = rewrite(layout, image.manifest.config.digest, (document) => ({ ...document, history: histories }));
    const size = (digest: string) => statSync(join(layout, 'blobs', digest.replace(':', '/'))).size;
    const manifest = rewrite(layout, image.digest, (document) => ({
      ...document,
      config: { ...image.manifest.config, digest: config, size: size(config) },
    }));
    const path = join(layout, 'index.json');
    const index = JSON.parse(readFileSync(path, 'utf8'));
    index.manifests[0] = { ...index.manifests[0], digest: manifest, size: size(manifest) };
    writeFileSync(path, JSON.stringify({ ...index, manifests: index.manifests.slice(0, 1) }));
    return image.layout.image('one');
  };
  const kept = [{ created_by: 'x' }, { empty_layer: true }, { created_by: 'y' }];
  for (const [history, count] of [
    [undefined, 3],
    [[], 3],
    [[{ created_by: 'x' }], 3],
    [kept, 4],
    [[...kept, { created_by: 'z' }], 3],
  ] as const) {
    const changed = await given(history);
    const { chainId } = await unpack(changed, snapshotter);
    await changeSnapshot(snapshotter, 'work', chainId, (path) => writeFileSync(join(path, 'c'), String(Math.random())));
    const committed = await commitImage(changed, snapshotter, 'work', { tag: 'two' });
    t.is(committed.document.history?.length, count);
    execFileSync('skopeo', ['inspect', '--config', `oci:${layout}:two`], { stdio: 'pipe' });
    const storage = ['--root', join(dir, 'storage'), '--runroot', join(dir, 'run'), '--storage-driver', 'vfs'];
    const buildah = (...args: string[]) =>
      execFileSync('buildah', [...storage, ...args], { cwd: dir, encoding: 'utf8', stdio: 'pipe' }).trim();
    const container = buildah('from', '--pull-always', 'oci:layout:two');
    buildah('commit', '--quiet', container, 'oci:built:three');
    buildah('rm', container);
  }
});

mountTest(
  'root of a user namespace unpacks an image with device nodes, which are left out',
  { needs: 'rootless' },
  async (t) => {
    const dir = scratch(t, 'disk');
    makeTree(join(dir, 'nodes'), { 'dev/': '', file: '' });
    execFileSync('mknod', [join(dir, 'nodes/dev/null'), 'c', '1', '3']);
    await makeImage(dir, [join(dir, 'nodes')]);
    addDependency('@photostructure/sqlite');
    const outcome = evaluateAs(
      ['unshare', '--user', '--map-root-user'],
      `const [dir] = args;
    const { openLayout, unpack } = await import('overlayfs/images');
    const { Snapshotter } = await import('overlayfs/snapshots');
    const image = await (await openLayout(join(dir, 'layout'))).image('one');
    const snapshotter = await Snapshotter.open(join(dir, 'root'));
    const made = await unpack(image, snapshotter, { devices: 'create' }).catch(({ code }) => code);
    const { layers } = await unpack(image, snapshotter);
    await snapshotter.close();
    return [made, layers];`,
      dir,
    );
    t.deepEqual(outcome, ['EPERM', 1]);
  },
);

mountTest('a commit to the tag of an index of platforms replaces the image of its own', async (t) => {
  const dir = scratch(t, 'disk');
  const layout = join(dir, 'layout');
  const image = await makeImage(dir, [{ a: 'a' }]);
  const { digest } = image;
  const size = statSync(join(layout, 'blobs', digest.replace(':', '/'))).size;
  const mediaType = 'application/vnd.oci.image.manifest.v1+json';
  const other = `sha256:${'0'.repeat(64)}`;
  const manifests = [
    { mediaType, digest: other, size, platform: { os: 'linux', architecture: 's390x' } },
    { mediaType, digest, size, platform: image.platform },
    {
      ...{ mediaType, digest: `sha256:${'1'.repeat(64)}`, size },
      platform: { os: 'unknown', architecture: 'unknown' },
      annotations: { 'vnd.docker.reference.digest': digest },
    },
  ];
  const indexType = 'application/vnd.oci.image.index.v1+json';
  const inner = rewrite(layout, digest, () => ({ schemaVersion: 2, mediaType: indexType, manifests }));
  const path = join(layout, 'index.json');
  const own = {
    mediaType: indexType,
    digest: inner,
    size: statSync(join(layout, 'blobs', inner.replace(':', '/'))).size,
  };
  const annotations = { 'org.opencontainers.image.ref.name': 'all' };
  writeFileSync(path, JSON.stringify({ schemaVersion: 2, manifests: [{ ...own, annotations }] }));
  const found = await image.layout.image('all');
  const snapshotter = await openSnapshotter(t, join(dir, 'root'));
  for (const content of ['1', '2']) {
    const { chainId } = await unpack(found, snapshotter);
    await changeSnapshot(snapshotter, 'work', chainId, (made) => writeFileSync(join(made, 'b'), content));
    const committed = await commitImage(found, snapshotter, 'work', { tag: 'all' });
    const index = JSON.parse(readFileSync(path, 'utf8')) as { manifests: { mediaType: string; digest: string }[] };
    t.deepEqual(
      index.manifests.map((one) => one.mediaType),
      [indexType],
    );
    const blob = join(layout, 'blobs', (index.manifests[0]?.digest ?? '').replace(':', '/'));
    const after = JSON.parse(readFileSync(blob, 'utf8')) as { manifests: { digest: string }[] };
    t.deepEqual(
      after.manifests.map((one) => one.digest),
      [other, committed.digest],
    );
    t.is((await image.layout.image('all')).digest, committed.digest);
  }
});

mountTest(
  'a plain user unpacks and commits: all files are its own, and root’s in the image',
  { needs: 'rootless' },
  async (t) => {
    const dir = scratch(t, 'disk');
    await makeImage(dir, [{ 'etc/a': 'a', 'etc/b': 'b' }, { 'etc/c': 'c' }]);
    execFileSync('chown', ['-R', '65534:65534', dir]);
    addDependency('@photostructure/sqlite');
    const outcome = evaluateAsNobody(
      `const [dir] = args;
    const { openLayout, unpack, commitImage } = await import('overlayfs/images');
    const { Snapshotter } = await import('overlayfs/snapshots');
    const layout = await openLayout(join(dir, 'layout'));
    const image = await layout.image();
    const snapshotter = await Snapshotter.open(join(dir, 'root'));
    const { chainId, layers } = await unpack(image, snapshotter);
    const [{ options }] = await snapshotter.prepare('work', chainId);
    const value = (name) => options.find((option) => option.startsWith(name)).slice(name.length + 1);
    const mount = await overlayfs.mountOverlay({ lowerdir: value('lowerdir').split(':'), upperdir: value('upperdir'), workdir: value('workdir'), rootless: true });
    fs.rmSync(join(mount.path, 'etc'), { recursive: true }); fs.mkdirSync(join(mount.path, 'etc')); fs.writeFileSync(join(mount.path, 'etc/new'), 'new');
    await mount.unmount();
    const committed = await commitImage(image, snapshotter, 'work', { tag: 'two' });
    await snapshotter.close();
    return [layers, committed.layers.length];`,
      dir,
    );
    t.deepEqual(outcome, [2, 3]);
    const image = await (await openLayout(join(dir, 'layout'))).image('two');
    const snapshotter = await openSnapshotter(t, join(dir, 'mine'));
    await unpack(image, snapshotter);
    const tree = await treeOf(snapshotter, image);
    t.deepEqual(
      Object.entries(tree).map(([path, { owner }]) => `${path} ${owner}`),
      [' 0:0', 'etc 0:0', 'etc/new 0:0'],
    );
  },
);

// biome-ignore lint/suspicious/noExplicitAny: documents that are about to be wrong
type Documents = Record<'manifest' | 'config' | 'index', any>;

/** Replaces a blob of the image by others, whose digests are right, up to index.json. */
async function edit(image: Image, change: (documents: Documents) => void): Promise<void> {
  const { layout } = image;
  const read = (path: string) => JSON.parse(readFileSync(path, 'utf8'));
  const manifest = read(layout.pathOf(image.digest));
  const config = read(layout.pathOf(image.manifest.config.digest));
  const index = read(join(layout.path, 'index.json'));
  const given = JSON.stringify(manifest.config);
  change({ manifest, config, index });
  if (JSON.stringify(manifest.config) === given) {
    const { digest, size } = await layout.writeJson(config, '');
    Object.assign(manifest.config, { digest, size });
  }
  const { digest, size } = await layout.writeJson(manifest, '');
  const [first] = index.manifests;
  if (first.digest === image.digest) Object.assign(first, { digest, size });
  writeFileSync(join(layout.path, 'index.json'), JSON.stringify(index));
}

const blobOf = ({ layout, layers }: Image): string => layout.pathOf(layers[1]?.digest ?? '');

const faults: readonly (readonly [title: string, code: ImageErrorCode, damage: (image: Image) => unknown])[] = [
  ['a layer that is missing', 'ERR_IMAGE_BLOB_MISSING', (image) => rmSync(blobOf(image))],
  ['a layer that is cut', 'ERR_IMAGE_DIGEST_MISMATCH', (image) => truncateSync(blobOf(image), 100)],
  [
    'a layer with other bytes',
    'ERR_IMAGE_DIGEST_MISMATCH',
    (image) => {
      const bytes = readFileSync(blobOf(image));
      bytes.writeUInt8(bytes.readUInt8(600) ^ 1, 600);
      writeFileSync(blobOf(image), bytes);
    },
  ],
  [
    'a layer of which the configuration has another digest',
    'ERR_IMAGE_DIGEST_MISMATCH',
    (image) => edit(image, ({ config }) => (config.rootfs.diff_ids[1] = `sha256:${'0'.repeat(64)}`)),
  ],
  [
    'a configuration that is missing',
    'ERR_IMAGE_BLOB_MISSING',
    ({ layout, manifest }) => rmSync(layout.pathOf(manifest.config.digest)),
  ],
  [
    'a configuration that is no JSON',
    'ERR_IMAGE_INVALID',
    (image) =>
      edit(image, ({ manifest }) => {
        const digest = `sha256:${createHash('sha256').update('nothing').digest('hex')}`;
        writeFileSync(image.layout.pathOf(digest), 'nothing');
        Object.assign(manifest.config, { digest, size: 7 });
      }),
  ],
  ['a manifest that is missing', 'ERR_IMAGE_BLOB_MISSING', ({ layout, digest }) => rmSync(layout.pathOf(digest))],
  [
    'a manifest with other bytes',
    'ERR_IMAGE_DIGEST_MISMATCH',
    ({ layout, digest }) => {
      const path = layout.pathOf(digest);
      writeFileSync(path, readFileSync(path, 'utf8').replace('{', ' ').slice(0, statSync(path).size));
    },
  ],
  ['too few layers', 'ERR_IMAGE_INVALID', (image) => edit(image, ({ manifest }) => manifest.layers.pop())],
  [
    'no layers',
    'ERR_IMAGE_INVALID',
    (image) =>
      edit(image, ({ manifest, config }) => {
        manifest.layers = [];
        config.rootfs.diff_ids = [];
      }),
  ],
  [
    'a digest of another kind',
    'ERR_IMAGE_INVALID',
    (image) => edit(image, ({ manifest }) => (manifest.layers[0].digest = 'md5:0')),
  ],
  [
    'a digest that leads elsewhere',
    'ERR_IMAGE_INVALID',
    (image) => edit(image, ({ manifest }) => (manifest.layers[0].digest = 'sha256:../../../etc/passwd')),
  ],
  [
    'a layer of an unknown type',
    'ERR_IMAGE_MEDIA_TYPE',
    (image) => edit(image, ({ manifest }) => (manifest.layers[0].mediaType = 'application/x-squashfs')),
  ],
  [
    'an artifact',
    'ERR_IMAGE_MEDIA_TYPE',
    (image) => edit(image, ({ manifest }) => (manifest.config.mediaType = 'application/vnd.oci.empty.v1+json')),
  ],
  [
    'an unknown kind of image',
    'ERR_IMAGE_MEDIA_TYPE',
    (image) => edit(image, ({ index }) => (index.manifests[0].mediaType = 'text/plain')),
  ],
  [
    'wrong fields in the configuration',
    'ERR_IMAGE_INVALID',
    (image) => edit(image, ({ config }) => (config.config = { Cmd: 'sh' })),
  ],
  [
    'a NUL byte in the configuration',
    'ERR_IMAGE_INVALID',
    (image) => edit(image, ({ config }) => (config.config = { WorkingDir: '/a\0b' })),
  ],
  [
    'another platform',
    'ERR_IMAGE_PLATFORM_MISSING',
    (image) => edit(image, ({ config }) => (config.architecture = 'riscv64')),
  ],
  ['no such tag', 'ERR_IMAGE_NOT_FOUND', (image) => edit(image, ({ index }) => (index.manifests[0].annotations = {}))],
  ['no index', 'ERR_IMAGE_NOT_FOUND', ({ layout }) => rmSync(join(layout.path, 'index.json'))],
  ['no layout', 'ERR_IMAGE_NOT_FOUND', ({ layout }) => rmSync(join(layout.path, 'oci-layout'))],
  [
    'a later layout',
    'ERR_IMAGE_NOT_FOUND',
    ({ layout }) => writeFileSync(join(layout.path, 'oci-layout'), '{"imageLayoutVersion":"2.0.0"}'),
  ],
  [
    'an index that is no object',
    'ERR_IMAGE_INVALID',
    ({ layout }) => writeFileSync(join(layout.path, 'index.json'), '[]'),
  ],
  [
    'an index that nobody writes',
    'ERR_IMAGE_INVALID',
    ({ layout }) => {
      rmSync(join(layout.path, 'index.json'));
      execFileSync('mkfifo', [join(layout.path, 'index.json')]);
    },
  ],
  [
    'an index of too many bytes',
    'ERR_IMAGE_INVALID',
    ({ layout }) => truncateSync(join(layout.path, 'index.json'), 2 ** 40),
  ],
];

for (const [title, code, damage] of faults) {
  mountTest(`bad image: ${title}`, async (t) => {
    const dir = scratch(t, 'disk');
    await damage(await makeImage(dir, [{ a: 'a' }, { b: 'b'.repeat(2000) }]));
    const snapshotter = await openSnapshotter(t, join(dir, 'root'));
    const error = await t.throwsAsync(
      async () => unpack(await (await openLayout(join(dir, 'layout'))).image('one'), snapshotter),
      { instanceOf: ImageError },
    );
    t.is(error?.code, code, error?.message);
    t.true((error?.hint.length ?? 0) > 0);
    t.true(
      (await namesIn(snapshotter)).every((name) => name.startsWith('sha256:')),
      'no half layer is left',
    );
  });
}

/** An index for several platforms in the place of the image. */
async function addIndex(t: ExecutionContext, dir: string, platforms: readonly object[]): Promise<Image['layout']> {
  const image = await makeImage(dir, [{ a: 'a' }]);
  const { layout, digest } = image;
  const mediaType = 'application/vnd.oci.image.manifest.v1+json';
  const size = statSync(layout.pathOf(digest)).size;
  const manifests = platforms.map((platform) => ({ mediaType, digest, size, platform }));
  const index = await layout.writeJson({ schemaVersion: 2, manifests }, 'application/vnd.oci.image.index.v1+json');
  await layout.tag(index, 'one', { os: 'any', architecture: 'any' });
  const file = join(layout.path, 'index.json');
  const { manifests: all } = JSON.parse(readFileSync(file, 'utf8'));
  writeFileSync(file, JSON.stringify({ schemaVersion: 2, manifests: [{ ...all.at(-1), platform: undefined }] }));
  t.deepEqual(await layout.tags(), ['one']);
  return layout;
}

const own = { os: 'linux', architecture: process.arch === 'x64' ? 'amd64' : process.arch };

test('an index: the image for this platform, or the one that was asked for', async (t) => {
  const dir = scratch(t);
  const other = { os: 'linux', architecture: 'riscv64' };
  const layout = await addIndex(t, dir, [other, own, { os: 'unknown', architecture: 'unknown' }]);
  t.like(await layout.image('one'), { platform: own });
  const error = await t.throwsAsync(layout.image('one', { platform: 'linux/s390x' }), { instanceOf: ImageError });
  t.is(error?.code, 'ERR_IMAGE_PLATFORM_MISSING');
  t.regex(error?.message ?? '', /linux\/riscv64, linux\/amd64|linux\/riscv64, linux\/arm64/);
  await t.throwsAsync(layout.image('one', { platform: 'linux' }), { code: 'ERR_INVALID_ARG_VALUE' });
  await t.throwsAsync(layout.image(5 as never), { code: 'ERR_INVALID_ARG_TYPE' });
});

test('an index without our platform', async (t) => {
  const layout = await addIndex(t, scratch(t), [{ os: 'linux', architecture: 'riscv64' }]);
  const error = await t.throwsAsync(layout.image('one'), { instanceOf: ImageError });
  t.is(error?.code, 'ERR_IMAGE_PLATFORM_MISSING');
});

test('without a tag, a layout has to have one image; a digest names one, too', async (t) => {
  const dir = scratch(t);
  const one = await makeImage(dir, [{ a: 'a' }]);
  t.is((await one.layout.image()).digest, one.digest);
  await makeImage(dir, [{ a: 'b' }], {}, 'two');
  await t.throwsAsync(one.layout.image(), { code: 'ERR_IMAGE_NOT_FOUND', message: /one of its tags: one, two/ });
  t.is((await one.layout.image(one.digest)).tag, 'one');
});

test('what umoci makes is read', async (t) => {
  const dir = scratch(t);
  const image = `${join(dir, 'umoci')}:made`;
  execFileSync('umoci', ['init', '--layout', join(dir, 'umoci')]);
  execFileSync('umoci', ['new', '--image', image]);
  execFileSync('umoci', ['config', '--image', image, '--config.user', 'www', '--config.cmd', 'true'], {
    stdio: 'pipe',
  });
  const read = await (await openLayout(join(dir, 'umoci'))).image('made');
  t.like(read.config, { User: 'www', Cmd: ['true'] });
  t.is(read.layers.length, 0);
});

test('a failed commit leaves the tags as they are', async (t) => {
  const dir = scratch(t);
  const { layout, digest } = await makeImage(dir, [{ a: 'a' }]);
  const broken = pack(join(dir, 'none'));
  await t.throwsAsync(createImage(layout, [broken], { tag: 'one' }), { code: 'ENOENT' });
  t.is((await layout.image('one')).digest, digest);
  t.true(readdirSync(join(layout.path, 'blobs/sha256')).every((name) => /^[0-9a-f]{64}$/.test(name)));
  renameSync(join(dir, 'layer-one-0'), join(dir, 'again'));
  await t.throwsAsync(createImage(layout, [], { tag: 'a b' }), { code: 'ERR_INVALID_ARG_TYPE' });
  const config = { Cmd: 'sh' } as never;
  await t.throwsAsync(createImage(layout, [], { tag: 'one', config }), { message: /"config.Cmd"/ });
  await t.throwsAsync(createImage(layout, [], { tag: 'one', sourceDateEpoch: 1e15 }), { code: 'ERR_OUT_OF_RANGE' });
  t.is((await layout.image('one')).digest, digest);
});

test('calls at the same time make one layout', async (t) => {
  const dir = scratch(t);
  const layouts = await Promise.all(Array.from({ length: 20 }, () => createLayout(dir)));
  for (const layout of layouts) t.deepEqual(await layout.tags(), []);
  t.deepEqual(readdirSync(dir).sort(), ['blobs', 'index.json', 'oci-layout']);
});
