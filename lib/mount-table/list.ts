/** The mount table for callers: all mounts, the mount of a path, and the overlays that use a directory. */
import { checkBoolean, checkWord, toOptions } from '../arguments.js';
import { invalidArgumentValue } from '../errors.js';
import { run, runSync, type Task } from '../kernel/task.js';
import { checkNamespace, type Namespace } from '../namespaces/mount-namespace.js';
import { isAbsolute, type PathLike, toAbsolute, toPath } from '../paths.js';
import { option, text } from '../text.js';
import { type Encoding, entryMaker, type MountEntry } from './entry.js';
import { filterNames, type MountFilter, toFilter, withLayer } from './filter.js';
import { findRaw, listRaw, type TableWay } from './table.js';

/** The options of findMount. */
export interface FindMountOptions {
  /** True if the path must be the mount point itself. Default false. */
  exact?: boolean;
  /** The mount namespace, as for `listMounts`. The path must then be absolute. */
  namespace?: PathLike | number;
  /** `'buffer'` for paths as Buffers, which lose no byte. Default `'utf8'`. */
  encoding?: Encoding;
}

type Checked<T> = Omit<T, 'namespace' | 'encoding'> & { namespace: Namespace | undefined; encoding: Encoding };

const findNames: ReadonlySet<string> = new Set(['exact', 'namespace', 'encoding']);

function checkCommon<T extends { namespace?: PathLike | number; encoding?: Encoding }>(
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

function list(filter: MountFilter | undefined, way?: TableWay): Task<MountEntry<string | Buffer>[]> {
  const { namespace, encoding, ...wanted } = checkCommon(filter, 'filter', filterNames);
  const chosen = toFilter(wanted);
  return (function* () {
    const found = yield* listRaw({ namespace, select: chosen.select, way });
    return (yield* withLayer(found, chosen, namespace)).map(entryMaker(encoding));
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
