/** Layers that show their files with other owners than on disk: idmapped mounts, mount_setattr(2). */
import { isDescriptor, toOptions } from '../arguments.js';
import { invalidArgumentType, invalidArgumentValue, outOfRange, showValue } from '../errors.js';
import type { IdRange } from '../id-range.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import type { Descriptor, Plan, Subject } from '../kernel/plan.js';
import { type Path, splitPath } from '../paths.js';

/** A range of ids on disk (`container`), and the ids that the mount shows for them (`host`). */
export interface IdMapping extends IdRange {
  /** Says that the range maps only users, or only groups. Default: both. */
  readonly ids?: 'uid' | 'gid';
}

/** The ranges, or the file descriptor of a user namespace that has them as its maps. */
export type IdMap = readonly IdMapping[] | number;

/** One map for all layers, or one for the lower layers, including data-only ones, and one for the upperdir. */
export type IdMapOption = IdMap | { lowerdir?: IdMap; upperdir?: IdMap };

/** A map as the plan takes it. */
export type MapSource = { readonly descriptor: number } | { readonly uids: string; readonly gids: string };

export interface CheckedIdMap {
  readonly lower: MapSource | undefined;
  readonly upper: MapSource | undefined;
}

/** The kernel's limits: UID_GID_MAP_MAX_EXTENTS, and -1 is not an id. */
const MAX_RANGES = 340;
const MAX_ID = 0xffff_fffe;

const mappingNames: ReadonlySet<string> = new Set(['container', 'host', 'size', 'ids']);
const partNames: ReadonlySet<string> = new Set(['lowerdir', 'upperdir']);

function checkId(value: unknown, name: string, least: number): number {
  if (typeof value !== 'number') throw invalidArgumentType(name, 'a number', value);
  if (!Number.isInteger(value) || value < least || value > MAX_ID) {
    throw outOfRange(name, `a whole number from ${least} to ${MAX_ID}`, showValue(value));
  }
  return value;
}

function checkMapping(value: unknown, name: string): IdMapping {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidArgumentType(name, 'an object with container, host and size', value);
  }
  const { container, host, size, ids } = toOptions(value as IdMapping, mappingNames, name);
  if (ids !== undefined && ids !== 'uid' && ids !== 'gid') {
    throw invalidArgumentValue(`${name}.ids`, ids, "must be one of 'uid', 'gid'");
  }
  return {
    container: checkId(container, `${name}.container`, 0),
    host: checkId(host, `${name}.host`, 0),
    size: checkId(size, `${name}.size`, 1),
    ...(ids === undefined ? {} : { ids }),
  };
}

function toText(mappings: readonly IdMapping[], ids: 'uid' | 'gid'): string {
  return mappings
    .filter((mapping) => mapping.ids === undefined || mapping.ids === ids)
    .map(({ container, host, size }) => `${container} ${host} ${size}\n`)
    .join('');
}

/** Checks one map. */
export function checkMap(value: unknown, name: string): MapSource {
  if (typeof value === 'number') {
    if (isDescriptor(value)) return { descriptor: value };
    throw outOfRange(name, 'a file descriptor', showValue(value));
  }
  if (!Array.isArray(value)) throw invalidArgumentType(name, 'a list of ranges or a file descriptor', value);
  if (value.length === 0 || value.length > MAX_RANGES) {
    throw outOfRange(name, `a list of 1 to ${MAX_RANGES} ranges`, `${value.length} ranges`);
  }
  const mappings = Array.from(value, (mapping, i) => checkMapping(mapping, `${name}[${i}]`));
  const source = { uids: toText(mappings, 'uid'), gids: toText(mappings, 'gid') };
  if (source.uids === '' || source.gids === '') {
    throw invalidArgumentValue(name, value, 'must have ranges for users and for groups');
  }
  return source;
}

