/**
 * Searches /proc for the holders of a mount, after an unmount has failed or when a caller asks. The mount's id from
 * statx(2) shows what is in the mount; the text of a path does not.
 */
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import type { Holder, Holders } from '../holder.js';
import * as k from '../kernel/constants.js';
import { Plan, type Step } from '../kernel/plan.js';
import { collect } from '../kernel/slices.js';
import { addStat, readMountId, readStat, type StatResult } from '../kernel/stat.js';
import type { Task } from '../kernel/task.js';
import { findOption, findOptions, shownLayers, splitLowerdir } from '../mount-strings.js';
import { isUniqueId, type Mounted } from '../mount-table/identity.js';
import type { MountinfoLine } from '../mount-table/mountinfo.js';
import type { RawMount } from '../mount-table/raw-mount.js';
import { addJoin } from '../namespaces/mount-namespace.js';
import { isAbsolute, isAtOrBelow, type Path, pathString, splitPath, toBytes } from '../paths.js';
import { findKept, type KeptMount } from './kept-namespaces.js';
import { findNamespaces, listProcesses, type Namespace, pathIn, readNamespaces } from './namespaces.js';
import { attempt, Patience } from './patience.js';
import { commandOf, findUsers, type Sockets, type Via, type Wanted } from './processes.js';

/** Paths to look at, each with the value to return when the path is in one of the mounts. */
type Places<T> = readonly (readonly [path: Path, say: T])[];

/** The most places in one native call. */
const MOST_PLACES = 250;

/** Returns the values of those places that are in one of the mounts. */
function* placesIn<T>(places: Places<T>, ids: Wanted['ids'], patience: Patience): Task<[say: T, via: Via][]> {
  const found: [say: T, via: Via][] = [];
  for (let start = 0; start < places.length; start += MOST_PLACES) {
    if (patience.isLate()) break;
    const some = places.slice(start, start + MOST_PLACES);
    const plan = new Plan();
    const steps = some.map(
      ([path]): Step => addStat(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW, mask: k.STATX_MNT_ID }),
    );
    const outputs = yield* patience.look(plan);
    some.forEach(([, say], i) => {
      const step = steps[i] as Step;
      const via = outputs.result(step) < 0 ? undefined : ids.get(readMountId(step, outputs));
      if (via !== undefined) found.push([say, via]);
    });
  }
  return found;
}

/** The mount that the search is about. */
interface Held {
  readonly workdir: Path | undefined;
  /** Its id in the mount tables; undefined when it is no longer in any table. */
  readonly tableId: number | undefined;
  /** The device number as the mount tables write it; undefined when unknown. */
  readonly device: string | undefined;
  /** The same as statx(2) reports it. */
  readonly number: number | undefined;
}

function* lookAt({ path, id, device, namespace, workdir }: Mounted, flags: number, patience: Patience): Task<Held> {
  const plan = new Plan();
  if (namespace !== undefined) addJoin(plan, namespace);
  const look = (mask: number) => addStat(plan, path, { flags, mask });
  const [reused, unique] = [look(k.STATX_MNT_ID), look(k.STATX_MNT_ID_UNIQUE)];
  const outputs = yield* patience.look(plan);
  const found: StatResult = readStat(reused, outputs);
  const idThere = id !== undefined && isUniqueId(id) ? readStat(unique, outputs).mountId : found.mountId;
  const isThere = found.errno === 0 && (id === undefined || id === idThere);
  const number = isThere ? found.device : device;
  return {
    workdir,
    tableId: isThere ? found.mountId : undefined,
    number,
    device: number === undefined ? undefined : `${Math.floor(number / 2 ** 32)}:${number % 2 ** 32}`,
  };
}

/** A mount in the table of a namespace. */
type Row = readonly [row: MountinfoLine, namespace: Namespace];

/** Returns the overlays in all tables. */
function* overlaysIn(namespaces: readonly Namespace[]): Task<Row[]> {
  const rows: Row[] = [];
  for (const namespace of namespaces) {
    const overlays = yield* collect(namespace.table, (row): Row | undefined =>
      row.type === 'overlay' ? [row, namespace] : undefined,
    );
    for (const row of overlays) rows.push(row);
  }
  return rows;
}

const toBuffer = (bytes: string): Buffer => Buffer.from(bytes, 'latin1');
const shownPath = (bytes: string): string => pathString(toBuffer(bytes));

