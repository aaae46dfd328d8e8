/** Performs the mounts that a snapshotter has returned, and takes them back. */
import { mkdirSync } from 'node:fs';
import { checkMilliseconds, checkSignal, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue, OverlayError } from '../errors.js';
import { inEitherForm, run, runSync, type Task } from '../kernel/task.js';
import { type BindOptions, bind, bindDetached, bindSync } from '../mounts/bind.js';
import type { Mount } from '../mounts/mount.js';
import { unmount, unmountSync } from '../mounts/unmount-path.js';
import type { OverlayOptions } from '../options/check.js';
import type { IdMapping } from '../options/idmap.js';
import { readGiven } from '../options/text.js';
import { mountOverlay, mountOverlaySync, type OverlayMount } from '../overlay/mount.js';
import { isAtOrBelow, joinPath, type Path, type PathLike, quotePath, toAbsolute, toPath, toReal } from '../paths.js';
import { member, text } from '../text.js';
import { parseMapping } from './labels.js';
import type { SnapshotMount } from './mounts.js';
import { makeTemporary, removeTemporary } from './temporary.js';

/** Flags of mount(8) that are attributes of a mount, and those that only undo them. */
const attributes: Readonly<Record<string, Partial<BindOptions>>> = {
  ro: { readonly: true },
  nosuid: { nosuid: true },
  nodev: { nodev: true },
  noexec: { noexec: true },
  nosymfollow: { nosymfollow: true },
  nodiratime: { nodiratime: true },
  noatime: { atime: 'noatime' },
  relatime: { atime: 'relatime' },
  strictatime: { atime: 'strictatime' },
};
const opposites: Readonly<Record<string, readonly string[]>> = {
  rw: ['readonly'],
  suid: ['nosuid'],
  dev: ['nodev'],
  exec: ['noexec'],
  symfollow: ['nosymfollow'],
  diratime: ['nodiratime'],
  atime: ['atime'],
  defaults: [],
};

/** A mount as the core takes it, without its place. */
type Parsed =
  | { readonly type: 'bind'; readonly source: Path; readonly options: BindOptions }
  | { readonly type: 'overlay'; readonly options: OverlayOptions };

interface Split {
  readonly attributes: Record<string, unknown>;
  readonly uids: IdMapping[];
  readonly gids: IdMapping[];
  /** The options of the file system. */
  readonly rest: readonly string[];
}

const toMappings = (value: string, name: string, ids: 'uid' | 'gid'): IdMapping[] =>
  parseMapping(value, name).map((mapping) => ({ ...mapping, ids }));

/** Takes the options apart; the last one counts where two contradict each other. */
function split(options: readonly string[]): Split {
  const found: Split = { attributes: {}, uids: [], gids: [], rest: [] };
  const rest: string[] = [];
  for (const option of options) {
    if (Object.hasOwn(attributes, option)) Object.assign(found.attributes, attributes[option]);
    else if (Object.hasOwn(opposites, option)) {
      for (const name of opposites[option] as readonly string[]) delete found.attributes[name];
    } else if (option.startsWith('uidmap=')) found.uids.push(...toMappings(option.slice(7), 'uidmap', 'uid'));
    else if (option.startsWith('gidmap=')) found.gids.push(...toMappings(option.slice(7), 'gidmap', 'gid'));
    else rest.push(option);
  }
  return { ...found, rest };
}

function toIdMap({ uids, gids }: Split, name: string): { idmap?: IdMapping[] } {
  if (uids.length === 0 && gids.length === 0) return {};
  if (uids.length > 0 && gids.length > 0) return { idmap: [...uids, ...gids] };
  throw invalidArgumentValue(name, uids.length > 0 ? 'uidmap' : 'gidmap', 'must have both uidmap= and gidmap=');
}

function parseBind(source: Path, parts: Split, name: string): Parsed {
  const [unknown] = parts.rest.filter((option) => option !== 'bind' && option !== 'rbind');
  if (unknown !== undefined) throw invalidArgumentValue(name, unknown, 'has an option that no bind has');
  const recursive = parts.rest.includes('rbind');
  return { type: 'bind', source, options: { ...parts.attributes, ...toIdMap(parts, name), recursive } };
}

const toPlace = (path: string, name: string): Path => toAbsolute(toPath(path, name));

