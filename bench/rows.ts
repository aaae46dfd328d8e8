/** What is measured, one row each, and the bounds that hold for it. */
import { closeSync, fsyncSync, openSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { mountOverlaySync } from 'overlayfs';
import { type Block, type Comparison, type Effort, interleave } from './interleave.js';
import {
  asyncPairs,
  finding,
  layeredPair,
  listing,
  ManyMounts,
  makeLayers,
  makeWhiteoutDirectories,
  mappedPairs,
  pairsAtOnce,
  programListing,
  programPairs,
  programStarts,
  refusal,
  rootlessPairs,
  startInside,
  startOutside,
  syncPairs,
  whiteoutBatch,
} from './ours.js';
import type { Peer } from './peer.js';
import { type FileSystem, SET_COUNT, type Site, type Stage } from './stage.js';
import { statsDuring, statsIdle, unmountAll, unmountAllByPeer, unmountAllInPool } from './stats.js';

export interface Bound {
  readonly of: 'ratio' | 'difference' | 'ours';
  readonly is: 'at most' | 'at least';
  readonly limit: number;
}

/** One kind of measurement, made on each file system, and with the other CPU idle and busy. */
export interface Kind {
  readonly what: string;
  readonly unit: 'µs' | 'pairs/s' | 'ms';
  /** What the ratio says. */
  readonly ratio: 'ours / peer' | 'peer / ours';
  /** Whether the unmounts' waits, which depend on the other CPU, are in it. */
  readonly waits: boolean;
  /** Where it is measured, when not on all. */
  readonly on?: readonly FileSystem[];
  /** Whether both sides may use the other CPU too. */
  readonly spreads?: boolean;
  /** Makes what has to be there meanwhile, and returns what takes it away. */
  readonly setUp?: (site: Site) => () => void;
  /** Uncounted blocks of ours, until everything is compiled. */
  readonly warmUpBlocks: number;
  readonly blocks: (site: Site, peer: Peer) => [ours: Block, peer: Block];
  readonly bound: (fileSystem: FileSystem, spinner: boolean) => Bound | undefined;
}

export interface Row {
  readonly kind: Kind;
  readonly fileSystem: FileSystem;
  readonly spinner: boolean;
}

export interface Result extends Comparison {
  readonly bound: Bound | undefined;
  readonly isOver: boolean;
}

const PAIRS = 150;
const PROGRAM_PAIRS = 20;
const TIMES_AT_ONCE = 4;
const WARM_UP_PAIRS = 3000;
const MOUNTS = 10_000;
const FEW_MOUNTS = 100;
const LAYERS = 500;
const WHITEOUTS = 10_000;
/** So many in a directory. */
const WHITEOUTS_EACH = 100;

const perSecond = (pairs: number, microseconds: number): number => (pairs / microseconds) * 1e6;

function clearAway(directory: string): void {
  rmSync(directory, { recursive: true });
  // So that no batch pays for the removal of the one before it.
  const parent = openSync(dirname(directory), 'r');
  fsyncSync(parent);
  closeSync(parent);
}

const firstSet = (site: Site) => {
  const [set] = site.sets;
  if (set === undefined) throw new Error('no layer set');
  return set;
};

const kinds: readonly Kind[] = [
  {
    what: 'sync : C',
    unit: 'µs',
    ratio: 'ours / peer',
    waits: true,
    warmUpBlocks: WARM_UP_PAIRS / PAIRS,
    blocks: (site, peer) => [
      () => syncPairs(firstSet(site), PAIRS),
      async () => (await peer.sync(site.base, 1, PAIRS)).median,
    ],
    bound: (fileSystem, spinner) => {
      if (fileSystem !== 'tmpfs') return undefined;
      return spinner ? { of: 'ratio', is: 'at most', limit: 1.1 } : { of: 'difference', is: 'at most', limit: 8 };
    },
  },
  {
    what: 'async, in turn : C handed over',
    unit: 'µs',
    ratio: 'ours / peer',
    waits: true,
    warmUpBlocks: WARM_UP_PAIRS / PAIRS,
    blocks: (site, peer) => [
      () => asyncPairs(firstSet(site), PAIRS),
      async () => (await peer.handover(site.base, 1, PAIRS)).median,
    ],
    bound: (fileSystem, spinner) =>
      fileSystem === 'tmpfs' && spinner ? { of: 'ratio', is: 'at most', limit: 1.25 } : undefined,
  },
  {
    what: `async, ${SET_COUNT} at once : C`,
    unit: 'pairs/s',
    ratio: 'ours / peer',
    waits: true,
    spreads: true,
    warmUpBlocks: Math.ceil(WARM_UP_PAIRS / (SET_COUNT * TIMES_AT_ONCE)),
    blocks: (site, peer) => {
      const pairs = SET_COUNT * TIMES_AT_ONCE;
      return [
        async () => perSecond(pairs, await pairsAtOnce(site.sets, TIMES_AT_ONCE)),
        async () => perSecond(pairs, (await peer.sync(site.base, SET_COUNT, pairs)).total),
      ];
    },
    bound: (_, spinner) => (spinner ? { of: 'ratio', is: 'at least', limit: 1.3 } : undefined),
  },
  {
    what: 'sync : programs',
    unit: 'µs',
    ratio: 'peer / ours',
    waits: true,
    warmUpBlocks: WARM_UP_PAIRS / PAIRS,
    blocks: (site) => [() => syncPairs(firstSet(site), PAIRS), () => programPairs(firstSet(site), PROGRAM_PAIRS)],
    bound: () => ({ of: 'ratio', is: 'at least', limit: 15 }),
  },
  stats('idle', () => ({ of: 'ratio', is: 'at most', limit: 2 })),
  stats('in the pool', () => undefined),
  stats('C, in turn', () => undefined),
  rootless(true, 1.3),
  rootless('keep', undefined),
  {
    what: 'idmap : without',
    unit: 'µs',
    ratio: 'ours / peer',
    waits: true,
    warmUpBlocks: WARM_UP_PAIRS / PAIRS,
    blocks: (site) => [() => mappedPairs(firstSet(site), PAIRS), () => syncPairs(firstSet(site), PAIRS)],
    bound: () => undefined,
  },
  {
    what: 'spawn : child_process.spawn',
    unit: 'µs',
    ratio: 'ours / peer',
    waits: false,
    warmUpBlocks: 2,
    blocks: (site) => {
      const { target, ...layers } = firstSet(site);
      return [
        async () => {
          const mount = mountOverlaySync({ ...layers, rootless: true });
          const time = await programStarts(() => startInside(mount, target), PROGRAM_PAIRS);
          mount.unmountSync();
          return time;
        },
        () => programStarts(() => startOutside(target), PROGRAM_PAIRS),
      ];
    },
    bound: () => undefined,
  },
  {
    what: `refused, ${LAYERS} layers : mounted`,
    unit: 'ms',
    ratio: 'ours / peer',
    waits: false,
    on: ['tmpfs'],
    setUp: (site) => makeLayers(site.many, LAYERS),
    warmUpBlocks: 5,
    blocks: (site) => [() => refusal(site.many, LAYERS) / 1000, () => layeredPair(site.many, LAYERS) / 1000],
    bound: () => ({ of: 'ours', is: 'at most', limit: 20 }),
  },
  whiteouts('mknod', (fileSystem) => (fileSystem === 'ext4' ? { of: 'ratio', is: 'at most', limit: 0.6 } : undefined)),
  // How far sharing an inode can go.
  whiteouts('link', () => undefined),
  amongMany({
    what: `${MOUNTS} mounts listed : C`,
    unit: 'ms',
    ratio: 'ours / peer',
    warmUpBlocks: 20,
    blocks: (_, peer) => [() => listing() / 1000, async () => (await peer.table()) / 1000],
    bound: () => ({ of: 'ratio', is: 'at most', limit: 2 }),
  }),
  amongMany({
    what: `${MOUNTS} mounts listed : findmnt -J`,
    unit: 'ms',
    ratio: 'peer / ours',
    warmUpBlocks: 20,
    blocks: () => [() => listing() / 1000, async () => (await programListing()) / 1000],
    bound: () => ({ of: 'ratio', is: 'at least', limit: 20 }),
  }),
  amongMany({
    what: `one of ${MOUNTS} found : C, all`,
    unit: 'µs',
    ratio: 'ours / peer',
    warmUpBlocks: 3,
    blocks: (site, peer) => [() => finding(join(site.many, '500'), 1000), () => peer.table()],
    bound: () => ({ of: 'ours', is: 'at most', limit: 15 }),
  }),
  found(1000),
  found(MOUNTS),
];

/** Whether one mount takes longer to find among many than among few. */
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
    warmUpBlocks: 0, // what is compiled is the same for both sides
    blocks: ({ many }) => {
      const mounts = new ManyMounts(many);
      const among = async (present: number) => {
        await mounts.become(present);
        return finding(join(many, String(FEW_MOUNTS - 1)), 1000);
      };
      return [() => among(count), () => among(FEW_MOUNTS)];
    },
    bound: () => ({ of: 'ratio', is: 'at most', limit: 1.25 }),
  };
}