const inNamespace = ({ inode }: Namespace): Via => (inode === undefined ? {} : { namespace: inode });

/**
 * Returns true for another mount of the same overlay. Each overlay is a file system of its own, so the device number
 * identifies it. After the overlay has ended, another may have the number; the workdir then tells the two apart.
 */
const isCopy = (
  { tableId, device, workdir }: Held,
  mount: Pick<MountinfoLine, 'type' | 'device' | 'id'>,
  options: string,
): boolean =>
  mount.type === 'overlay' &&
  mount.device === device &&
  mount.id !== tableId &&
  (tableId !== undefined || workdir === undefined || showsWorkdir(options, workdir));

function showsWorkdir(options: string, workdir: Path): boolean {
  const shown = findOption(toBuffer(options), 'workdir');
  return shown !== undefined && shownLayers(shown).some((path) => path.equals(toBytes(workdir)));
}

/** Returns the mounts inside the mounts, at any depth. */
export function* mountsInside(namespaces: readonly Namespace[], ids: Wanted['ids']): Task<Holder[]> {
  const children = new Map<number, MountinfoLine[]>();
  for (const { table } of namespaces) {
    yield* collect(table, (row): undefined => {
      // At the root of the mount table, a mount may be its own parent.
      if (row.parent === row.id) return;
      const siblings = children.get(row.parent);
      if (siblings === undefined) children.set(row.parent, [row]);
      else siblings.push(row);
    });
  }
  const holders: Holder[] = [];
  for (const [id, via] of ids) {
    const found = [...(children.get(id) ?? [])];
    // The list grows during the iteration.
    const inside = yield* collect(found, (row): Holder => {
      for (const child of children.get(row.id) ?? []) found.push(child);
      return { what: 'inside', path: shownPath(row.target), ...via };
    });
    for (const holder of inside) holders.push(holder);
  }
  return holders;
}

//   0000000000000000: 00000002 00000000 00010000 0001 01 26071 /run/socket
const boundSocket = /^\S+ \S+ \S+ \S+ \S+ \S+ +(\d+) ([^@].*)$/;

interface Bound {
  readonly inode: number;
  readonly path: string;
}

/**
 * Returns the places of sockets that were bound by a relative path. It begins in a directory that the kernel does not
 * tell, most likely the working directory of a process that has the socket open.
 */
function* placeRelative(
  names: ReadonlyMap<number, string>,
  pids: readonly number[],
  patience: Patience,
): Task<[Path, Bound][]> {
  const left = new Set(names.keys());
  const places: [Path, Bound][] = [];
  for (const pid of left.size === 0 ? [] : pids) {
    if (left.size === 0 || patience.isLate()) break;
    for (const descriptor of attempt(() => readdirSync(`/proc/${pid}/fd`)) ?? []) {
      const link = attempt(() => readlinkSync(`/proc/${pid}/fd/${descriptor}`)) ?? '';
      const inode = Number(/^socket:\[(\d+)\]$/.exec(link)?.[1]);
      if (!left.has(inode)) continue;
      const path = toBuffer(`/proc/${pid}/cwd/${names.get(inode)}`);
      if (attempt(() => lstatSync(path))?.isSocket() !== true) continue;
      left.delete(inode);
      const directory = attempt(() => readlinkSync(`/proc/${pid}/cwd`, 'latin1')) ?? '';
      places.push([path, { inode, path: shownPath(`${directory}/${names.get(inode)}`) }]);
    }
    yield* patience.pause();
  }
  if (left.size > 0) patience.isPartial = true;
  return places;
}

/** Returns the sockets that are bound in one of the mounts: unix(7), found by the path that they were bound with. */
function* findSockets(pids: readonly number[], ids: Wanted['ids'], patience: Patience): Task<Sockets> {
  const places: [Path, Bound][] = [];
  const relative = new Map<number, string>();
  for (const namespace of yield* findNamespaces('net', pids, patience)) {
    if (patience.isLate()) break;
    const text = attempt(() => readFileSync(`/proc/${namespace.pid}/net/unix`, 'latin1'));
    for (const line of text?.split('\n') ?? []) {
      const [, number, name = ''] = boundSocket.exec(line) ?? [];
      if (number === undefined) continue;
      const inode = Number(number);
      if (isAbsolute(name)) places.push([pathIn(namespace, toBuffer(name)), { inode, path: shownPath(name) }]);
      else relative.set(inode, name);
    }
    yield* patience.pause();
  }
  places.push(...(yield* placeRelative(relative, pids, patience)));
  const found = yield* placesIn(places, ids, patience);
  return new Map(found.map(([{ inode, path }, via]) => [inode, { path, ...via }]));
}

