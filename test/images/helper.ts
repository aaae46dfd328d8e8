/** Images for tests: layers of a few files, and one with programs that a container can run. */
import { execFileSync } from 'node:child_process';
import { chownSync, copyFileSync, existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { createImage, createLayout, type Image, type ImageConfig } from 'overlayfs/images';
import { type OwnerMaps, pack } from 'overlayfs/layers';
import { Snapshotter } from 'overlayfs/snapshots';
import { makeTree, native } from '../support/index.js';

const SYS_FS_CGROUP = '/sys/fs/cgroup';

export const hasProgram = (name: string): boolean =>
  ['/usr/bin', '/usr/sbin', '/bin', '/sbin'].some((dir) => existsSync(join(dir, name)));

/** crun refuses a machine with both versions of cgroups. */
export function coverCgroups(t: ExecutionContext): void {
  if (!existsSync(SYS_FS_CGROUP)) return;
  t.is(native.mount('none', SYS_FS_CGROUP, 'tmpfs', 0, ''), 0);
  t.teardown(() => native.umount(SYS_FS_CGROUP, 0));
}

const programFiles = new Map<string, readonly [path: string, ...libraries: string[]]>();

/** The path of a program, and those of all that it loads. */
function filesOf(name: string): readonly [path: string, ...libraries: string[]] {
  const known = programFiles.get(name);
  if (known !== undefined) return known;
  const path = execFileSync('which', [name], { encoding: 'utf8' }).trim();
  const found = [path, ...(execFileSync('ldd', [path], { encoding: 'utf8' }).match(/(?<=\s)\/\S+/g) ?? [])] as const;
  programFiles.set(name, found);
  return found;
}

/** Copies programs with all that they load. */
export function makePrograms(dir: string, names: readonly string[]): void {
  mkdirSync(join(dir, 'bin'), { recursive: true });
  for (const file of new Set(names.flatMap((name) => filesOf(name).slice(1)))) {
    mkdirSync(join(dir, dirname(file)), { recursive: true });
    copyFileSync(file, join(dir, file));
  }
  for (const name of names) copyFileSync(filesOf(name)[0], join(dir, 'bin', name));
}

export async function openSnapshotter(t: ExecutionContext, root: string): Promise<Snapshotter> {
  const snapshotter = await Snapshotter.open(root, { fsync: 'none' });
  t.teardown(() => snapshotter.close());
  return snapshotter;
}

/** An image of layers, each from a tree as `makeTree` takes it, or from a directory. */
export async function makeImage(
  dir: string,
  layers: readonly (Parameters<typeof makeTree>[1] | string)[],
  config: ImageConfig = {},
  tag = 'one',
  owners?: OwnerMaps,
): Promise<Image> {
  const layout = await createLayout(join(dir, 'layout'));
  const directories = layers.map((layer, i) => {
    if (typeof layer === 'string') return layer;
    const made = join(dir, `layer-${tag}-${i}`);
    makeTree(made, layer);
    return made;
  });
  const archives = directories.map((each, i) =>
    pack(each, { compression: i % 2 === 0 ? 'gzip' : 'none', ...(owners && { owners }) }),
  );
  return createImage(layout, archives, { tag, config });
}

/** An image with a shell and some programs, users and a file in a second layer. */
export async function makeProgramImage(dir: string, config: ImageConfig = {}): Promise<Image> {
  const base = join(dir, 'base');
  makePrograms(base, ['sh', 'cat', 'id', 'sleep', 'rm', 'ls', 'chmod']);
  makeTree(base, {
    'etc/passwd': 'root:x:0:0::/root:/bin/sh\nwww:x:33:34::/srv:/bin/sh\n7:x:0:0::/root:/bin/sh\n',
    'etc/group': 'root:x:0:\nwww:x:34:\nextra:x:44:www,root\nmore:x:45:\n8:x:0:\n',
    'tmp/': '',
  });
  const app = join(dir, 'app');
  makeTree(app, { 'srv/hello': 'hello\n' });
  for (const name of ['srv', 'srv/hello']) chownSync(join(app, name), 33, 34);
  return makeImage(dir, [base, app], config);
}
