/**
 * The statistics. The time of a mount and an unmount differs from machine to machine and drifts with time, so
 * that no figure means anything alone: two sides take turns in many short blocks, and each block is compared
 * with those right before and after it only.
 */

/** Runs one block, and returns its figure. */
export type Block = () => Promise<number> | number;

export interface Comparison {
  /** The medians of the blocks. */
  readonly ours: number;
  readonly peer: number;
  /** The median of the ratios of neighbouring blocks, and the quartiles around it. */
  readonly ratio: number;
  readonly ratioQuartiles: readonly [lower: number, upper: number];
  /** The median of the differences of neighbouring blocks, ours less the peer's. */
  readonly difference: number;
  /** How many blocks each side had. */
  readonly blocks: number;
}

/** How long to go on: for a time, but not with fewer blocks a side than make a median. */
export interface Effort {
  readonly blocks: number;
  readonly seconds: number;
  /** So many, for cycles that are counted. */
  readonly cycles: number;
  /** The part of a row's files, mounts and snapshots that there are. Less than 1 shows that the row runs, no more. */
  readonly share: number;
}

export function quantile(values: ArrayLike<number>, fraction: number): number {
  const sorted = Float64Array.from(values).sort();
  const position = (sorted.length - 1) * fraction;
  const below = sorted[Math.floor(position)] ?? Number.NaN;
  const above = sorted[Math.ceil(position)] ?? Number.NaN;
  return below + (above - below) * (position % 1);
}

export const median = (values: ArrayLike<number>): number => quantile(values, 0.5);

export async function interleave(
  ours: Block,
  peer: Block,
  ratioOf: (ours: number, peer: number) => number,
  effort: Effort,
): Promise<Comparison> {
  if (effort.blocks > 1) {
    // Uncounted: the first block pays for cold caches, and for threads that are yet to be made.
    await ours();
    await peer();
  }

  const figures: [ours: number[], peer: number[]] = [[], []];
  const ratios: number[] = [];
  const differences: number[] = [];
  const compare = () => {
    const [left, right] = [figures[0].at(-1), figures[1].at(-1)];
    if (left === undefined || right === undefined) return;
    ratios.push(ratioOf(left, right));
    differences.push(left - right);
  };
  const end = performance.now() + effort.seconds * 1000;
  while (figures[0].length < effort.blocks || performance.now() < end) {
    figures[0].push(await ours());
    compare(); // with the peer's block before it,
    figures[1].push(await peer());
    compare(); // and with the one after it
  }
  return {
    ours: median(figures[0]),
    peer: median(figures[1]),
    ratio: median(ratios),
    ratioQuartiles: [quantile(ratios, 0.25), quantile(ratios, 0.75)],
    difference: median(differences),
    blocks: figures[0].length,
  };
}