export function checkIdMap(value: unknown, name: string): CheckedIdMap {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    const all = checkMap(value, name);
    return { lower: all, upper: all };
  }
  const { lowerdir, upperdir } = toOptions<{ lowerdir?: unknown; upperdir?: unknown }>(value, partNames, name);
  return {
    lower: lowerdir === undefined ? undefined : checkMap(lowerdir, `${name}.lowerdir`),
    upper: upperdir === undefined ? undefined : checkMap(upperdir, `${name}.upperdir`),
  };
}

/** Returns true if a step gives a layer its map. */
export const isMapping = (args: readonly unknown[]): boolean => ((args[3] as number) & k.MOUNT_ATTR_IDMAP) !== 0;

/** Adds the user namespace that has the map; the caller's, if it has named one by its descriptor. */
export const addMapNamespace = (plan: Plan, source: MapSource): Descriptor =>
  'descriptor' in source ? source.descriptor : plan.add(calls.userns, [source.uids, source.gids]);

/** Adds the step that gives a clone its map: mount_setattr(2). `flags` may be AT_RECURSIVE. */
export function addMapping(plan: Plan, tree: Descriptor, namespace: Descriptor, subject: Subject, flags = 0): void {
  const args = [tree, '', k.AT_EMPTY_PATH | flags, k.MOUNT_ATTR_IDMAP, 0, 0, namespace] as const;
  plan.add(calls.mount_setattr, args, { subject });
}

/** Makes mapped clones of directories for a plan, and namespaces for them. */
export class Mapper {
  readonly #plan: Plan;
  readonly #namespaces = new Map<MapSource, Descriptor>();
  readonly #clones: (readonly [tree: Descriptor, subject: Subject])[] = [];

  constructor(plan: Plan) {
    this.#plan = plan;
  }

  #namespaceOf(source: MapSource): Descriptor {
    const known = this.#namespaces.get(source);
    if (known !== undefined) return known;
    const made = addMapNamespace(this.#plan, source);
    this.#namespaces.set(source, made);
    return made;
  }

  /**
   * Adds a mapped clone of the directory. `open` opens directories in the clone before it is mapped: afterwards the
   * mounting user may have no id there, and then no access to the directories on the path.
   */
  add(path: Path, source: MapSource, subject: Subject, open?: (tree: Descriptor) => void): Descriptor {
    const plan = this.#plan;
    const namespace = this.#namespaceOf(source);
    const tree = plan.add(calls.open_tree, [k.AT_FDCWD, path, k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC], { subject });
    open?.(tree);
    addMapping(plan, tree, namespace, subject);
    this.#clones.push([tree, subject]);
    return tree;
  }

  /**
   * Attaches all clones. Before Linux 6.15 a layer must be attached in the mount namespace in which the overlay is made.
   * The clones go over the root of the plan's own namespace, which no other process sees. The process then counts as
   * chrooted and can make no user namespace, so this comes last.
   */
  attach(): void {
    for (const [tree, subject] of this.#clones) {
      this.#plan.add(calls.move_mount, [tree, '', k.AT_FDCWD, '/', k.MOVE_MOUNT_F_EMPTY_PATH], { subject });
    }
  }
}

const isSame = (a: Path, b: Path): boolean => Buffer.from(a).equals(Buffer.from(b));

/**
 * Returns the nearest directory that holds both the upperdir and the workdir, and their paths in it. The two must be on
 * one mount, and so in one clone.
 */
export function commonDirectory(upper: Path, work: Path): { parent: Path; upper: Path; work: Path } {
  const ancestors = (path: Path): Path[] => {
    const list: Path[] = [];
    for (let [parent] = splitPath(path); ; [parent] = splitPath(parent)) {
      list.push(parent);
      if (parent.length === 1) return list;
    }
  };
  const ofWork = ancestors(work);
  const parent = ancestors(upper).find((path) => ofWork.some((other) => isSame(path, other))) ?? '/';
  const inside = (path: Path): Path => Buffer.from(path).subarray(parent.length === 1 ? 1 : parent.length + 1);
  return { parent, upper: inside(upper), work: inside(work) };
}
