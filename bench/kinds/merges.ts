/** Merges of small files, beside cp(1). */
import { execFileSync } from 'node:child_process';
import { closeSync, fsyncSync, mkdirSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { merge } from 'overlayfs/layers';
import { jobRow } from '../job.js';
import { atMost, type Kind } from '../kind.js';
import type { Site } from '../stage.js';

export const FILES = 10_000;
const FILES_EACH = 100;

const upperOf = ({ many }: Site): string => join(many, 'upper');
const targetOf = ({ many }: Site): string => join(many, 'target');

export function makeUpper(root: string, files: number): void {
  for (let i = 0; i < files; i++) {
    const directory = join(root, `d${Math.floor(i / FILES_EACH)}`);
    if (i % FILES_EACH === 0) mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, `file-${i}.js`), 'x'.repeat(500 + ((i * 7) % 3000)));
  }
}

/** The time of one merge, in ms, into an empty directory. */
async function around(site: Site, merge: () => unknown): Promise<number> {
  makeUpper(upperOf(site), site.share(FILES));
  mkdirSync(targetOf(site));
  // Writes earlier data to the disk, so that neither side pays for it.
  const directory = openSync(site.many, 'r');
  fsyncSync(directory);
  closeSync(directory);
  const start = performance.now();
  await merge();
  const time = performance.now() - start;
  for (const path of [upperOf(site), targetOf(site)]) rmSync(path, { recursive: true });
  return time;
}

function merges(mode: 'copy' | 'move', limit: number): Kind {
  return {
    what: `merge by ${mode}, ${FILES} files : cp -a`,
    ...jobRow,
    warmUpBlocks: 2,
    setUp: ({ many }) => {
      mkdirSync(many, { recursive: true });
      return () => rmSync(many, { recursive: true });
    },
    blocks: (site) => [
      () => around(site, () => merge(upperOf(site), { into: targetOf(site), move: mode === 'move', sync: 'none' })),
      () => around(site, () => execFileSync('cp', ['-a', `${upperOf(site)}/.`, targetOf(site)])),
    ],
    bound: () => atMost(limit),
  };
}

export const mergeKinds: readonly Kind[] = [merges('move', 0.3), merges('copy', 1)];
