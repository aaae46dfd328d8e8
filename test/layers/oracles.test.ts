/** An image of several layers, made of Debian's packages: the same tree by every program that unpacks it. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { ExecutionContext } from 'ava';
import { mountOverlay } from 'overlayfs';
import { apply, pack } from 'overlayfs/layers';
import { startContainerd } from '../support/containerd.js';
import { kernelTest, scratch, setAttribute } from '../support/index.js';
import { isLong } from '../support/scale.js';
import { type Described, describeTree, type Tree } from '../support/trees.js';
import { readArchive } from '../tar/archives.js';

const packages = [
  ['base-files', 'passwd', 'iputils-ping', 'hostname'],
  ['dash', 'libattr1', 'netbase'],
  ['tzdata', 'adduser'],
];

function download(dir: string, names: readonly string[]): string[] {
  mkdirSync(dir);
  execFileSync('apt-get', ['download', '-qq', ...names], { cwd: dir, stdio: 'ignore' });
  return readdirSync(dir).map((name) => join(dir, name));
}

/** Changes what the packages alone would not: deletes, replacements, links, attributes, modes. */
function change(root: string, layer: number): void {
  const at = (path: string): string => join(root, path);
  if (layer === 1) {
    rmSync(at('usr/share/doc'), { recursive: true });
    rmSync(at('usr/share/man'), { recursive: true });
    mkdirSync(at('usr/share/man/own'), { recursive: true });
    writeFileSync(at('usr/share/man/own/page'), 'page');
    chmodSync(at('bin/hostname'), 0o700);
    linkSync(at('bin/dash'), at('bin/second'));
    symlinkSync('/etc/passwd', at('etc/absolute'));
  } else if (layer === 2) {
    rmSync(at('bin/dash'));
    mkdirSync(at('usr/share/doc'), { recursive: true });
    writeFileSync(at('usr/share/doc/new'), 'new');
    renameSync(at('etc/protocols'), at('etc/renamed'));
    rmSync(at('etc/absolute'));
    mkdirSync(at('etc/absolute'));
    setAttribute(at('etc/issue'), 'user.comment', 'x');
    chmodSync(at('usr/share/man'), 0o2750);
    utimesSync(at('etc/issue'), 1.5, 1_600_000_000.123);
  }
}