/** The layers are literal: colons separate lower ones, and nothing is escaped. */
function parseOverlay(parts: Split, name: string): Parsed {
  const layers: { lowerdir: Path[]; upperdir?: Path; workdir?: Path } = { lowerdir: [] };
  const others: { name: string; value: Buffer | null }[] = [];
  for (const option of parts.rest) {
    const at = option.indexOf('=');
    const [key, value] = at < 0 ? [option, null] : [option.slice(0, at), option.slice(at + 1)];
    if (key === 'lowerdir' && value !== null) layers.lowerdir = value.split(':').map((path) => toPlace(path, name));
    else if ((key === 'upperdir' || key === 'workdir') && value !== null) layers[key] = toPlace(value, name);
    else others.push({ name: key, value: value === null ? null : Buffer.from(value) });
  }
  const { options, others: unknown } = readGiven(others);
  const { lowerdir, datadir, ...own } = options;
  const [first] = unknown;
  if (first !== undefined) throw invalidArgumentValue(name, first.name, 'has an option that overlayfs does not have');
  const { idmap } = toIdMap(parts, name);
  const named: OverlayOptions = {
    ...own,
    ...parts.attributes,
    ...layers,
    lowerdir: [...layers.lowerdir, ...lowerdir],
    ...(datadir.length > 0 && { datadir }),
  };
  // Those of the upper are the container's already.
  return { type: 'overlay', options: idmap === undefined ? named : { ...named, idmap: { lowerdir: idmap } } };
}

function parse(mount: SnapshotMount, name: string): Parsed {
  if (typeof mount !== 'object' || mount === null) throw invalidArgumentType(name, 'a mount', mount);
  const { type, source, options = [] } = mount;
  if (!Array.isArray(options) || options.some((option) => typeof option !== 'string')) {
    throw invalidArgumentType(`${name}.options`, 'a list of strings', options);
  }
  const parts = split(options);
  if (type === 'overlay') return parseOverlay(parts, `${name}.options`);
  if (type !== 'bind' && !parts.rest.some((option) => option === 'bind' || option === 'rbind')) {
    throw invalidArgumentValue(`${name}.type`, type, "must be 'bind' or 'overlay'");
  }
  if (typeof source !== 'string') throw invalidArgumentType(`${name}.source`, 'a string', source);
  return parseBind(toPlace(source, `${name}.source`), parts, `${name}.options`);
}

function parseAll(mounts: readonly SnapshotMount[]): Parsed[] {
  if (!Array.isArray(mounts)) throw invalidArgumentType('mounts', 'a list of mounts', mounts);
  return Array.from(mounts, (mount, i) => parse(mount, `mounts[${i}]`));
}

/** Returns the place of a mount below the target. A link in the way must not lead out of it. */
function placeOf({ target: inside }: SnapshotMount, target: Path, name: string): Path {
  if (inside === undefined || inside === '' || inside === '/') return target;
  if (typeof inside !== 'string') throw invalidArgumentType(`${name}.target`, 'a path below the target', inside);
  const place = joinPath(target, inside.replace(/^\/+/, ''));
  if (inside.split('/').includes('..') || !isAtOrBelow(toReal(place), toReal(target))) {
    throw invalidArgumentValue(`${name}.target`, inside, `must stay below the target ${quotePath(target)}`);
  }
  return place;
}

const mountOptions: ReadonlySet<string> = new Set(['signal']);

export interface MountAllOptions {
  /** Aborts the mounts: those that have been made are unmounted again. */
  signal?: AbortSignal;
}

function perform(parsed: Parsed, place: Path, stack: boolean, signal: AbortSignal | undefined): Task<Mount> {
  const more = { stack, ...(signal && { signal }) };
  if (parsed.type === 'bind') {
    const options = { ...parsed.options, ...more };
    return inEitherForm(
      () => bind(parsed.source, place, options),
      () => bindSync(parsed.source, place, options),
    );
  }
  const options = { ...parsed.options, target: place, ...more };
  return inEitherForm<Mount>(
    () => mountOverlay(options),
    () => mountOverlaySync(options),
  );
}

/** Takes back a mount that was just made. `detach`: with those that a recursive bind has brought along. */
const end = (mount: Mount, detach: boolean): Task<void> =>
  inEitherForm(
    () => mount.unmount({ detach }),
    () => mount.unmountSync({ detach }),
  );

