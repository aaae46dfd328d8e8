/** The cost of what is on the disk at the end, beside `sync: 'none'` and beside containerd. */
import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { merge } from 'overlayfs/layers';
import { Snapshotter } from 'overlayfs/snapshots';
import { jobRow, timed } from '../job.js';
import type { BlockKind, Kind } from '../kind.js';
import type { Site } from '../stage.js';
import { ours, prepare, theirs, FILES as UNPACKED } from './images.js';
import { FILES as MERGED, makeUpper } from './merges.js';

const COMMITTED = 1000;

type Work = (site: Site, directory: string, sync: 'end' | 'none') => Promise<number>;

async function mergeUpper(site: Site, directory: string, mode: 'copy' | 'move', sync: 'end' | 'none'): Promise<number> {
  const [upper, target] = [join(directory, 'upper'), join(directory, 'target')];
  makeUpper(upper, site.share(MERGED));
  mkdirSync(target);
  execFileSync('sync', ['-f', directory]);
  return timed(() => merge(upper, { into: target, move: mode === 'move', sync }));
}

/** The files are written between the two verbs, and do not count. */
async function commit(site: Site, directory: string, sync: 'end' | 'none'): Promise<number> {
  const snapshotter = await Snapshotter.open(join(directory, 'root'), { fsync: sync === 'end' ? 'all' : 'none' });
  try {
    let mount: string | undefined;
    const prepared = await timed(async () => {
      mount = (await snapshotter.prepare('key'))[0]?.source;
    });
    makeUpper(mount as string, site.share(COMMITTED));
    return prepared + (await timed(() => snapshotter.commit('key', { name: 'name' })));
  } finally {
    await snapshotter.close();
  }
}

const kind = (what: string, blocks: BlockKind['blocks'], more: Partial<BlockKind> = {}): Kind => ({
  what: `sync: ${what}`,
  ...jobRow,
  warmUpBlocks: 1,
  on: ['ext4'],
  blocks,
  bound: () => undefined,
  ...more,
});

const besideNone = (what: string, work: Work): Kind =>
  kind(`${what} : none`, (site) => [
    () => site.onNew((directory) => work(site, directory, 'end')),
    () => site.onNew((directory) => work(site, directory, 'none')),
  ]);

const unpackImage: Work = async (site, directory, sync) => {
  await prepare(site);
  return ours(site, directory, sync);
};

export const syncKinds: readonly Kind[] = [
  besideNone(`prepare, ${COMMITTED} files, commit`, commit),
  besideNone(`merge ${MERGED} by move`, (site, directory, sync) => mergeUpper(site, directory, 'move', sync)),
  besideNone(`merge ${MERGED} by copy`, (site, directory, sync) => mergeUpper(site, directory, 'copy', sync)),
  besideNone(`unpack ${UNPACKED}`, unpackImage),
  kind(
    `unpack ${UNPACKED} : ctr, syncfs`,
    (site) => [
      () => site.onNew((directory) => unpackImage(site, directory, 'end')),
      () => site.onNew((directory) => theirs(site, directory, true)),
    ],
    { needs: 'ctr' },
  ),
];