const REMOVED = ' (deleted)';

/** Returns the files in one of the mounts that back loop devices, as loop(4) reports in /sys. */
function* findLoops(ids: Wanted['ids'], patience: Patience): Task<Holder[]> {
  const names = attempt(() => readdirSync('/sys/block'));
  if (names === undefined) patience.isPartial = true;
  const places = (names ?? []).flatMap((name): [Path, { device: string; path: string }][] => {
    if (!name.startsWith('loop')) return [];
    const text = attempt(() => readFileSync(`/sys/block/${name}/loop/backing_file`, 'latin1'))?.slice(0, -1);
    if (text === undefined || !isAbsolute(text)) return [];
    const say = { device: `/dev/${name}`, path: shownPath(text) };
    if (!text.endsWith(REMOVED)) return [[toBuffer(text), say]];
    // A removed file is in the mount that its directory is in.
    const [directory] = splitPath(toBuffer(text.slice(0, -REMOVED.length)));
    if (attempt(() => lstatSync(Buffer.from(toBytes(directory)))) === undefined) patience.isPartial = true;
    return [[directory, say]];
  });
  const found = yield* placesIn(places, ids, patience);
  return found.map(([loop, via]) => ({ what: 'loop', ...loop, ...via }));
}

/** Returns the files in one of the mounts to which the kernel swaps: proc_swaps(5). */
function* findSwaps(ids: Wanted['ids'], patience: Patience): Task<Holder[]> {
  const lines = attempt(() => readFileSync('/proc/swaps', 'latin1'))?.split('\n') ?? [];
  const places = lines.flatMap((line): [Path, string][] => {
    const [, name] = /^(\/\S+) +file\b/.exec(line.replaceAll('\t', ' ')) ?? [];
    if (name === undefined) return [];
    const path = name.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
    return [[toBuffer(path), shownPath(path)]];
  });
  const found = yield* placesIn(places, ids, patience);
  return found.map(([path, via]) => ({ what: 'swap', path, ...via }));
}

/** Returns the layers that a line of the mount table may refer to. */
function layersOf({ superOptions }: MountinfoLine): Buffer[] {
  const options = toBuffer(superOptions);
  const values = (name: string) => findOptions(options, name);
  const single = ['upperdir', 'lowerdir+', 'datadir+'].flatMap(values);
  const layers = [...values('lowerdir').flatMap(splitLowerdir), ...single.flatMap(shownLayers)];
  const byText = new Map(layers.filter(isAbsolute).map((layer) => [layer.toString('latin1'), layer]));
  return [...byText.values()];
}

/** Returns the overlays that have a layer in one of the mounts. */
function* findLayers(
  overlays: readonly Row[],
  { path }: Mounted,
  held: Held,
  ids: Wanted['ids'],
  patience: Patience,
): Task<Holder[]> {
  const others = overlays.filter(([row]) => row.device !== held.device);
  const holders: Holder[] = [];
  for (const [row, namespace] of others) {
    if (patience.isLate()) break;
    const layers = layersOf(row);
    const say = (layer: Path): Holder => ({
      what: 'layer',
      path: shownPath(row.target),
      layer: pathString(layer),
      ...inNamespace(namespace),
    });
    if (held.tableId === undefined) {
      // The mount is no longer in any table, so only the text of a path shows if a layer was inside it.
      const below = namespace.inode === undefined ? layers.filter((layer) => isAtOrBelow(layer, path)) : [];
      holders.push(...below.map(say));
    } else {
      const places = layers.map((layer): [Path, Path] => [pathIn(namespace, layer), layer]);
      for (const [layer, via] of yield* placesIn(places, ids, patience)) holders.push({ ...say(layer), ...via });
      // A layer may be in the mount although its path leads nowhere there: the mount has been unmounted in that namespace.
      for (const [place, layer] of namespace.inode === undefined ? [] : places) {
        if (isAtOrBelow(layer, path) && attempt(() => lstatSync(Buffer.from(toBytes(place)))) === undefined) {
          holders.push(say(layer));
        }
      }
    }
    yield* patience.pause();
  }
  return holders;
}

