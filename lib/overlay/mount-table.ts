/** The mount table for callers: what is mounted, what a path is on, and which overlays use a directory. */

import { checkBoolean, checkWord, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue } from '../errors.js';
import { ask, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { addLook, type Found, readLook } from '../kernel/look.js';
import { Plan } from '../kernel/plan.js';
import { checkNamespace, type Namespace, type NamespaceLike } from '../mounts/mount-namespace.js';
import type { RawMount } from '../mounts/raw-mount.js';
import { findRaw, listRaw, type TableWay } from '../mounts/table.js';
import { isAbsolute, type Path, type PathLike, toAbsolute, toBytes, toPath, withoutTrailingSlashes } from '../paths.js';
import { layersOf } from './layers-of.js';
import { type Encoding, entryMaker, type MountEntry } from './mount-entry.js';

/** Which mounts are wanted: those for which all of it holds. */
export interface MountFilter {
  /** The type, or one of several: `'overlay'`. */
  type?: string | readonly string[];
  /** At this path or below it; as the table has it, so without symbolic links. */
  target?: PathLike;
  /**
   * Overlays that have this directory among their layers, or as their workdir. Known by its path in the table and,
   * where that path leads somewhere, by device and inode.
   */
  layer?: PathLike;
  /**
   * The mount namespace, instead of the calling thread's. Needs CAP_SYS_ADMIN over it; without, `/proc/PID/ns/mnt`
   * will do, where the view of that process is then listed.
   */
  namespace?: NamespaceLike;
  /** `'buffer'` for paths as Buffers, which lose no byte. Default `'utf8'`. */
  encoding?: Encoding;
}

/** How to look for the mount of a path. */
export interface FindMountOptions {
  /** Whether the path has to be the mount point itself. Default false. */
  exact?: boolean;
  /** As for `listMounts`; the path then has to be absolute. */
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

/** As raw mounts have it: a character a byte; `/a/./b//` is `/a/b`. */
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

const identityOf = ({ errno, device, inode }: Found): string | undefined =>
  errno === 0 ? `${device}:${inode}` : undefined;

/** What may be looked at: a path of our own process would lead to something else. */
const isComparable = (path: string): boolean => path.startsWith('/') && !/^\/proc\/(self|thread-self)\//.test(path);

/** The overlays that use a directory: by path, and where no namespace is in between by what is there. */
function* withLayer(
  mounts: readonly RawMount[],
  layer: string,
  namespace: Namespace | undefined,
): Dialogue<readonly RawMount[]> {
  const layers = mounts.map(({ options }) => layersOf(options));
  const isSame = new Set([layer]);
  if (namespace === undefined) {
    const paths = [...new Set([layer, ...layers.flat()])].filter(isComparable);
    const plan = new Plan();
    const looks = paths.map((path) => addLook(plan, Buffer.from(path, 'latin1')));
    const outcome = yield* ask(plan);
    const identities = looks.map((look) => identityOf(readLook(look, outcome)));
    const [own] = identities;
    if (own !== undefined) {
      paths.forEach((path, i) => {
        if (identities[i] === own) isSame.add(path);
      });
    }
  }
  return mounts.filter((_, i) => layers[i]?.some((path) => isSame.has(withoutTrailingSlashes(path) as string)));
}

function list(filter: MountFilter | undefined, way?: TableWay): Dialogue<MountEntry<string | Buffer>[]> {
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
): Dialogue<MountEntry<string | Buffer> | undefined> {
  const given = toPath(path, 'path');
  const { namespace, encoding, exact } = checkCommon(options, 'options', findNames);
  const isExact = checkBoolean(exact, 'exact') ?? false;
  if (namespace !== undefined && !isAbsolute(given)) {
    throw invalidArgumentValue('path', path, 'must be an absolute path where "namespace" is given');
  }
  // A thread of ours may have another working directory.
  const query = { path: toAbsolute(given), namespace, isExact, way };
  return (function* () {
    const mount = yield* findRaw(query);
    return mount && entryMaker(encoding)(mount);
  })();
}

/** @internal */
export function listMountsWith(way: TableWay, filter?: MountFilter): MountEntry<string | Buffer>[] {
  return holdSync(list(filter, way));
}

/** @internal */
export function findMountWith(
  way: TableWay,
  path: PathLike,
  options?: FindMountOptions,
): MountEntry<string | Buffer> | undefined {
  return holdSync(find(path, options, way));
}

/**
 * The mounts that the calling thread sees, or those of another mount namespace, in the order in which they were
 * made: listmount(2) and statmount(2) where these tell everything (6.13), proc_pid_mountinfo(5) below.
 *
 * @throws {OverlayError} `'namespace-missing'`, `'namespace-denied'`, and `'proc-missing'` where there is no /proc.
 */
export async function listMounts(filter: MountFilter & { encoding: 'buffer' }): Promise<MountEntry<Buffer>[]>;
export async function listMounts(filter?: MountFilter & { encoding?: 'utf8' }): Promise<MountEntry[]>;
export async function listMounts(filter?: MountFilter): Promise<MountEntry<string | Buffer>[]>;
export async function listMounts(filter?: MountFilter): Promise<MountEntry<string | Buffer>[]> {
  return await hold(list(filter));
}

/** `listMounts`, on the calling thread. */
export function listMountsSync(filter: MountFilter & { encoding: 'buffer' }): MountEntry<Buffer>[];
export function listMountsSync(filter?: MountFilter & { encoding?: 'utf8' }): MountEntry[];
export function listMountsSync(filter?: MountFilter): MountEntry<string | Buffer>[];
export function listMountsSync(filter?: MountFilter): MountEntry<string | Buffer>[] {
  return holdSync(list(filter));
}

/**
 * The mount that a path is on, be it the mount point or anything inside; symbolic links are followed. Of mounts
 * stacked over each other, the top one. Undefined where the path is on a mount that is in no table, and with
 * `exact` where it is no mount point. From 6.13 on this asks for one mount, statx(2) and statmount(2), however
 * many there are; below, the table is read.
 *
 * @throws {OverlayError} `'path-missing'`, `'path-inaccessible'`; about `namespace` as `listMounts`.
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
  return await hold(find(path, options));
}

/** `findMount`, on the calling thread. */
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
  return holdSync(find(path, options));
}
