/** True if a cycle takes as long after ten thousand others as it did at first. */
import { type CycleSet, cycles } from '../../test/support/cycles.js';
import { type Comparison, type Effort, median, quantile } from '../interleave.js';
import { atMost, firstSet, type Kind } from '../kind.js';
import type { Peers } from '../peers.js';
import type { FileSystem, Site } from '../stage.js';

const BLOCKS = 100;
/** The tenth at the beginning, and that at the end. */
const COMPARED = BLOCKS / 10;
const WARM_UP_CYCLES = 500;

async function medianCycle(cycle: () => unknown, count: number): Promise<number> {
  const times = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const start = performance.now();
    await cycle();
    times[i] = (performance.now() - start) * 1000;
  }
  return median(times);
}

/** The pace of the machine drifts too: each block counts by what the C program takes right after it. */
async function compareEnds(cycle: () => unknown, { base }: Site, { c }: Peers, effort: Effort): Promise<Comparison> {
  const each = Math.ceil(effort.cycles / BLOCKS);
  await medianCycle(cycle, Math.ceil(WARM_UP_CYCLES * effort.share));
  const figures: number[] = [];
  const ratios: number[] = [];
  for (let i = 0; i < BLOCKS; i++) {
    const ours = await medianCycle(cycle, each);
    figures.push(ours);
    ratios.push(ours / (await c.pairs('guarded', base, 1, each)).median);
  }
  const first = median(ratios.slice(0, COMPARED));
  const last = ratios.slice(-COMPARED);
  const [ours, peer] = [median(figures.slice(-COMPARED)), median(figures.slice(0, COMPARED))];
  return {
    ours,
    peer,
    ratio: median(last) / first,
    ratioQuartiles: [quantile(last, 0.25) / first, quantile(last, 0.75) / first],
    difference: ours - peer,
    blocks: COMPARED,
  };
}

function flat(name: string, on: readonly FileSystem[]): Kind {
  const cycleOf = (site: Site): (() => unknown) => (cycles[name] as (set: CycleSet) => () => unknown)(firstSet(site));
  return {
    what: `${name} : at first`,
    unit: 'µs',
    ratio: 'ours / peer',
    waits: false,
    on,
    compare: (site, peers, effort) => compareEnds(cycleOf(site), site, peers, effort),
    bound: () => atMost(1.1),
  };
}

export const flatKinds: readonly Kind[] = [
  ...['pair by path', 'pair by object', 'detached', 'replace', 'clone', 'bind', 'rootless keep'].map((name) =>
    flat(name, ['tmpfs']),
  ),
  // Inode numbers come back at once on ext4, and never on tmpfs.
  flat('fresh upper per job', ['tmpfs', 'ext4']),
];
