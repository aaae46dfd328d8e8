/** A copy of a directory for one test: a view with its changes in memory, beside cp(1). */
import { execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlay } from 'overlayfs';
import { jobRow } from '../job.js';
import { atMost, type Kind } from '../kind.js';
import type { Site } from '../stage.js';
import { FILES, makeUpper } from './merges.js';

const fixtureOf = ({ many }: Site): string => join(many, 'fixture');
const copyOf = ({ many }: Site): string => join(many, 'copy');

/** The time in ms from nothing to a copy that is written to and gone again. */
async function around(use: () => unknown): Promise<number> {
  const start = performance.now();
  await use();
  return performance.now() - start;
}

export const copyKinds: readonly Kind[] = [
  {
    what: `temporary copy, ${FILES} files : cp -a, rm -r`,
    ...jobRow,
    warmUpBlocks: 2,
    setUp: (site) => {
      makeUpper(fixtureOf(site), site.share(FILES));
      return () => rmSync(site.many, { recursive: true });
    },
    blocks: (site) => [
      () =>
        around(async () => {
          const copy = await mountOverlay({ lowerdir: fixtureOf(site), temporary: true });
          writeFileSync(join(copy.path, 'd0/file-0.js'), 'changed');
          await copy.unmount();
        }),
      () =>
        around(() => {
          execFileSync('cp', ['-a', fixtureOf(site), copyOf(site)]);
          writeFileSync(join(copyOf(site), 'd0/file-0.js'), 'changed');
          rmSync(copyOf(site), { recursive: true });
        }),
    ],
    bound: () => atMost(0.1),
  },
];
