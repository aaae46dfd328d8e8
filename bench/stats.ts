/**
 * How long the program's own file I/O takes meanwhile: the 99th percentile of fs.promises.stat, in µs. A process of its
 * own that makes the same unmounts one after the other shows what of it is the machine's: CPUs that do the kernel's work.
 */
import { writeFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { mountOverlaySync, type OverlayMount } from 'overlayfs';
import { quantile } from './interleave.js';
import type { Peer } from './peer.js';
import { packageRoot } from './peers.js';
import type { Site } from './stage.js';

interface Pooled {
  umountInPool(target: string): Promise<number>;
}

const { umountInPool }: Pooled = createRequire(import.meta.url)(join(packageRoot(), 'build/Release/test_support.node'));

/** To be written back by each unmount. */
const DIRTY = Buffer.alloc(512 * 1024, 'x');
/** For each figure at least: the unmounts of one round are done in a few milliseconds. */
const SAMPLES = 100;

/**
 * One a millisecond, whether or not those before it are done: one after the other, the few that wait long would be
 * lost among the many that come after them.
 */
async function measureStats(path: string, end: Promise<unknown>): Promise<number[]> {
  const times: Promise<number>[] = [];
  const begin = (): void => {
    const start = performance.now();
    times.push(stat(path).then(() => (performance.now() - start) * 1000));
  };
  begin();
  const timer = setInterval(begin, 1);
  await end.finally(() => clearInterval(timer));
  return Promise.all(times);
}

/** Rounds, until there are samples enough. */
async function percentile(round: () => Promise<number[]>): Promise<number> {
  const times: number[] = [];
  while (times.length < SAMPLES) times.push(...(await round()));
  return quantile(times, 0.99);
}

type UnmountAll = (mounts: readonly OverlayMount[]) => Promise<unknown>;

export const unmountAll: UnmountAll = (mounts) => Promise.all(mounts.map((mount) => mount.unmount()));

export const unmountAllByPeer =
  (site: Site, peer: Peer): UnmountAll =>
  () =>
    peer.unmount(site.base, site.sets.length);

export const unmountAllInPool: UnmountAll = (mounts) =>
  Promise.all(
    mounts.map(async ({ target }) => {
      const errno = await umountInPool(String(target));
      if (errno !== 0) throw new Error(`umount2: errno ${errno}`);
    }),
  );

export function statsDuring(site: Site, unmount: UnmountAll): Promise<number> {
  return percentile(() => {
    const mounts = site.sets.map((set) => {
      const mount = mountOverlaySync(set);
      writeFileSync(join(set.target, 'dirty'), DIRTY);
      return mount;
    });
    return measureStats(site.base, unmount(mounts));
  });
}

export const statsIdle = (site: Site): Promise<number> =>
  percentile(() => measureStats(site.base, setTimeout(SAMPLES)));
