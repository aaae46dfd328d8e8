/** Snapshots: a cycle of verbs among few and among many, what fsync takes of it, and a walk. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { Snapshotter, type SnapshotterOptions } from 'overlayfs/snapshots';
import { median } from '../interleave.js';
import { atMost, type BlockKind, type Kind } from '../kind.js';
import type { Site } from '../stage.js';

const FEW = 10;
const MANY = 10_000;
const CYCLES = 10;

const directoryOf = ({ base }: Site): string => join(base, 'snapshots');

/** Those that are there, by their paths: the warm-up uses them too. */
const roots = new Map<string, Root>();

function rootOf(site: Site, name: string, count: number, options?: SnapshotterOptions): Root {
  const path = join(directoryOf(site), name);
  const root = roots.get(path) ?? new Root(path, site.share(count), options);
  roots.set(path, root);
  return root;
}

/** A root that is made when it is first used. */
class Root {
  readonly #path: string;
  readonly #count: number;
  readonly #options: SnapshotterOptions;
  #opened: Promise<Snapshotter> | undefined;
  #cycles = 0;

  constructor(path: string, count: number, options: SnapshotterOptions = {}) {
    this.#path = path;
    this.#count = count;
    this.#options = options;
  }

  #open(): Promise<Snapshotter> {
    this.#opened ??= this.#make();
    return this.#opened;
  }

  async #make(): Promise<Snapshotter> {
    const fast = await Snapshotter.open(this.#path, { fsync: 'none' });
    await fast.prepare('preparing base');
    await fast.commit('preparing base', { name: 'base' });
    for (let made = 0; made < this.#count; made += 100) {
      const count = Math.min(100, this.#count - made);
      await Promise.all(Array.from({ length: count }, (_, i) => fast.view(`there ${made + i}`, 'base')));
    }
    await fast.close();
    return Snapshotter.open(this.#path, this.#options);
  }

  /** Returns the median of some cycles, in ms. */
  async cycle(): Promise<number> {
    const snapshotter = await this.#open();
    const times: number[] = [];
    for (let i = 0; i < CYCLES; i++) {
      const [key, name] = [`key ${this.#cycles}`, `name ${this.#cycles++}`];
      const start = performance.now();
      await snapshotter.prepare(key, 'base');
      await snapshotter.mounts(key);
      await snapshotter.commit(key, { name });
      await snapshotter.remove(name);
      times.push(performance.now() - start);
    }
    return median(times);
  }

  /** Returns the time of a walk, in ms. */
  async list(): Promise<number> {
    const snapshotter = await this.#open();
    const start = performance.now();
    let count = 0;
    for await (const { kind } of snapshotter.list()) if (kind === 'view') count++;
    if (count !== this.#count) throw new Error(`${count} snapshots instead of ${this.#count}`);
    return performance.now() - start;
  }
}

function kind(more: Pick<BlockKind, 'what' | 'blocks' | 'bound' | 'on'>): Kind {
  return {
    unit: 'ms',
    ratio: 'ours / peer',
    waits: false,
    warmUpBlocks: 20,
    setUp: (site) => () => {
      roots.clear();
      rmSync(directoryOf(site), { recursive: true, force: true });
    },
    ...more,
  };
}

/** Cycles with two policies. */
function synced(policy: 'store' | 'all', other: 'none' | 'store', on: BlockKind['on']): Kind {
  return kind({
    what: `snapshot, fsync ${policy} : ${other}`,
    ...(on && { on }),
    blocks(site) {
      const [ours, peer] = [rootOf(site, policy, FEW, { fsync: policy }), rootOf(site, other, FEW, { fsync: other })];
      return [() => ours.cycle(), () => peer.cycle()];
    },
    bound: () => undefined,
  });
}

export const snapshotKinds: readonly Kind[] = [
  kind({
    what: `snapshot among ${MANY} : ${FEW}`,
    blocks(site) {
      const [many, few] = [rootOf(site, 'many', MANY), rootOf(site, 'few', FEW)];
      return [() => many.cycle(), () => few.cycle()];
    },
    bound: () => atMost(1.1),
  }),
  synced('store', 'none', ['ext4']),
  synced('all', 'store', ['ext4']),
  kind({
    what: `walk of ${MANY} : ${FEW}`,
    on: ['tmpfs'],
    blocks(site) {
      const [many, few] = [rootOf(site, 'many', MANY), rootOf(site, 'few', FEW)];
      return [() => many.list(), () => few.list()];
    },
    bound: () => atMost(50, 'ours'),
  }),
];
