/** Random options over a few directories: right ones mostly, some wrong in value, some wrong in path. */
import { hasFeature, optionNeeds } from '../../support/index.js';

type Random = (below: number) => number;

/** The directories that are there, by what they are. Those in `fresh` are made anew for every mount. */
export const lowers = ['tmp/a', 'tmp/b', 'tmp/c:o,l\\on', 'disk/a', 'disk/b', 'disk/with space'];
export const dataDirs = ['tmp/data1', 'tmp/data2', 'disk/data'];
export const fresh = ['tmp/u', 'tmp/w', 'tmp/w2', 'disk/u', 'disk/w'];
/** Paths with which no mount comes about, or one with a catch. */
const wrongLowers = ['tmp/a/inside', 'tmp/file', 'tmp/none', 'tmp/link-to-a', 'tmp/u', 'tmp/w', 'disk/file/below'];
const wrongUppers = ['tmp/file', 'tmp/none', 'tmp/a', 'tmp/a/inside', 'tmp/w/inside', 'overlay/u', 'readonly/u'];
const wrongWorks = ['tmp/file', 'tmp/none', 'tmp/u', 'tmp/u/inside', 'disk/w', 'overlay/w', 'readonly/w', 'tmp/b'];

/** A wrong value, and how it would read as text. */
const wrongValues: readonly (readonly [name: string, value: unknown, text: string])[] = [
  ['redirectDir', 'ON', 'redirect_dir=ON'],
  ['redirectDir', 'yes', 'redirect_dir=yes'],
  ['redirectDir', '', 'redirect_dir='],
  ['redirectDir', 1, 'redirect_dir=1'],
  ['index', 'true', 'index=true'],
  ['index', 1, 'index=1'],
  ['nfsExport', 'ON', 'nfs_export=ON'],
  ['metacopy', 'yes', 'metacopy=yes'],
  ['uuid', 'random', 'uuid=random'],
  ['uuid', true, 'uuid=true'],
  ['xino', 'Auto', 'xino=Auto'],
  ['verity', 'required', 'verity=required'],
  ['fsync', 'ordered', 'fsync=ordered'],
  ['fsync', 'volatile ', 'fsync=volatile '],
  ['volatile', 'on', 'volatile=on'],
  ['userxattr', 1, 'userxattr=1'],
  ['defaultPermissions', 'yes', 'default_permissions=yes'],
  ['overrideCreds', 'on', 'override_creds=on'],
  ['neverWas', true, 'neverWas'],
  ['nouserxattr', true, 'nouserxattr'],
  ['noatime', true, 'noatime'],
  ['redirect_max', '256', 'redirect_max=256'],
];

export interface Generated {
  /** The library's options; paths relative to the test's directory. */
  readonly options: Readonly<Record<string, unknown>>;
  /** The text of what is no right value, for the kernel. */
  readonly wrongText: string | undefined;
  /** True if a path is such that the mount may fail for it. */
  readonly hasWrongPath: boolean;
}

function pick<T>(random: Random, list: readonly T[]): T {
  return list[random(list.length)] as T;
}

/** As many different ones of a list, in any order. */
function some(random: Random, list: readonly string[], count: number): string[] {
  const rest = [...list];
  return Array.from({ length: Math.min(count, rest.length) }, () => rest.splice(random(rest.length), 1)[0] as string);
}

/** The values of each option of overlayfs itself. */
export const choices: Readonly<Record<string, readonly unknown[]>> = {
  redirectDir: ['on', 'off', 'follow', 'nofollow'],
  index: [true, false],
  nfsExport: [true, false],
  metacopy: [true, false],
  uuid: ['on', 'off', 'null', 'auto'],
  xino: ['on', 'off', 'auto'],
  verity: ['off', 'on', 'require'],
  volatile: [true, false],
  fsync: ['auto', 'strict'],
  userxattr: [true, false],
  overrideCreds: [true, false],
  defaultPermissions: [true, false],
};

const attributes: Readonly<Record<string, readonly unknown[]>> = {
  readonly: [true, false],
  readonlySuperblock: [true, false],
  nosuid: [true],
  nodev: [true],
  noexec: [true],
  nosymfollow: [true],
  nodiratime: [true],
  atime: ['relatime', 'noatime', 'strictatime'],
  propagation: ['private', 'shared', 'slave', 'unbindable'],
};

function paths(random: Random): { options: Record<string, unknown>; hasWrongPath: boolean } {
  const lowerdir = some(random, lowers, random(20) === 0 ? 0 : 1 + random(4));
  const options: Record<string, unknown> = { lowerdir };
  let hasWrongPath = false;
  const oneIn = (count: number): boolean => {
    const isSo = random(count) === 0;
    if (isSo) hasWrongPath = true;
    return isSo;
  };
  if (oneIn(25)) lowerdir.splice(random(lowerdir.length + 1), 0, pick(random, wrongLowers));
  if (lowerdir.length > 0 && oneIn(60)) lowerdir.push(pick(random, lowerdir));
  if (lowerdir.length === 1 && random(2) === 0) options['lowerdir'] = lowerdir[0];
  if (random(5) === 0) options['datadir'] = some(random, dataDirs, 1 + random(2));
  if (options['datadir'] !== undefined && oneIn(20)) options['datadir'] = [pick(random, [...lowers, 'tmp/none'])];
  // Not often on the disk: all of it is synced when the overlay goes.
  const place = random(12) === 0 ? 'disk' : 'tmp';
  if (random(3) > 0) {
    options['upperdir'] = oneIn(25) ? pick(random, wrongUppers) : `${place}/u`;
    if (random(30) > 0) options['workdir'] = oneIn(25) ? pick(random, wrongWorks) : `${place}/w`;
  } else if (random(25) === 0) options['workdir'] = 'tmp/w';
  // The library shows one layer alone, and the kernel does not.
  const isAlone = lowerdir.length === 1 && !['datadir', 'upperdir', 'workdir'].some((name) => name in options);
  if (isAlone) options['lowerdir'] = [...lowerdir, ...lowers.filter((name) => name !== lowerdir[0]).slice(0, 1)];
  return { options, hasWrongPath };
}

/** One set. */
export function generate(random: Random): Generated {
  const { options, hasWrongPath } = paths(random);
  const names = Object.keys(choices).filter((name) => {
    const need = optionNeeds[name];
    return need === undefined || hasFeature(need);
  });
  for (const name of some(random, names, [0, 1, 1, 2, 2, 3, 4, 5, 7][random(9)] as number)) {
    options[name] = pick(random, choices[name] as readonly unknown[]);
  }
  if (random(3) === 0) {
    for (const name of some(random, Object.keys(attributes), 1 + random(3))) {
      options[name] = pick(random, attributes[name] as readonly unknown[]);
    }
  }
  let wrongText: string | undefined;
  if (random(15) === 0) {
    const [name, value, text] = pick(random, wrongValues);
    options[name] = value;
    wrongText = text;
  }
  return { options, wrongText, hasWrongPath };
}
