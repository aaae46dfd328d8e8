/** Mounts of other sorts: without privilege, with mapped layers, of many layers. */
import { atMost, firstSet, type Kind, PAIRS, WARM_UP_BLOCKS } from '../kind.js';
import { layeredPair, makeLayers, mappedPairs, refusal, rootlessPairs, syncPairs } from '../ours.js';

const LAYERS = 500;

export const variantKinds: readonly Kind[] = [
  rootless(true, 1.3),
  rootless('keep', undefined),
  {
    what: 'idmap : without',
    unit: 'µs',
    ratio: 'ours / peer',
    waits: true,
    warmUpBlocks: WARM_UP_BLOCKS,
    blocks: (site) => [() => mappedPairs(firstSet(site), PAIRS), () => syncPairs(firstSet(site), PAIRS)],
    bound: () => undefined,
  },
  {
    what: `refused, ${LAYERS} layers : mounted`,
    unit: 'ms',
    ratio: 'ours / peer',
    waits: false,
    on: ['tmpfs'],
    setUp: (site) => makeLayers(site.many, site.share(LAYERS)),
    warmUpBlocks: 5,
    blocks: (site) => [
      () => refusal(site.many, site.share(LAYERS)) / 1000,
      () => layeredPair(site.many, site.share(LAYERS)) / 1000,
    ],
    bound: () => atMost(20, 'ours'),
  },
];

function rootless(mode: true | 'keep', limit: number | undefined): Kind {
  return {
    what: mode === true ? 'rootless : C clone(2)' : "rootless: 'keep' : C clone(2)",
    unit: 'µs',
    ratio: 'ours / peer',
    waits: true,
    warmUpBlocks: WARM_UP_BLOCKS,
    blocks: (site, { c }) => [
      () => rootlessPairs(firstSet(site), mode, PAIRS),
      async () => (await c.pairs('rootless', site.base, 1, PAIRS)).median,
    ],
    bound: () => (limit === undefined ? undefined : atMost(limit)),
  };
}
