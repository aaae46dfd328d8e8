/** Among a great many mounts. */
import { join } from 'node:path';
import { atLeast, atMost, type BlockKind, type Kind } from '../kind.js';
import { finding, listing, ManyMounts, programListing } from '../ours.js';

const MOUNTS = 10_000;
const FEW_MOUNTS = 100;

export const manyKinds: readonly Kind[] = [
  amongMany({
    what: `${MOUNTS} mounts listed : C`,
    unit: 'ms',
    ratio: 'ours / peer',
    warmUpBlocks: 20,
    blocks: (_, { c }) => [() => listing() / 1000, async () => (await c.table()) / 1000],
    bound: () => atMost(2),
  }),
  amongMany({
    what: `${MOUNTS} mounts listed : findmnt -J`,
    unit: 'ms',
    ratio: 'peer / ours',
    warmUpBlocks: 20,
    blocks: () => [() => listing() / 1000, async () => (await programListing()) / 1000],
    bound: () => atLeast(20),
  }),
  amongMany({
    what: `one of ${MOUNTS} found : C, all`,
    unit: 'µs',
    ratio: 'ours / peer',
    warmUpBlocks: 3,
    blocks: (site, { c }) => [() => finding(join(site.many, `${site.share(500)}`), 1000), () => c.table()],
    bound: () => atMost(15, 'ours'),
  }),
  found(1000),
  found(MOUNTS),
];

/** Returns true if one mount takes longer to find among many than among few. */
function found(count: number): Kind {
  return {
    what: `found among ${count} : ${FEW_MOUNTS}`,
    unit: 'µs',
    ratio: 'ours / peer',
    waits: false,
    on: ['tmpfs'],
    setUp:
      ({ many }) =>
      () =>
        new ManyMounts(many).remove(),
    warmUpBlocks: 0, // the compiled code is the same for both sides
    blocks: ({ many, share }) => {
      const mounts = new ManyMounts(many);
      const among = async (present: number) => {
        await mounts.become(share(present));
        return finding(join(many, String(share(FEW_MOUNTS) - 1)), 1000);
      };
      return [() => among(count), () => among(FEW_MOUNTS)];
    },
    bound: () => atMost(1.25),
  };
}

function amongMany(kind: Omit<BlockKind, 'waits' | 'on' | 'setUp'>): Kind {
  return { ...kind, waits: false, on: ['tmpfs'], setUp: ({ many, share }) => manyMounts(many, share(MOUNTS)) };
}

function manyMounts(directory: string, count: number): () => void {
  const mounts = new ManyMounts(directory);
  mounts.grow(count);
  return () => mounts.remove();
}
