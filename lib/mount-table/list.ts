/** The mount table for callers: all mounts, the mount of a path, and the overlays that use a directory. */
import { checkBoolean, checkWord, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat, type StatResult } from '../kernel/stat.js';
import { ask, run, runSync, type Task } from '../kernel/task.js';
import { checkNamespace, type Namespace, type NamespaceLike } from '../namespaces/mount-namespace.js';
import { isAbsolute, type Path, type PathLike, toAbsolute, toBytes, toPath, withoutTrailingSlashes } from '../paths.js';
import { option, text } from '../text.js';
import { type Encoding, entryMaker, type MountEntry } from './entry.js';
import { layersOf } from './layers-of.js';
import type { RawMount } from './raw-mount.js';
import { findRaw, listRaw, type TableWay } from './table.js';

/** Selects the mounts that meet all of these conditions. */
export interface MountFilter {
  /** One type of file system, or several: `'overlay'`. */
  type?: string | readonly string[];
  /** A path: selects the mounts at it or below it. The table holds paths without symbolic links. */
  target?: PathLike;
  /**
   * A directory: selects the overlays that have it as a layer or as their workdir. The library compares its path with
   * the paths in the table and, if a path there leads to a directory, device and inode.
   */
  layer?: PathLike;
  /**
   * The mount namespace. Needs CAP_SYS_ADMIN over it. Without that capability `/proc/PID/ns/mnt` works, and selects the
   * view of that process. Default: the calling thread's.
   */
  namespace?: NamespaceLike;
  /** `'buffer'` for paths as Buffers, which lose no byte. Default `'utf8'`. */
  encoding?: Encoding;
}

/** The options of findMount. */
export interface FindMountOptions {
  /** True if the path must be the mount point itself. Default false. */
  exact?: boolean;
  /** The mount namespace, as for `listMounts`. The path must then be absolute. */
  namespace?: NamespaceLike;
  /** `'buffer'` for paths as Buffers, which lose no byte. Default `'utf8'`. */
  encoding?: Encoding;
}

type Checked<T> = Omit<T, 'namespace' | 'encoding'> & { namespace: Namespace | undefined; encoding: Encoding };

const filterNames: ReadonlySet<string> = new Set(['type', 'target', 'layer', 'namespace', 'encoding']);
const findNames: ReadonlySet<string> = new Set(['exact', 'namespace', 'encoding']);

function checkCommon<T extends { namespace?: NamespaceLike; encoding?: Encoding }>(
  given: T | undefined,
  name: string,
  names: ReadonlySet<string>,
): Checked<T> {
  const { namespace, encoding, ...rest } = toOptions(given, names, name);
  return {
    ...rest,
    namespace: checkNamespace(namespace),
    encoding: checkWord(encoding, 'encoding', ['utf8', 'buffer'] as const) ?? 'utf8',
  };
}

function toTypes(value: unknown): ReadonlySet<string> | undefined {
  if (value === undefined) return undefined;
  const types = typeof value === 'string' ? [value] : value;
  if (!Array.isArray(types) || types.some((type) => typeof type !== 'string')) {
    throw invalidArgumentType('type', 'a string or an array of strings', value);
  }
  return new Set(types);
}

/** Returns a path as raw mounts have it: one character for each byte, and `/a/./b//` as `/a/b`. */
function toRaw(path: Path): string {
  const raw = Buffer.from(toBytes(path)).toString('latin1');
  const names = raw.split('/').filter((name) => name !== '' && name !== '.');
  return `/${names.join('/')}`;
}

const rawPath = (value: PathLike | undefined, name: string): string | undefined =>
  value === undefined ? undefined : toRaw(toAbsolute(toPath(value, name)));

function isAtOrBelow(path: string, directory: string): boolean {
  return directory === '/' || path === directory || path.startsWith(`${directory}/`);
}

const identityOf = ({ errno, device, inode }: StatResult): string | undefined =>
  errno === 0 ? `${device}:${inode}` : undefined;

/** Returns true if the library may look up a path of the table. In /proc/self it would find its own files instead. */
const isComparable = (path: string): boolean => path.startsWith('/') && !/^\/proc\/(self|thread-self)\//.test(path);

/** Returns the overlays that use a directory: by path and, in the namespace of the caller, by device and inode. */
function* withLayer(
  mounts: readonly RawMount[],
  layer: string,
  namespace: Namespace | undefined,
): Task<readonly RawMount[]> {
  const layers = mounts.map(({ options }) => layersOf(options));
  const isSame = new Set([layer]);
  if (namespace === undefined) {
    const paths = [...new Set([layer, ...layers.flat()])].filter(isComparable);
    const plan = new Plan();
    const looks = paths.map((path) => addStat(plan, Buffer.from(path, 'latin1')));
    const outcome = yield* ask(plan);
    const identities = looks.map((look) => identityOf(readStat(look, outcome)));
    const [own] = identities;
    if (own !== undefined) {
      paths.forEach((path, i) => {
        if (identities[i] === own) isSame.add(path);
      });
    }
  }
  return mounts.filter((_, i) => layers[i]?.some((path) => isSame.has(withoutTrailingSlashes(path) as string)));
}

