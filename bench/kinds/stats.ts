/** The program's own file I/O while the unmounts of overlays with much to write back are under way. */
import { atMost, type Kind } from '../kind.js';
import type { Peers } from '../peers.js';
import { SET_COUNT, type Site } from '../stage.js';
import { statsDuring, statsIdle, unmountAll, unmountAllByPeer, unmountAllInPool } from '../stats.js';

export const statKinds: readonly Kind[] = [
  stats('idle', () => atMost(2)),
  stats('in the pool', () => undefined),
  stats('C, in turn', () => undefined),
];

function stats(beside: 'idle' | 'in the pool' | 'C, in turn', bound: Kind['bound']): Kind {
  const besides = {
    idle: statsIdle,
    'in the pool': (site: Site) => statsDuring(site, unmountAllInPool),
    'C, in turn': (site: Site, { c }: Peers) => statsDuring(site, unmountAllByPeer(site, c)),
  };
  return {
    what: `stat, ${SET_COUNT} unmounts : ${beside}`,
    unit: 'µs',
    ratio: 'ours / peer',
    waits: false,
    on: ['ext4'],
    spreads: true,
    warmUpBlocks: 3,
    blocks: (site, peers) => [() => statsDuring(site, unmountAll), () => besides[beside](site, peers)],
    bound,
  };
}
