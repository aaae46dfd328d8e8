/** An image of very many files, unpacked into snapshots, beside containerd's import into its native snapshotter. */
import { execFile, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createImage, createLayout, openLayout, unpack } from 'overlayfs/images';
import { createLayer } from 'overlayfs/layers';
import { Snapshotter } from 'overlayfs/snapshots';
import { atMost, type Kind } from '../kind.js';
import type { Site } from '../stage.js';

const DIRECTORIES = 600;
const FILES_EACH = 100;

const layoutOf = ({ sources }: Site): string => join(sources, 'many-files-layout');
const archiveOf = (site: Site): string => `${layoutOf(site)}.tar`;

/** Makes the image once: all rows read it. */
async function prepare(site: Site): Promise<void> {
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
  await createImage(layout, [createLayer(source, { compression: 'none' })], { tag: 'many' });
  execFileSync('tar', ['-C', layoutOf(site), '-cf', archiveOf(site), '.']);
}

async function timed(action: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await action();
  return performance.now() - start;
}

async function ours(site: Site, directory: string): Promise<number> {
  const snapshotter = await Snapshotter.open(join(directory, 'root'));
  const image = await (await openLayout(layoutOf(site))).image('many');
  const took = await timed(() => unpack(image, snapshotter));
  await snapshotter.close();
  return took;
}

/** containerd does not count until it is ready. */
async function theirs(site: Site, directory: string): Promise<number> {
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
    return await timed(() => promisify(execFile)('ctr', args));
  } finally {
    daemon.kill();
    await ended;
  }
}

export const imageKinds: readonly Kind[] = [
  {
    what: `unpack, ${DIRECTORIES * FILES_EACH} files : ctr import`,
    unit: 'ms',
    ratio: 'ours / peer',
    waits: false,
    spreads: true,
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
