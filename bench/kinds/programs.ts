/** Programs that the library replaces, or stands beside. */
import { mountOverlaySync, type SpawnOptions } from 'overlayfs';
import { atLeast, firstSet, type Kind, PAIRS, WARM_UP_BLOCKS } from '../kind.js';
import { programPairs, programStarts, startInside, startOutside, syncPairs } from '../ours.js';

const PROGRAM_PAIRS = 20;

/** Each kind of namespace adds to the start of a program. */
const isolations: readonly (readonly [words: string, options: SpawnOptions])[] = [
  ['network', { unshare: ['net'] }],
  ['pids', { unshare: ['pid'] }],
  ['ipc and uts', { unshare: ['ipc', 'uts'] }],
  ['root', { mapRoot: true }],
  ['writable', { writable: [] }],
  ['all', { unshare: ['net', 'pid', 'ipc', 'uts'], mapRoot: true, writable: [] }],
];

const isolationKinds = isolations.map(
  ([words, options]): Kind => ({
    what: `spawn, ${words} : spawn`,
    unit: 'µs',
    ratio: 'ours / peer',
    waits: false,
    warmUpBlocks: 2,
    on: ['tmpfs'],
    blocks: (site) => {
      const { target, ...layers } = firstSet(site);
      const start = (more: SpawnOptions) => async () => {
        const mount = mountOverlaySync({ ...layers, rootless: true });
        const time = await programStarts(() => startInside(mount, target, more), PROGRAM_PAIRS);
        mount.unmountSync();
        return time;
      };
      return [start(options), start({})];
    },
    bound: () => undefined,
  }),
);

export const programKinds: readonly Kind[] = [
  {
    what: 'sync : programs',
    unit: 'µs',
    ratio: 'peer / ours',
    waits: true,
    warmUpBlocks: WARM_UP_BLOCKS,
    blocks: (site) => [() => syncPairs(firstSet(site), PAIRS), () => programPairs(firstSet(site), PROGRAM_PAIRS)],
    bound: () => atLeast(15),
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
  ...isolationKinds,
];
