/** The options of `applyLayer`, and their check. */
import { checkFunction, checkSignal, checkWord, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue, outOfRange } from '../errors.js';
import type { Path, PathLike } from '../paths.js';
import { toPaths } from '../trees/given.js';
import { checkOwnerMaps, type MappedOwners, type OwnerMaps } from './owner-maps.js';
import type { Layout } from './placement.js';

export interface ApplyProgress {
  /** Entries of the archive so far. */
  readonly entries: number;
  /** Bytes of the uncompressed archive so far. */
  readonly bytes: number;
  /** Bytes of the source so far. */
  readonly read: number;
  /** The size of the source, where it is known. */
  readonly total: number | undefined;
}

export interface ApplyOptions {
  /**
   * `'overlay'`: whiteouts and opaque marks of the archive become those of overlayfs. `'plain'`: they remove what is in
   * the directory. Default: `'overlay'`.
   */
  readonly layout?: Layout | undefined;
  /** Writes marks for mounts with `userxattr`: `user.overlay.*`. Default: false. */
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
  /** The treatment of device nodes. Default: `'create'` for root, else `'skip'`. */
  readonly devices?: 'create' | 'skip' | 'fail' | undefined;
  /** The digest that the source must have: `sha256:` and 64 digits. */
  readonly expectedDigest?: string | undefined;
  /** The digest that the uncompressed archive must have. */
  readonly expectedDiffId?: string | undefined;
  /** Default: 4,000,000. */
  readonly maxEntries?: number | undefined;
  /** The limit on the uncompressed archive, and on the size of all files, holes included. Default: 1 TiB. */
  readonly maxBytes?: number | undefined;
  /** The most components of a path. Default: 1024. */
  readonly maxPathDepth?: number | undefined;
  /** The most bytes that one compressed byte may stand for, after the first 64 MiB. Default: 200. */
  readonly maxRatio?: number | undefined;
  /** Called after each chunk, about 2 MiB. */
  readonly onProgress?: ((progress: ApplyProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
  /** `'end'` writes the file system back to its disk at the end, syncfs(2). Default: `'none'`. */
  readonly sync?: 'none' | 'end' | undefined;
}

const known: ReadonlySet<string> = new Set<keyof ApplyOptions>([
  'layout',
  'userxattr',
  'owners',
  'devices',
  'expectedDigest',
  'expectedDiffId',
  'maxEntries',
  'maxBytes',
  'maxPathDepth',
  'maxRatio',
  'onProgress',
  'signal',
  'sync',
  'lowerdir',
]);

export interface CheckedOptions {
  readonly layout: Layout;
  readonly userxattr: boolean;
  readonly owners: MappedOwners | undefined;
  readonly devices: 'create' | 'skip' | 'fail';
  readonly expectedDigest: string | undefined;
  readonly expectedDiffId: string | undefined;
  readonly maxEntries: number;
  readonly maxBytes: number;
  readonly maxPathDepth: number;
  readonly maxRatio: number;
  readonly onProgress: ((progress: ApplyProgress) => void) | undefined;
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
  if (typeof value === 'object' && value !== null) return checkOwnerMaps(value, 'outside');
  return checkWord(value, 'owners', ['keep', 'ignore']) === 'keep' ? keep : undefined;
}

export function checkApplyOptions(given: ApplyOptions | undefined): CheckedOptions {
  const options = toOptions(given, known);
  const isRoot = process.geteuid?.() === 0;
  const { userxattr, onProgress } = options;
  const lowers = toPaths(options.lowerdir, 'lowerdir');
  if (userxattr !== undefined && typeof userxattr !== 'boolean') {
    throw invalidArgumentType('userxattr', 'true or false', userxattr);
  }
  checkFunction(onProgress, 'onProgress');
  return {
    layout: checkWord(options.layout, 'layout', ['overlay', 'plain']) ?? 'overlay',
    userxattr: userxattr ?? false,
    owners: checkOwners(options.owners, isRoot),
    devices: checkWord(options.devices, 'devices', ['create', 'skip', 'fail']) ?? (isRoot ? 'create' : 'skip'),
    expectedDigest: checkDigest(options.expectedDigest, 'expectedDigest'),
    expectedDiffId: checkDigest(options.expectedDiffId, 'expectedDiffId'),
    maxEntries: checkLimit(options.maxEntries, 'maxEntries', 4e6),
    maxBytes: checkLimit(options.maxBytes, 'maxBytes', 2 ** 40),
    maxPathDepth: checkLimit(options.maxPathDepth, 'maxPathDepth', 1024),
    maxRatio: checkLimit(options.maxRatio, 'maxRatio', 200),
    onProgress,
    signal: checkSignal(options.signal),
    lowers: () => lowers,
    isNew: false,
    syncs: checkWord(options.sync, 'sync', ['none', 'end']) === 'end',
  };
}
