/** An image of nine layers, made of Debian's packages that are installed, as an OCI layout in a tar archive. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { lstatSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const packages = [
  ['base-files'],
  ['libc6'],
  ['dash', 'libselinux1', 'libpcre2-8-0'],
  ['coreutils', 'libacl1', 'libattr1', 'libgmp10'],
  ['findutils'],
  ['sed', 'grep'],
];

/** The entries of packages, but for their documentation. */
function filesOf(names: readonly string[]): string[] {
  const listed = execFileSync('dpkg', ['-L', ...names], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  return [...new Set(listed.split('\n'))].filter(
    (path) =>
      path.length > 2 &&
      path.startsWith('/') &&
      !/^\/(dev|proc|sys|run|tmp)\b|^\/usr\/share\/(doc|man|locale|lintian|info)/.test(path) &&
      lstatSync(path, { throwIfNoEntry: false }) !== undefined,
  );
}

/** Makes a layer of what a function writes into a directory. */
function ownLayer(dir: string, tar: string, write: (at: (path: string) => string) => void): void {
  const tree = join(dir, 'tree');
  mkdirSync(tree);
  write((path) => join(tree, path));
  execFileSync('tar', ['-C', tree, '-cf', tar, '.']);
  rmSync(tree, { recursive: true });
}

/** Three layers that change those below: new files, whiteouts, an opaque directory, other owners and links. */
const changes: readonly ((at: (path: string) => string) => void)[] = [
  (at) => {
    mkdirSync(at('srv/data/old'), { recursive: true });
    for (let i = 0; i < 200; i++) writeFileSync(at(`srv/data/old/file-${i}`), `${i}\n`.repeat(i));
    writeFileSync(at('srv/data/kept'), 'kept\n', { mode: 0o4711 });
    symlinkSync('data/kept', at('srv/link'));
  },
  (at) => {
    mkdirSync(at('srv/data/old'), { recursive: true });
    mkdirSync(at('usr/bin'), { recursive: true });
    writeFileSync(at('usr/bin/.wh.find'), '');
    writeFileSync(at('srv/data/old/.wh..wh..opq'), '');
    writeFileSync(at('srv/data/old/new'), 'new\n');
  },
  (at) => {
    mkdirSync(at('srv'));
    writeFileSync(at('srv/.wh.link'), '');
    mkdirSync(at('etc'));
    writeFileSync(at('etc/hostname'), 'image\n');
    for (const name of ['tmp', 'proc', 'sys', 'dev', 'run']) mkdirSync(at(name), { mode: 0o755 });
  },
];

/** Makes the image at this path. It is called `example.org/nine:1`. */
export function makeImage(dir: string, archive: string): void {
  const layout = join(dir, 'layout');
  mkdirSync(join(layout, 'blobs/sha256'), { recursive: true });
  const add = (bytes: Buffer, mediaType: string) => {
    const digest = createHash('sha256').update(bytes).digest('hex');
    writeFileSync(join(layout, 'blobs/sha256', digest), bytes);
    return { mediaType: `application/vnd.oci.image.${mediaType}+json`, digest: `sha256:${digest}`, size: bytes.length };
  };
  const tar = join(dir, 'layer.tar');
  const layers: { mediaType: string; digest: string; size: number }[] = [];
  const take = (): void => {
    const bytes = readFileSync(tar);
    const digest = createHash('sha256').update(bytes).digest('hex');
    renameSync(tar, join(layout, 'blobs/sha256', digest));
    layers.push({
      mediaType: 'application/vnd.oci.image.layer.v1.tar',
      digest: `sha256:${digest}`,
      size: bytes.length,
    });
  };
  for (const names of packages) {
    const input = filesOf(names)
      .map((path) => `${path.slice(1)}\n`)
      .join('');
    execFileSync('tar', ['-C', '/', '--no-recursion', '-cf', tar, '-T', '-'], { input });
    take();
  }
  for (const write of changes) {
    ownLayer(dir, tar, write);
    take();
  }
  const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
  const architecture = process.arch === 'x64' ? 'amd64' : process.arch;
  const config = {
    architecture,
    os: 'linux',
    config: { Env: ['PATH=/usr/bin:/bin'], Cmd: ['/bin/sh'] },
    rootfs: { type: 'layers', diff_ids: layers.map(({ digest }) => digest) },
  };
  const manifest = { schemaVersion: 2, config: add(json(config), 'config.v1'), layers };
  const found = add(json(manifest), 'manifest.v1');
  const annotations = { 'io.containerd.image.name': 'example.org/nine:1', 'org.opencontainers.image.ref.name': '1' };
  const platform = { architecture, os: 'linux' };
  writeFileSync(join(layout, 'oci-layout'), json({ imageLayoutVersion: '1.0.0' }));
  writeFileSync(
    join(layout, 'index.json'),
    json({ schemaVersion: 2, manifests: [{ ...found, platform, annotations }] }),
  );
  execFileSync('tar', ['-C', layout, '-cf', archive, '.']);
}
