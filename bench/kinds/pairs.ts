/** One mount and its unmount after the other, beside other ways to do the same. */
import { atMost, type BlockKind, firstSet, type Kind, PAIRS, WARM_UP_BLOCKS } from '../kind.js';
import { asyncPairs, asyncPairsByPath, syncPairs, syncPairsByPath } from '../ours.js';
import type { PairKind, Peer } from '../peer.js';
import type { Optional } from '../peers.js';
import type { Site } from '../stage.js';

type Compared = Pick<BlockKind, 'what' | 'blocks' | 'bound'> & Partial<BlockKind>;

const pairs = (compared: Compared): Kind => ({
  unit: 'µs',
  ratio: 'ours / peer',
  waits: true,
  warmUpBlocks: WARM_UP_BLOCKS,
  ...compared,
});

const ours = { sync: syncPairs, async: asyncPairs };

const theirs = (peer: Peer, kind: PairKind, site: Site) => async () =>
  (await peer.pairs(kind, site.base, 1, PAIRS)).median;

const besideC = (what: string, form: keyof typeof ours, kind: PairKind, bound: Kind['bound']): Kind =>
  pairs({ what, blocks: (site, { c }) => [() => ours[form](firstSet(site), PAIRS), theirs(c, kind, site)], bound });

const besideLibrary = (name: Optional): Kind =>
  pairs({
    what: `sync : ${name}`,
    needs: name,
    blocks: (site, peers) => [() => syncPairs(firstSet(site), PAIRS), theirs(peers.get(name), 'sync', site)],
    bound: () => atMost(1),
  });

export const pairKinds: readonly Kind[] = [
  besideC('sync : C', 'sync', 'sync', (_, spinner) => (spinner ? atMost(1.25) : undefined)),
  besideC('sync : C guarded', 'sync', 'guarded', (_, spinner) => (spinner ? atMost(1.08) : undefined)),
  besideC('async : C handed over', 'async', 'handover', () => undefined),
  besideC('async : C guarded, handed over', 'async', 'guarded-handover', (_, spinner) =>
    spinner ? atMost(1.25) : undefined,
  ),
  besideLibrary('libmount'),
  besideLibrary('containerd'),
  pairs({
    what: 'sync by path : by object',
    blocks: (site) => [() => syncPairsByPath(firstSet(site), PAIRS), () => syncPairs(firstSet(site), PAIRS)],
    bound: () => atMost(1.05),
  }),
  pairs({
    what: 'async by path : by object',
    blocks: (site) => [() => asyncPairsByPath(firstSet(site), PAIRS), () => asyncPairs(firstSet(site), PAIRS)],
    bound: () => atMost(1.05),
  }),
];
