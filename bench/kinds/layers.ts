/** Walks of layers: their changes, and the space that they take. */
import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { changes } from 'overlayfs/layers';
import { jobRow, timed } from '../job.js';
import { atMost, type Kind } from '../kind.js';
import type { Site } from '../stage.js';

const DIRECTORIES = 18_000;
const FILES_EACH = 10;
const AROUND = 180;
const EDITS = 100;

const directoryOf = (root: string, i: number): string => join(root, `d${i % AROUND}`, `e${i}`);

/** 198,180 entries. The files have a size and no blocks. */
function makeTree(root: string, directories: number): void {
  for (let i = 0; i < directories; i++) {
    const directory = directoryOf(root, i);
    mkdirSync(directory, { recursive: true });
    for (let j = 0; j < FILES_EACH; j++) {
      const path = join(directory, `file-${j}.js`);
      writeFileSync(path, '');
      truncateSync(path, 1);
    }
  }
}

const largeOf = ({ many }: Site): string => join(many, 'large');
const emptyOf = ({ many }: Site): string => join(many, 'empty');
const editsOf = ({ many }: Site): string => join(many, 'edits');

function setUp(site: Site): () => void {
  mkdirSync(emptyOf(site), { recursive: true });
  makeTree(largeOf(site), site.share(DIRECTORIES));
  for (let i = 0; i < site.share(EDITS); i++) {
    const directory = directoryOf(editsOf(site), i * 97);
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, 'file-1.js'), 'changed');
  }
  return () => rmSync(site.many, { recursive: true });
}

async function count(found: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of found);
}

const common = { ...jobRow, warmUpBlocks: 3, setUp } as const;

export const layerKinds: readonly Kind[] = [
  {
    what: 'changes, 198,180 entries : C walk',
    ...common,
    blocks: (site, { c }) => [
      () => timed(() => count(changes({ upperdir: largeOf(site), lowerdir: emptyOf(site) }))),
      async () => (await c.walk(largeOf(site))) / 1000,
    ],
    bound: () => atMost(1.3),
  },
  {
    what: 'changes, 100 edits in 198,180 : C walk of the edits',
    ...common,
    warmUpBlocks: 10,
    blocks: (site, { c }) => [
      () => timed(() => count(changes({ upperdir: editsOf(site), lowerdir: largeOf(site) }))),
      async () => (await c.walk(editsOf(site))) / 1000,
    ],
    bound: () => atMost(5, 'ours'),
  },
];
