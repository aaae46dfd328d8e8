/** A kind of measurement: two sides, what is compared, and the bound that holds for it. */
import type { Block, Comparison, Effort } from './interleave.js';
import type { Optional, Peers } from './peers.js';
import type { FileSystem, LayerSet, Site } from './stage.js';

export interface Bound {
  readonly of: 'ratio' | 'difference' | 'ours';
  readonly is: 'at most' | 'at least';
  readonly limit: number;
}

export const atMost = (limit: number, of: Bound['of'] = 'ratio'): Bound => ({ of, is: 'at most', limit });
export const atLeast = (limit: number): Bound => ({ of: 'ratio', is: 'at least', limit });

/** One kind of measurement, made on each file system, and with the other CPU idle and busy. */
interface AnyKind {
  readonly what: string;
  readonly unit: 'µs' | 'pairs/s' | 'ms';
  /** The meaning of the ratio. */
  readonly ratio: 'ours / peer' | 'peer / ours';
  /** True if the unmounts' waits, which depend on the other CPU, are in it. */
  readonly waits: boolean;
  /** The kinds on which it is measured, when not on all. */
  readonly on?: readonly FileSystem[];
  /** True if both sides may use the other CPU too. */
  readonly spreads?: boolean;
  /** A peer that some machines lack. */
  readonly needs?: Optional;
  /** Makes what has to be there meanwhile, and returns what takes it away. */
  readonly setUp?: (site: Site) => () => void;
  readonly bound: (fileSystem: FileSystem, spinner: boolean) => Bound | undefined;
}

/** Two sides that take turns, block by block. */
export interface BlockKind extends AnyKind {
  /** Uncounted blocks of ours, until everything is compiled. */
  readonly warmUpBlocks: number;
  readonly blocks: (site: Site, peers: Peers) => [ours: Block, peer: Block];
}

/** Two sides that are compared in a way of their own. */
export interface OtherKind extends AnyKind {
  readonly compare: (site: Site, peers: Peers, effort: Effort) => Promise<Comparison>;
}

export type Kind = BlockKind | OtherKind;

export interface Row {
  readonly kind: Kind;
  readonly fileSystem: FileSystem;
  readonly spinner: boolean;
}

export interface Result extends Comparison {
  readonly bound: Bound | undefined;
  readonly isOver: boolean;
}

/** In a block. */
export const PAIRS = 150;
export const WARM_UP_BLOCKS = 20;

export function firstSet(site: Site): LayerSet {
  const [set] = site.sets;
  if (set === undefined) throw new Error('no layer set');
  return set;
}