function* performAll(
  mounts: readonly SnapshotMount[],
  target: PathLike,
  options: MountAllOptions | undefined,
): Task<Mount[]> {
  const parsed = parseAll(mounts);
  const root = toAbsolute(toPath(target, 'target'));
  const signal = checkSignal(toOptions(options, mountOptions).signal);
  const made: { readonly mount: Mount; readonly place: string; readonly detach: boolean }[] = [];
  try {
    for (const [i, one] of parsed.entries()) {
      const place = placeOf(mounts[i] as SnapshotMount, root, `mounts[${i}]`);
      const text = String(place);
      const isOver = made.some((other) => other.place === text);
      const detach = one.type === 'bind' && one.options.recursive === true;
      made.push({ mount: yield* perform(one, place, isOver, signal), place: text, detach });
    }
  } catch (error) {
    for (const { mount, place, detach } of made.reverse()) {
      try {
        yield* end(mount, detach);
      } catch (left) {
        (error as Error).message += ` The mount at ${quotePath(place)} is still there: ${(left as Error).message}`;
      }
    }
    throw error;
  }
  return made.map(({ mount }) => mount);
}

/**
 * Performs mounts in their order, at `target` or below it, as containerd's `mount.All`: mountOverlay and bind. Either
 * all are made, or none is left. `unmountAll` takes them back.
 *
 * @throws {TypeError} an option is none that the mount can have
 * @throws {OverlayError} as `mountOverlay` and `bind`
 */
export async function mountAll(
  mounts: readonly SnapshotMount[],
  target: PathLike,
  options?: MountAllOptions,
): Promise<Mount[]> {
  return run(performAll(mounts, target, options));
}

/** The synchronous form of `mountAll`. */
export function mountAllSync(mounts: readonly SnapshotMount[], target: PathLike, options?: MountAllOptions): Mount[] {
  return runSync(performAll(mounts, target, options));
}

export interface UnmountAllOptions {
  /** How long to wait for each mount while it is busy, in milliseconds. Default 2,500, as containerd. */
  timeout?: number;
}

const unmountOptions: ReadonlySet<string> = new Set(['timeout']);

/** How long containerd tries to unmount: 50 times, with 50 ms between. */
const PATIENCE = 2500;

const isNone = (error: unknown): boolean =>
  error instanceof OverlayError && (error.reason === 'not-mounted' || error.reason === 'target-missing');

/** Unmounts whatever is at a place, until nothing is. */
function* clear(place: Path, timeout: number): Task<void> {
  try {
    for (;;) {
      yield* inEitherForm(
        () => unmount(place, { timeout }),
        () => unmountSync(place, { timeout }),
      );
    }
  } catch (error) {
    if (!isNone(error)) throw error;
  }
}

function* clearAll(
  mounts: readonly SnapshotMount[],
  target: PathLike,
  options: UnmountAllOptions | undefined,
): Task<void> {
  parseAll(mounts);
  const root = toAbsolute(toPath(target, 'target'));
  const timeout = checkMilliseconds(toOptions(options, unmountOptions).timeout, 'timeout') ?? PATIENCE;
  // From the last to the first: a later mount may lie inside an earlier one.
  for (const [i, mount] of [...mounts.entries()].reverse()) {
    yield* clear(placeOf(mount, root, `mounts[${i}]`), timeout);
  }
}

/**
 * Unmounts what `mountAll` has mounted, the last one first, as containerd's `UnmountMounts`. All that is stacked at each
 * place goes. A place where nothing is mounted, or that does not exist, is no error.
 *
 * @throws {OverlayError} `reason` is `'mount-busy'` when a mount is still in use after `timeout`
 */
export async function unmountAll(
  mounts: readonly SnapshotMount[],
  target: PathLike,
  options?: UnmountAllOptions,
): Promise<void> {
  return run(clearAll(mounts, target, options));
}

/** The synchronous form of `unmountAll`. It blocks the calling thread while a mount is busy. */
export function unmountAllSync(mounts: readonly SnapshotMount[], target: PathLike, options?: UnmountAllOptions): void {
  runSync(clearAll(mounts, target, options));
}

