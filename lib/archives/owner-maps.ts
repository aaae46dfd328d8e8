/** Maps of owners between an archive and a file system. Pure. */
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import type { IdRange } from '../id-range.js';

export interface OwnerMaps {
  readonly uidMap: readonly IdRange[];
  readonly gidMap: readonly IdRange[];
}

type IdMap = (id: number) => number;

/** The ids that files get; those that no range has become NaN. */
export interface MappedOwners {
  readonly uid: IdMap;
  readonly gid: IdMap;
}

/** Returns the functions that map ids to this side. */
export function checkOwnerMaps({ uidMap, gidMap }: Partial<OwnerMaps>, to: 'container' | 'host'): MappedOwners {
  return { uid: checkMap(uidMap, 'owners.uidMap', to), gid: checkMap(gidMap, 'owners.gidMap', to) };
}

function checkMap(value: unknown, name: string, to: 'container' | 'host'): IdMap {
  if (!Array.isArray(value)) throw invalidArgumentType(name, 'a list of { container, host, size }', value);
  const ranges = value.map((range: IdRange): IdRange => {
    for (const key of ['container', 'host', 'size'] as const) {
      const number: unknown = range?.[key];
      const least = key === 'size' ? 1 : 0;
      if (typeof number === 'number' && Number.isInteger(number) && number >= least && number < 2 ** 32) continue;
      throw invalidArgumentValue(name, range, `must have in each range an integer \`${key}\` of ${least} or more`);
    }
    return { ...range };
  });
  const from = to === 'container' ? 'host' : 'container';
  return (id) => {
    const range = ranges.find((each) => id >= each[from] && id < each[from] + each.size);
    return range === undefined ? Number.NaN : range[to] + (id - range[from]);
  };
}