/** The program's own file I/O while the unmounts of overlays with much to write back are under way. */
function stats(beside: 'idle' | 'in the pool' | 'C, in turn', bound: Kind['bound']): Kind {
  const besides = {
    idle: statsIdle,
    'in the pool': (site: Site) => statsDuring(site, unmountAllInPool),
    'C, in turn': (site: Site, peer: Peer) => statsDuring(site, unmountAllByPeer(site, peer)),
  };
  return {
    what: `stat, ${SET_COUNT} unmounts : ${beside}`,
    unit: 'µs',
    ratio: 'ours / peer',
    waits: false,
    on: ['ext4'],
    spreads: true,
    warmUpBlocks: 3,
    blocks: (site, peer) => [() => statsDuring(site, unmountAll), () => besides[beside](site, peer)],
    bound,
  };
}

function amongMany(kind: Omit<Kind, 'waits' | 'on' | 'setUp'>): Kind {
  return { ...kind, waits: false, on: ['tmpfs'], setUp: ({ many }) => manyMounts(many, MOUNTS) };
}

function manyMounts(directory: string, count: number): () => void {
  const mounts = new ManyMounts(directory);
  mounts.grow(count);
  return () => mounts.remove();
}

function rootless(mode: true | 'keep', limit: number | undefined): Kind {
  return {
    what: mode === true ? 'rootless : C clone(2)' : "rootless: 'keep' : C clone(2)",
    unit: 'µs',
    ratio: 'ours / peer',
    waits: true,
    warmUpBlocks: WARM_UP_PAIRS / PAIRS,
    blocks: (site, peer) => [
      () => rootlessPairs(firstSet(site), mode, PAIRS),
      async () => (await peer.rootless(site.base, 1, PAIRS)).median,
    ],
    bound: () => (limit === undefined ? undefined : { of: 'ratio', is: 'at most', limit }),
  };
}