function list(filter: MountFilter | undefined, way?: TableWay): Task<MountEntry<string | Buffer>[]> {
  const { namespace, encoding, ...wanted } = checkCommon(filter, 'filter', filterNames);
  const types = toTypes(wanted.type);
  const target = rawPath(wanted.target, 'target');
  const layer = rawPath(wanted.layer, 'layer');
  const isOverlay = layer !== undefined;
  const select =
    types === undefined && target === undefined && !isOverlay
      ? undefined
      : (mount: RawMount): boolean =>
          (types === undefined || types.has(mount.type)) &&
          (!isOverlay || mount.type === 'overlay') &&
          (target === undefined || isAtOrBelow(mount.target, target));
  return (function* () {
    const found = yield* listRaw({ namespace, select, way });
    const mounts = layer === undefined ? found : yield* withLayer(found, layer, namespace);
    return mounts.map(entryMaker(encoding));
  })();
}

function find(
  path: PathLike,
  options: FindMountOptions | undefined,
  way?: TableWay,
): Task<MountEntry<string | Buffer> | undefined> {
  const given = toPath(path, 'path');
  const { namespace, encoding, exact } = checkCommon(options, 'options', findNames);
  const isExact = checkBoolean(exact, 'exact') ?? false;
  if (namespace !== undefined && !isAbsolute(given)) {
    throw invalidArgumentValue('path', path, text`must be an absolute path when ${option('namespace')} is given`);
  }
  // A thread of the library may have another working directory.
  const query = { path: toAbsolute(given), namespace, isExact, way };
  return (function* () {
    const mount = yield* findRaw(query);
    return mount && entryMaker(encoding)(mount);
  })();
}

/** @internal */
export function listMountsWith(way: TableWay, filter?: MountFilter): MountEntry<string | Buffer>[] {
  return runSync(list(filter, way));
}

/** @internal */
export function findMountWith(
  way: TableWay,
  path: PathLike,
  options?: FindMountOptions,
): MountEntry<string | Buffer> | undefined {
  return runSync(find(path, options, way));
}

/**
 * Returns the mounts that the calling thread sees, or those of another mount namespace, in the order in which they were
 * made. Reads them with listmount(2) and statmount(2) from Linux 6.13 on, where these report everything, and from
 * proc_pid_mountinfo(5) before.
 *
 * @throws {OverlayError} `'namespace-missing'`, `'namespace-denied'`, and `'proc-missing'` if there is no /proc.
 */
export async function listMounts(filter: MountFilter & { encoding: 'buffer' }): Promise<MountEntry<Buffer>[]>;
export async function listMounts(filter?: MountFilter & { encoding?: 'utf8' }): Promise<MountEntry[]>;
export async function listMounts(filter?: MountFilter): Promise<MountEntry<string | Buffer>[]>;
export async function listMounts(filter?: MountFilter): Promise<MountEntry<string | Buffer>[]> {
  return await run(list(filter));
}

/** The synchronous form of `listMounts`. */
export function listMountsSync(filter: MountFilter & { encoding: 'buffer' }): MountEntry<Buffer>[];
export function listMountsSync(filter?: MountFilter & { encoding?: 'utf8' }): MountEntry[];
export function listMountsSync(filter?: MountFilter): MountEntry<string | Buffer>[];
export function listMountsSync(filter?: MountFilter): MountEntry<string | Buffer>[] {
  return runSync(list(filter));
}

/**
 * Returns the mount that holds a path. The path may be the mount point or anything inside; symbolic links are followed.
 * If mounts are stacked there, returns the top one. Returns undefined if the mount is in no table, or, with `exact`, if
 * the path is not a mount point. From Linux 6.13 on this reads one mount, with statx(2) and statmount(2), no matter how
 * many there are. Before, it reads the whole table.
 *
 * @throws {OverlayError} `'path-missing'`, `'path-inaccessible'`; for `namespace` as `listMounts`.
 */
export async function findMount(
  path: PathLike,
  options: FindMountOptions & { encoding: 'buffer' },
): Promise<MountEntry<Buffer> | undefined>;
export async function findMount(
  path: PathLike,
  options?: FindMountOptions & { encoding?: 'utf8' },
): Promise<MountEntry | undefined>;
export async function findMount(
  path: PathLike,
  options?: FindMountOptions,
): Promise<MountEntry<string | Buffer> | undefined>;
export async function findMount(
  path: PathLike,
  options?: FindMountOptions,
): Promise<MountEntry<string | Buffer> | undefined> {
  return await run(find(path, options));
}

/** The synchronous form of `findMount`. */
export function findMountSync(
  path: PathLike,
  options: FindMountOptions & { encoding: 'buffer' },
): MountEntry<Buffer> | undefined;
export function findMountSync(
  path: PathLike,
  options?: FindMountOptions & { encoding?: 'utf8' },
): MountEntry | undefined;
export function findMountSync(path: PathLike, options?: FindMountOptions): MountEntry<string | Buffer> | undefined;
export function findMountSync(path: PathLike, options?: FindMountOptions): MountEntry<string | Buffer> | undefined {
  return runSync(find(path, options));
}
