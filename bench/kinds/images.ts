/** An image of very many files, unpacked into snapshots, beside containerd's import into its native snapshotter. */
import { execFile, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createImage, createLayout, openLayout, unpack } from 'overlayfs/images';
import { pack } from 'overlayfs/layers';
import { Snapshotter } from 'overlayfs/snapshots';
import { jobRow, timed } from '../job.js';
import { atMost, type Kind } from '../kind.js';
import type { Site } from '../stage.js';

export const FILES = 60_000;
const DIRECTORIES = 600;
const FILES_EACH = FILES / DIRECTORIES;

const layoutOf = ({ sources }: Site): string => join(sources, 'many-files-layout');
const archiveOf = (site: Site): string => `${layoutOf(site)}.tar`;

/** Makes the image once: all rows read it. */
export async function prepare(site: Site): Promise<void> {
  if (existsSync(archiveOf(site))) return;
  const source = join(site.sources, 'many-files');
  for (let i = 0; i < site.share(DIRECTORIES); i++) {
    const directory = join(source, `d${i % 20}`, `e${i}`);
    mkdirSync(directory, { recursive: true });
    for (let file = 0; file < FILES_EACH; file++) {
      writeFileSync(join(directory, `file-${file}`), `${i} ${file} `.repeat(1 + ((i * 31 + file * 7) % 300)));
    }
  }
  const layout = await createLayout(layoutOf(site));
  await createImage(layout, [pack(source, { compression: 'none' })], { tag: 'many' });
  execFileSync('tar', ['-C', layoutOf(site), '-cf', archiveOf(site), '.']);
}

export async function ours(site: Site, directory: string, sync: 'end' | 'none' = 'end'): Promise<number> {
  const snapshotter = await Snapshotter.open(join(directory, 'root'));
  const image = await (await openLayout(layoutOf(site))).image('many');
  const took = await timed(() => unpack(image, snapshotter, { sync }));
  await snapshotter.close();
  return took;
}

/** containerd does not count until it is ready. Its files are synced as its later versions do it: by one syncfs(2). */
export async function theirs(site: Site, directory: string, syncs = false): Promise<number> {
  const at = (name: string): string => join(directory, name);
  const address = at('containerd.sock');
  const config = `version = 2
root = "${at('root')}"
state = "${at('state')}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "${address}"
[ttrpc]
  address = "${at('ttrpc.sock')}"
`;
  writeFileSync(at('config.toml'), config);
  const daemon = spawn('containerd', ['--config', at('config.toml'), '--log-level', 'error'], { stdio: 'ignore' });
  const ended = once(daemon, 'exit');
  try {
    while (spawnSync('ctr', ['--address', address, 'version']).status !== 0) {
      if (daemon.exitCode !== null) throw new Error('containerd does not start');
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    const args = ['--address', address, 'image', 'import', '--snapshotter', 'native', '--digests', archiveOf(site)];
    return await timed(async () => {
      await promisify(execFile)('ctr', args);
      if (syncs) await promisify(execFile)('sync', ['-f', directory]);
    });
  } finally {
    daemon.kill();
    await ended;
  }
}

export const imageKinds: readonly Kind[] = [
  {
    what: `unpack, ${FILES} files : ctr import`,
    ...jobRow,
    warmUpBlocks: 1,
    on: ['ext4'],
    needs: 'ctr',
    blocks(site) {
      const made = prepare(site);
      return [
        async () => {
          await made;
          return site.onNew((directory) => ours(site, directory));
        },
        async () => {
          await made;
          return site.onNew((directory) => theirs(site, directory));
        },
      ];
    },
    bound: () => atMost(1),
  },
];