async function collect(stream: AsyncIterable<unknown>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** The layers, and the tree that they make. */
async function makeImage(dir: string): Promise<{ layers: Buffer[]; wanted: Tree }> {
  const uppers: string[] = [];
  const layers: Buffer[] = [];
  let wanted: Tree = {};
  for (const [i, names] of packages.entries()) {
    const upper = join(dir, `upper${i}`);
    for (const path of [upper, join(dir, `work${i}`)]) mkdirSync(path);
    const debs = download(join(dir, `debs${i}`), names);
    const unpack = (root: string): void => {
      for (const deb of debs) execFileSync('dpkg-deb', ['-x', deb, root]);
      change(root, i);
    };
    if (i === 0) {
      unpack(upper);
      layers.push(await collect(pack(upper, { layout: 'plain' })));
    } else {
      const target = join(dir, 'merged');
      mkdirSync(target, { recursive: true });
      const mount = await mountOverlay({ lowerdir: uppers, upperdir: upper, workdir: join(dir, `work${i}`), target });
      unpack(target);
      wanted = describeTree(target);
      await mount.unmount();
      layers.push(await collect(pack({ upperdir: upper, lowerdir: uppers })));
    }
    uppers.unshift(upper);
  }
  return { layers, wanted };
}

/** Writes the image as a layout of OCI. */
function writeLayout(layout: string, layers: readonly Buffer[]): void {
  mkdirSync(join(layout, 'blobs/sha256'), { recursive: true });
  const digestOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
  const put = (bytes: Uint8Array, type: string): object => {
    writeFileSync(join(layout, 'blobs/sha256', digestOf(bytes)), bytes);
    const mediaType = `application/vnd.oci.image.${type}`;
    return { mediaType, digest: `sha256:${digestOf(bytes)}`, size: bytes.length };
  };
  const json = (value: object): Buffer => Buffer.from(JSON.stringify(value));
  const rootfs = { type: 'layers', diff_ids: layers.map((layer) => `sha256:${digestOf(layer)}`) };
  const config = put(json({ architecture: 'amd64', os: 'linux', config: {}, rootfs }), 'config.v1+json');
  const blobs = layers.map((layer) => put(gzipSync(layer), 'layer.v1.tar+gzip'));
  const mediaType = 'application/vnd.oci.image.manifest.v1+json';
  const manifest = put(json({ schemaVersion: 2, mediaType, config, layers: blobs }), 'manifest.v1+json');
  const annotations = { 'org.opencontainers.image.ref.name': 'image' };
  const index = { schemaVersion: 2, manifests: [{ ...manifest, annotations }] };
  writeFileSync(join(layout, 'index.json'), json(index));
  writeFileSync(join(layout, 'oci-layout'), json({ imageLayoutVersion: '1.0.0' }));
}

/** GNU tar knows no whiteouts: they are carried out before each layer. */
function unpackByTar(root: string, layers: readonly Buffer[], dir: string): void {
  mkdirSync(root);
  for (const layer of layers) {
    const entries = readArchive(layer);
    for (const { entry } of entries) {
      const [, above = '', name = ''] = /^(.*?)([^/]*)$/.exec(entry.name.replace(/\/$/, '')) ?? [];
      if (name === '.wh..wh..opq') {
        for (const inside of readdirSync(join(root, above))) rmSync(join(root, above, inside), { recursive: true });
      } else if (name.startsWith('.wh.')) rmSync(join(root, above, name.slice(4)), { recursive: true, force: true });
    }
    const archive = join(dir, 'layer.tar');
    writeFileSync(archive, layer);
    const args = ['-x', '-p', '--numeric-owner', '--xattrs', '--xattrs-include=*', '--exclude=.wh.*', '-f', archive];
    execFileSync('tar', [...args, '-C', root]);
  }
}

/** The properties that differ, and an example. */
function differences(wanted: Tree, got: Tree): Record<string, string> {
  const found: Record<string, string> = {};
  for (const path of new Set([...Object.keys(wanted), ...Object.keys(got)])) {
    const [a, b] = [wanted[path], got[path]];
    if (a === undefined || b === undefined) found[a === undefined ? 'more' : 'missing'] ??= path;
    else {
      for (const key of Object.keys({ ...a, ...b }) as (keyof Described)[]) {
        const text = (value: unknown): string =>
          JSON.stringify(value, (_, part) => (typeof part === 'bigint' ? String(part) : part)) ?? '';
        if (text(a[key]) !== text(b[key])) found[key] ??= `${path}: ${text(a[key])}, not ${text(b[key])}`;
      }
    }
  }
  return found;
}

const programs = ['apt-get', 'dpkg-deb', 'umoci', 'ctr', 'containerd'];
const lacks = programs.filter((name) => !process.env['PATH']?.split(':').some((dir) => existsSync(join(dir, name))));
const title = 'an image of Debian packages by us, GNU tar, umoci and containerd: the same tree';

if (!isLong || lacks.length > 0) {
  kernelTest(`${title} (in the long form, with these programs)`, (t) => {
    t.pass();
  });
} else {
  kernelTest(title, async (t: ExecutionContext) => {
    t.timeout(300_000);
    const dir = scratch(t, 'disk');
    const { layers, wanted } = await makeImage(dir);
    t.true(Object.keys(wanted).length > 500);
    const results: Record<string, Record<string, string>> = {};
    const compare = (program: string, root: string): void => {
      results[program] = differences(wanted, describeTree(root));
    };

    const plain = join(dir, 'plain');
    for (const layer of layers) await apply(layer, plain, { layout: 'plain' });
    compare('apply, plain', plain);

    const unpacked: string[] = [];
    for (const [i, layer] of layers.entries()) {
      await apply(layer, join(dir, `layer${i}`), { lowerdir: [...unpacked] });
      unpacked.unshift(join(dir, `layer${i}`));
    }
    const mount = await mountOverlay({ lowerdir: unpacked, target: join(dir, 'merged') });
    compare('apply, mounted', join(dir, 'merged'));
    await mount.unmount();

    unpackByTar(join(dir, 'tar'), layers, dir);
    compare('GNU tar', join(dir, 'tar'));

    const layout = join(dir, 'layout');
    writeLayout(layout, layers);
    execFileSync('umoci', ['raw', 'unpack', '--image', `${layout}:image`, join(dir, 'umoci')], { stdio: 'pipe' });
    compare('umoci', join(dir, 'umoci'));

    const archive = join(dir, 'image.tar');
    execFileSync('tar', ['-C', layout, '-cf', archive, '.']);
    const { root, ctr } = await startContainerd(t, join(dir, 'containerd'));
    ctr('images', 'import', '--snapshotter', 'native', '--base-name', 'example.org/image', archive);
    const snapshots = join(root, 'io.containerd.snapshotter.v1.native/snapshots');
    const top = readdirSync(snapshots).sort((a, b) => Number(b) - Number(a))[0] as string;
    // Its native snapshotter copies the layers below, and directories get the time of the copy.
    const copied = Object.entries(describeTree(join(snapshots, top))).map(([path, found]) => {
      const { mtime } = found.type === 'directory' ? (wanted[path] ?? found) : found;
      return [path, { ...found, mtime }];
    });
    results['containerd'] = differences(wanted, Object.fromEntries(copied));

    for (const [program, found] of Object.entries(results)) t.deepEqual(found, {}, program);
    t.is(Object.keys(results).length, 5);
  });
}