function whiteouts(by: 'mknod' | 'link', bound: Kind['bound']): Kind {
  const around = async (site: Site, make: () => number | Promise<number>) => {
    makeWhiteoutDirectories(site.whiteouts, WHITEOUTS, WHITEOUTS_EACH);
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
    blocks: (site, peer) => [
      () => around(site, () => whiteoutBatch(site.whiteouts, WHITEOUTS, WHITEOUTS_EACH)),
      () => around(site, () => peer.whiteouts(by, site.whiteouts, WHITEOUTS, WHITEOUTS_EACH)),
    ],
    bound,
  };
}

export const rows: readonly Row[] = kinds.flatMap((kind) =>
  (kind.on ?? (['tmpfs', 'ext4'] as const)).flatMap((fileSystem) =>
    (kind.waits ? [false, true] : [false]).map((spinner) => ({ kind, fileSystem, spinner })),
  ),
);

const warm = new Set<Kind>();

/** Measures a row, in the given processes besides this one. */
export async function measure(row: Row, stage: Stage, peer: Peer, program: string, effort: Effort): Promise<Result> {
  const takeAway = row.kind.setUp?.(stage.site(row.fileSystem));
  try {
    return await measureHere(row, stage, peer, program, effort);
  } finally {
    takeAway?.();
  }
}

async function measureHere(
  { kind, fileSystem, spinner }: Row,
  stage: Stage,
  peer: Peer,
  program: string,
  effort: Effort,
): Promise<Result> {
  if (!warm.has(kind)) {
    const [ours] = kind.blocks(stage.site('tmpfs'), peer);
    for (let i = 0; i < kind.warmUpBlocks; i++) await ours();
    warm.add(kind);
  }
  const [ours, theirs] = kind.blocks(stage.site(fileSystem), peer);
  const ratioOf = (left: number, right: number) => (kind.ratio === 'ours / peer' ? left / right : right / left);

  await stage.spin(spinner, program);
  stage.runOn(kind.spreads ? 'both' : 'one', [process.pid, peer.pid]);
  const comparison = await interleave(ours, theirs, ratioOf, effort);
  const bound = kind.bound(fileSystem, spinner);
  return { ...comparison, bound, isOver: bound !== undefined && isOver(comparison[bound.of], bound) };
}

function isOver(value: number, { is, limit }: Bound): boolean {
  return is === 'at most' ? !(value <= limit) : !(value >= limit);
}
