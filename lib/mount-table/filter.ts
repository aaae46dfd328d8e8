/** The conditions by which listMounts and watchMounts select mounts. */
import { invalidArgumentType } from '../errors.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat, type StatResult } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import type { Namespace } from '../namespaces/mount-namespace.js';
import { type Path, type PathLike, toAbsolute, toBytes, toPath, withoutTrailingSlashes } from '../paths.js';
import type { Encoding } from './entry.js';
import { layersOf } from './layers-of.js';
import type { RawMount } from './raw-mount.js';

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
  namespace?: PathLike | number;
  /** `'buffer'` for paths as Buffers, which lose no byte. Default `'utf8'`. */
  encoding?: Encoding;
}

export const filterNames: ReadonlySet<string> = new Set(['type', 'target', 'layer', 'namespace', 'encoding']);

/** A filter whose values have been checked. */
export interface Filter {
  /** Undefined if every mount meets the conditions, or may do so. */
  readonly select: ((mount: RawMount) => boolean) | undefined;
  /** A condition for `withLayer`. */
  readonly layer: string | undefined;
}

export function toFilter(given: Pick<MountFilter, 'type' | 'target' | 'layer'>): Filter {
  const types = toTypes(given.type);
  const target = rawPath(given.target, 'target');
  const layer = rawPath(given.layer, 'layer');
  const isOverlay = layer !== undefined;
  if (types === undefined && target === undefined && !isOverlay) return { select: undefined, layer };
  const select = (mount: RawMount): boolean =>
    (types === undefined || types.has(mount.type)) &&
    (!isOverlay || mount.type === 'overlay') &&
    (target === undefined || isAtOrBelow(mount.target, target));
  return { select, layer };
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

/** Returns the overlays that use the filter's layer: by path and, in the caller's namespace, by device and inode. */
export function* withLayer(
  mounts: readonly RawMount[],
  { layer }: Filter,
  namespace: Namespace | undefined,
): Task<readonly RawMount[]> {
  if (layer === undefined) return mounts;
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