/** Makes a mount that lasts only a moment: it need not leave anything behind that a later one could not use. */
const withoutVolatile = (mount: SnapshotMount): SnapshotMount => ({
  ...mount,
  options: (mount.options ?? []).filter((option) => option !== 'volatile' && option !== 'fsync=volatile'),
});

/** Returns the options of an active snapshot's overlay. */
function overlayOf(mounts: readonly SnapshotMount[], [parsed] = parseAll(mounts)): OverlayOptions {
  if (parsed?.type === 'overlay' && mounts.length === 1) return parsed.options;
  throw invalidArgumentValue('mounts', mounts, 'must be one overlay');
}

/**
 * Mounts the overlay of an active snapshot without a place, for a plain user too. The options are those of `mountOverlay`.
 */
export async function mountDetached(
  mounts: readonly SnapshotMount[],
  more: Pick<OverlayOptions, 'rootless' | 'subIds' | 'nodev'>,
): Promise<OverlayMount> {
  return mountOverlay({ ...overlayOf(mounts), ...more });
}

/** The directories of the overlay of a snapshot. */
export function layersOf(mounts: readonly SnapshotMount[]): { upper: Path; lowers: readonly Path[] } {
  const { upperdir = '', lowerdir } = overlayOf(mounts);
  return { upper: upperdir as Path, lowers: lowerdir as Path[] };
}

/** Returns the options of the overlay with the files of a snapshot. Below one without layers is the empty directory. */
export function toOverlay(mounts: readonly SnapshotMount[], empty: () => Path): OverlayOptions {
  const lasting = mounts.map(withoutVolatile);
  const all = parseAll(lasting);
  const [parsed] = all;
  if (parsed?.type !== 'bind') return overlayOf(lasting, all);
  const { source, options } = parsed;
  if (options.idmap !== undefined) {
    throw invalidArgumentValue(
      'key',
      source,
      text`has an id map, which only a bind mount has: mount it by ${member('mountAll')}`,
    );
  }
  if (options.readonly) return { lowerdir: [source, empty()] };
  return { lowerdir: empty(), upperdir: source, workdir: joinPath(source, '../work') };
}

/** Makes a mount that has no place. */
const performDetached = (parsed: Parsed): Promise<Mount> =>
  parsed.type === 'bind' ? run(bindDetached(parsed.source, parsed.options)) : mountOverlay(parsed.options);

/** Calls a function and then the one that ends, whatever happens. An error of both is the first, and tells of the second. */
export async function ending<T>(perform: () => Promise<T>, end: () => Promise<void>): Promise<T> {
  let result: T;
  try {
    result = await perform();
  } catch (error) {
    await end().catch((left) => {
      (error as Error).message += ` Then: ${(left as Error).message}`;
    });
    throw error;
  }
  await end();
  return result;
}

/**
 * Mounts, calls `fn` with the path of the files, and unmounts. One mount is detached, Linux 5.2: nobody else sees it, it
 * ends with this process at the latest, and its path is `/proc/self/fd/N`. Several go to a temporary directory,
 * which is removed without entering a mount. `volatile` is left out.
 *
 * @throws as `mountAll` and `fn`
 */
export async function withTempMount<T>(
  mounts: readonly SnapshotMount[],
  fn: (path: string) => T | Promise<T>,
): Promise<T> {
  if (!Array.isArray(mounts)) throw invalidArgumentType('mounts', 'a list of mounts', mounts);
  if (typeof fn !== 'function') throw invalidArgumentType('fn', 'a function', fn);
  const lasting = mounts.map((mount, i) => {
    parse(mount, `mounts[${i}]`);
    return withoutVolatile(mount);
  });
  const [first] = lasting;
  if (lasting.length === 1 && first !== undefined && (first.target ?? '') === '') {
    const mount = await performDetached(parse(first, 'mounts[0]'));
    return ending(
      async () => fn(mount.path),
      () => mount.unmount(),
    );
  }
  const temporary = makeTemporary('mounts');
  const target = `${temporary.path}/mounts`;
  let isMounted = false;
  return ending(
    async () => {
      mkdirSync(target, 0o700);
      await mountAll(lasting, target);
      isMounted = true;
      return fn(target);
    },
    async () => {
      if (isMounted) await unmountAll(lasting, target);
      await removeTemporary(temporary);
    },
  );
}
