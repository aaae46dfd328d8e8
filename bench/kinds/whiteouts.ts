/** Whiteouts, many in one call. */
import { closeSync, fsyncSync, openSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { atMost, type Kind } from '../kind.js';
import { makeWhiteoutDirectories, whiteoutBatch } from '../ours.js';
import type { Site } from '../stage.js';

const WHITEOUTS = 10_000;
/** So many in a directory. */
const WHITEOUTS_EACH = 100;

export const whiteoutKinds: readonly Kind[] = [
  whiteouts('mknod', (fileSystem) => (fileSystem === 'ext4' ? atMost(0.6) : undefined)),
  // How far sharing an inode can go.
  whiteouts('link', () => undefined),
];

function clearAway(directory: string): void {
  rmSync(directory, { recursive: true });
  // So that no batch pays for the removal of the one before it.
  const parent = openSync(dirname(directory), 'r');
  fsyncSync(parent);
  closeSync(parent);
}

function whiteouts(by: 'mknod' | 'link', bound: Kind['bound']): Kind {
  const around = async (site: Site, make: () => number | Promise<number>) => {
    makeWhiteoutDirectories(site.whiteouts, site.share(WHITEOUTS), WHITEOUTS_EACH);
    const time = await make();
    clearAway(site.whiteouts);
    return time / 1000;
  };
  return {
    what: `${WHITEOUTS} whiteouts : C ${by}(2)`,
    unit: 'ms',
    ratio: 'ours / peer',
    waits: false,
    warmUpBlocks: 2,
    blocks: (site, { c }) => [
      () => around(site, () => whiteoutBatch(site.whiteouts, site.share(WHITEOUTS), WHITEOUTS_EACH)),
      () => around(site, () => c.whiteouts(by, site.whiteouts, site.share(WHITEOUTS), WHITEOUTS_EACH)),
    ],
    bound,
  };
}