/** Returns one holder for each keeper of the mount's namespace. */
function keptHolders({ mount, inode, keepers }: KeptMount): Holder[] {
  const holder: Holder = { what: 'namespace', path: shownPath(mount.target), namespace: inode };
  if (keepers.length === 0) return [holder];
  return keepers.map(({ pid, descriptor, boundAt }) => ({
    ...holder,
    ...(pid !== undefined && { pid, command: commandOf(pid) }),
    ...(descriptor !== undefined && { descriptor }),
    ...(boundAt !== undefined && { boundAt }),
  }));
}

interface Extent {
  /** `'busy'`: what makes the mount busy. `'all'`: everything that keeps its file system alive. */
  readonly scope: 'busy' | 'all';
  /** In ms. */
  readonly limit: number;
  /** The AT_* flags with which the mount's path is looked at. */
  readonly flags: number;
}

export function* searchHolders(mounted: Mounted, { scope, limit, flags }: Extent): Task<Holders> {
  const patience = new Patience(limit);
  const { ids: pids, leaders } = listProcesses(patience);
  const held = yield* lookAt(mounted, flags, patience);
  const namespaces = yield* readNamespaces(pids, patience);
  const overlays = yield* overlaysIn(namespaces);
  const copies = overlays.filter(([row]) => isCopy(held, row, row.superOptions));
  const isKeptCopy = (mount: RawMount) => isCopy(held, mount, mount.options);
  // Namespaces without a process can be told apart only when all namespaces of processes are known.
  const isKnown = !patience.isLate();
  const kept = scope === 'all' && isKnown ? yield* findKept(pids, namespaces, isKeptCopy, patience) : [];

  // The kernel reuses the ids in the tables, but not while the mount is held.
  const ids = new Map<number, Via>();
  if (held.tableId !== undefined) ids.set(held.tableId, {});
  for (const [{ id, target }, namespace] of copies) ids.set(id, { copy: shownPath(target), ...inNamespace(namespace) });
  for (const { mount, inode } of kept) ids.set(mount.id, { copy: shownPath(mount.target), namespace: inode });
  const isOverlay = overlays.some(([row]) => row.device === held.device);
  const device = scope === 'all' && isOverlay && held.tableId !== undefined ? held.number : undefined;
  const wanted: Wanted[] = ids.size > 0 ? [{ mask: k.STATX_MNT_ID, ids, device }] : [];
  const { id } = mounted;
  if (held.tableId === undefined && id !== undefined) {
    if (isUniqueId(id)) wanted.push({ mask: k.STATX_MNT_ID_UNIQUE, ids: new Map([[id, {}]]) });
    else wanted.push({ mask: k.STATX_MNT_ID, ids: new Map([[id, {}]]) });
  }
  const devices = new Map<string, Via>(isOverlay || held.tableId === undefined ? [[toHex(held.device), {}]] : []);

  const holders = yield* mountsInside(namespaces, ids);
  const sockets = yield* findSockets(pids, ids, patience);
  holders.push(...(yield* findLoops(ids, patience)), ...(yield* findSwaps(ids, patience)));
  const users = yield* findUsers(pids, wanted, sockets, devices, patience);
  holders.unshift(...users.holders);
  if (scope === 'all') {
    for (const [{ target }, { inode, pid }] of copies) {
      holders.push({
        what: 'mount',
        path: shownPath(target),
        ...(inode !== undefined && { pid, command: commandOf(pid), namespace: inode }),
      });
    }
    holders.push(...kept.flatMap(keptHolders));
    holders.push(...(yield* findLayers(overlays, mounted, held, ids, patience)));
  }
  const hidden = users.hidden.size;
  const named = choose(holders, scope).map((holder) => {
    const pid = leaders.get(holder.pid ?? 0);
    return pid === undefined ? holder : { ...holder, pid };
  });
  return Object.assign(named, { hidden, complete: !patience.wasLate && !patience.isPartial });
}

/**
 * Selects the holders that make the mount busy: those of the mount itself. Without any, it keeps those of the copies,
 * which count on shared mounts.
 */
function choose(holders: Holder[], scope: Extent['scope']): Holder[] {
  const own = holders.filter(({ copy }) => copy === undefined);
  return scope === 'busy' && own.length > 0 ? own : holders;
}

/** Returns a device number as /proc/PID/maps writes it. */
function toHex(device = ''): string {
  return device
    .split(':')
    .map((part) => Number(part).toString(16).padStart(2, '0'))
    .join(':');
}
