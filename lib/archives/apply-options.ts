/** The options of `apply`, and their check. */

import { checkFunction, checkSignal, checkWord, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue, outOfRange } from '../errors.js';
import { kernelFeaturesSync, needsUserXattr } from '../features/probe.js';
import type { Path, PathLike } from '../paths.js';
import type { Progress } from '../progress.js';
import { toPaths } from '../trees/given.js';
import { checkSync, type Sync } from '../trees/synced.js';
import { checkOwnerMaps, type MappedOwners, type OwnerMaps } from './owner-maps.js';
import type { Layout } from './placement.js';

/** The limits on an archive: a hostile one cannot fill the machine. */
export interface ApplyLimits {
  /** The most entries of an archive. Default: 4,000,000. */
  readonly maxEntries?: number | undefined;
  /** The limit on the uncompressed archive, and on the size of all its files, holes included. Default: 1 TiB. */
  readonly maxBytes?: number | undefined;
  /** The most components of a path. Default: 1024. */
  readonly maxPathDepth?: number | undefined;
  /** The most bytes that one compressed byte may stand for, after the first 64 MiB. Default: 200. */
  readonly maxRatio?: number | undefined;
}

export interface ApplyOptions extends ApplyLimits {
  /**
   * `'overlay'`: whiteouts and opaque marks of the archive become those of overlayfs. `'plain'`: they remove what is in
   * the directory. Default: `'overlay'`.
   */
  readonly layout?: Layout | undefined;
  /**
   * Writes marks for mounts with `userxattr`: `user.overlay.*`. Default: false for root, true for others and in a user
   * namespace, which cannot set `trusted.overlay.*`.
   */
  readonly userxattr?: boolean | undefined;
  /**
   * `'keep'` sets the owners of the archive, `'ignore'` leaves all files to the calling user, and maps replace the
   * archive's ids. Default: `'keep'` for root, else `'ignore'`.
   */
  readonly owners?: 'keep' | 'ignore' | OwnerMaps | undefined;
  /**
   * The layers below, the topmost first. A directory that the archive has no entry for, only for something in it, gets
   * owner, mode, time and attributes that it has there. Without them: 0755, root.
   */
  readonly lowerdir?: PathLike | readonly PathLike[] | undefined;
  /** The treatment of device nodes. Default: `'create'` for root, but `'skip'` in a user namespace, which can make none. */
  readonly devices?: 'create' | 'skip' | 'fail' | undefined;
  /** The digest that the source must have: `sha256:` and 64 digits. */
  readonly expectedDigest?: string | undefined;
  /** The digest that the uncompressed archive must have. */
  readonly expectedDiffId?: string | undefined;
  /** Called after each chunk, about 2 MiB. */
  readonly onProgress?: ((progress: Progress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
  /**
   * `'end'`: the layer is on the disk before it gets its name, and both are there before the promise is fulfilled,
   * syncfs(2). `'none'`: the kernel writes it when it likes. Default: `'end'`.
   */
  readonly sync?: Sync | undefined;
}

export const limitNames = ['maxEntries', 'maxBytes', 'maxPathDepth', 'maxRatio'] as const;

const known: ReadonlySet<string> = new Set<keyof ApplyOptions>([
  ...limitNames,
  'layout',
  'userxattr',
  'owners',
  'devices',
  'expectedDigest',
  'expectedDiffId',
  'onProgress',
  'signal',
  'sync',
  'lowerdir',
]);

export type CheckedLimits = Readonly<Record<keyof ApplyLimits, number>>;

export interface CheckedOptions extends CheckedLimits {
  readonly layout: Layout;
  readonly userxattr: boolean;
  readonly owners: MappedOwners | undefined;
  readonly devices: 'create' | 'skip' | 'fail';
  readonly expectedDigest: string | undefined;
  readonly expectedDiffId: string | undefined;
  readonly onProgress: ((progress: Progress) => void) | undefined;
  readonly signal: AbortSignal | undefined;
  readonly syncs: boolean;
  /** True for a directory that was made for this layer: its root is that of the layers below, as far as the archive has none. */
  readonly isNew: boolean;
  readonly lowers: () => readonly Path[] | Promise<readonly Path[]>;
}

function checkLimit(value: unknown, name: string, usual: number): number {
  if (value === undefined) return usual;
  if (typeof value !== 'number') throw invalidArgumentType(name, 'a number', value);
  if (!(value > 0)) throw outOfRange(name, 'a number above 0, or Infinity', String(value));
  return value;
}

export const checkLimits = (options: ApplyLimits): CheckedLimits => ({
  maxEntries: checkLimit(options.maxEntries, 'maxEntries', 4e6),
  maxBytes: checkLimit(options.maxBytes, 'maxBytes', 2 ** 40),
  maxPathDepth: checkLimit(options.maxPathDepth, 'maxPathDepth', 1024),
  maxRatio: checkLimit(options.maxRatio, 'maxRatio', 200),
});

function checkDigest(value: unknown, name: string): string | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'string') throw invalidArgumentType(name, 'a digest: "sha256:" and 64 digits', value);
  if (!/^sha256:[0-9a-f]{64}$/.test(value)) {
    throw invalidArgumentValue(name, value, 'must be "sha256:" and 64 digits of 0-9 and a-f');
  }
  return value;
}

function checkOwners(value: unknown, isRoot: boolean): CheckedOptions['owners'] {
  const keep = { uid: (id: number) => id, gid: (id: number) => id };
  if (value === undefined) return isRoot ? keep : undefined;
  if (typeof value === 'object' && value !== null) return checkOwnerMaps(value, 'host');
  return checkWord(value, 'owners', ['keep', 'ignore']) === 'keep' ? keep : undefined;
}

export function checkApplyOptions(given: ApplyOptions | undefined): CheckedOptions {
  const options = toOptions(given, known);
  const isRoot = process.geteuid?.() === 0;
  // mknod(2) needs CAP_MKNOD in the initial user namespace.
  const mayMakeDevices = isRoot && !kernelFeaturesSync().userNamespace;
  const { userxattr, onProgress } = options;
  const lowers = toPaths(options.lowerdir, 'lowerdir');
  if (userxattr !== undefined && typeof userxattr !== 'boolean') {
    throw invalidArgumentType('userxattr', 'true or false', userxattr);
  }
  checkFunction(onProgress, 'onProgress');
  return {
    layout: checkWord(options.layout, 'layout', ['overlay', 'plain']) ?? 'overlay',
    userxattr: userxattr ?? needsUserXattr(),
    owners: checkOwners(options.owners, isRoot),
    devices: checkWord(options.devices, 'devices', ['create', 'skip', 'fail']) ?? (mayMakeDevices ? 'create' : 'skip'),
    expectedDigest: checkDigest(options.expectedDigest, 'expectedDigest'),
    expectedDiffId: checkDigest(options.expectedDiffId, 'expectedDiffId'),
    ...checkLimits(options),
    onProgress,
    signal: checkSignal(options.signal),
    lowers: () => lowers,
    isNew: false,
    syncs: checkSync(options.sync),
  };
}
