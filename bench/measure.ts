/** Measures a row. */
import { type Comparison, type Effort, interleave } from './interleave.js';
import type { BlockKind, Bound, Kind, Result, Row } from './kind.js';
import type { Peers } from './peers.js';
import type { Site, Stage } from './stage.js';

const warm = new Set<Kind>();

async function warmUp(kind: BlockKind, site: Site, peers: Peers): Promise<void> {
  if (warm.has(kind)) return;
  warm.add(kind);
  const [ours] = kind.blocks(site, peers);
  for (let i = 0; i < kind.warmUpBlocks; i++) await ours();
}

function compare(kind: Kind, site: Site, peers: Peers, effort: Effort): Promise<Comparison> {
  if ('compare' in kind) return kind.compare(site, peers, effort);
  const [ours, theirs] = kind.blocks(site, peers);
  const ratioOf = (left: number, right: number) => (kind.ratio === 'ours / peer' ? left / right : right / left);
  return interleave(ours, theirs, ratioOf, effort);
}

export async function measure(row: Row, stage: Stage, peers: Peers, effort: Effort): Promise<Result> {
  const { kind, fileSystem, spinner } = row;
  const site = stage.site(fileSystem);
  const takeAway = kind.setUp?.(site);
  try {
    if ('blocks' in kind && effort.blocks > 1) await warmUp(kind, site, peers);
    await stage.spin(spinner, peers.program);
    stage.runOn(kind.spreads ? 'both' : 'one', [process.pid, ...peers.pids]);
    const comparison = await compare(kind, site, peers, effort);
    const bound = kind.bound(fileSystem, spinner);
    return { ...comparison, bound, isOver: bound !== undefined && isOver(comparison[bound.of], bound) };
  } finally {
    takeAway?.();
  }
}

function isOver(value: number, { is, limit }: Bound): boolean {
  return is === 'at most' ? !(value <= limit) : !(value >= limit);
}
