/** Many pairs at once, each on directories of its own, beside a loop in C. */
import { atLeast, type Kind, WARM_UP_BLOCKS } from '../kind.js';
import { pairsAtOnce, pairsAtOnceByPath } from '../ours.js';
import { SET_COUNT } from '../stage.js';

const TIMES = 4;
const PAIRS_IN_ALL = SET_COUNT * TIMES;

const perSecond = (microseconds: number): number => (PAIRS_IN_ALL / microseconds) * 1e6;

const atOnce = (what: string, run: typeof pairsAtOnce): Kind => ({
  what: `${what} : C`,
  unit: 'pairs/s',
  ratio: 'ours / peer',
  waits: true,
  spreads: true,
  warmUpBlocks: WARM_UP_BLOCKS / 2,
  blocks: ({ base, sets }, { c }) => [
    async () => perSecond(await run(sets, TIMES)),
    async () => perSecond((await c.pairs('sync', base, SET_COUNT, PAIRS_IN_ALL)).total),
  ],
  bound: (fileSystem, spinner) => (spinner ? undefined : atLeast(fileSystem === 'ext4' ? 2 : 1.3)),
});

export const atOnceKinds: readonly Kind[] = [
  atOnce(`async, ${SET_COUNT} at once`, pairsAtOnce),
  atOnce(`async, ${SET_COUNT} at once by path`, pairsAtOnceByPath),
];
