/** containerd's overlay snapshotter: its verbs, over the store and the directories. */
import { invalidArgumentType } from '../errors.js';
import { close, type Held } from '../kernel/held.js';
import { Slices } from '../kernel/slices.js';
import { run, runBriefly, type Task } from '../kernel/task.js';
import { isAbsolute, type PathLike, pathString, toAbsolute, toPath, withoutTrailingSlashes } from '../paths.js';
import { option, text } from '../text.js';
import { Directories } from './directories.js';
import { failedPrecondition, invalidArgument, quoteKey, SnapshotError } from './errors.js';
import { type Fields, parseFilters } from './filters.js';
import { checkLabels, checkText, mappedOwner, type Owner, UPPERDIR_LABEL } from './labels.js';
import { type MountSettings, type SnapshotMount, toMounts, upperPath } from './mounts.js';
import {
  type CheckedSnapshotterOptions,
  type CommitOptions,
  checkCommitOptions,
  checkKey,
  checkParent,
  checkSnapshotOptions,
  checkSnapshotterOptions,
  type SnapshotOptions,
  type SnapshotterOptions,
} from './options.js';
import type { Labels, SnapshotKind, SnapshotRecord, SnapshotUsage } from './records.js';
import * as rules from './rules.js';
import { STORE_FILE, Store, type Tables } from './store.js';
import { canRebase, canRemap, refuseUnsuitable, toMountOptions } from './suitable.js';

/** A snapshot, as the store knows it. */
export interface SnapshotInfo {
  /** The key of an active snapshot or a view, the name of a committed one. */
  readonly name: string;
  /** The name of the parent, or `''`. */
  readonly parent: string;
  readonly kind: SnapshotKind;
  /** In nanoseconds since 1970, like `updated`. */
  readonly created: bigint;
  readonly updated: bigint;
  readonly labels: Labels;
  /** The number of its directory: `snapshots/NUMBER` in the root. */
  readonly id: number;
}

/** The result of `cleanup`. */
export interface Cleanup {
  /** The numbers of the directories that are gone now. */
  readonly removed: readonly number[];
  /** Directories that could not be removed, because an overlay uses them, for example. They stay for the next clean-up. */
  readonly kept: readonly { readonly path: string; readonly error: Error }[];
}

/** The most numbers that are taken at once. */
const MOST_NUMBERS = 64;

/** The most removals that one transaction notes: more would keep the event loop. */
const MOST_NOTED = 256;

function firstOf<T>(items: Iterable<T>, most: number): T[] {
  const first: T[] = [];
  for (const item of items) {
    if (first.length === most) break;
    first.push(item);
  }
  return first;
}

/** In nanoseconds since 1970. */
function now(): bigint {
  const milliseconds = Date.now();
  const fine = performance.timeOrigin + performance.now();
  // After a change of the clock, only its milliseconds are known.
  const isFine = Math.abs(fine - milliseconds) < 2;
  return BigInt(Math.floor((isFine ? fine : milliseconds) * 1000)) * 1000n;
}

function toRoot(root: PathLike): string {
  const path = withoutTrailingSlashes(toAbsolute(toPath(root, 'root')));
  if (typeof path !== 'string' || path.includes(':') || !isAbsolute(path)) {
    throw invalidArgument(
      undefined,
      `the root ${quoteKey(pathString(path))} cannot be written in the options of a mount`,
      'use a path of UTF-8 without colons, which separate layers',
    );
  }
  return path;
}

const toFields =
  ({ name, parent, kind, labels }: SnapshotRecord): Fields =>
  ([first, ...rest]) => {
    switch (first) {
      case 'name':
        return name;
      case 'parent':
        return parent;
      case 'kind':
        return kind;
      case 'labels': {
        const label = rest.join('.');
        return Object.hasOwn(labels, label) ? labels[label] : undefined;
      }
      default:
        return undefined;
    }
  };

/** Returns the labels that an update leaves, by containerd's rules for the mask. */
function toUpdated(labels: Labels, wanted: Labels, mask: readonly string[], key: string): Labels {
  let updated = labels;
  for (const field of mask.length === 0 ? ['labels'] : mask) {
    if (field === 'labels') updated = wanted;
    else if (field.startsWith('labels.')) {
      const label = field.slice('labels.'.length);
      const others = Object.entries(updated).filter(([name]) => name !== label);
      const value = Object.hasOwn(wanted, label) ? wanted[label] : undefined;
      updated = Object.fromEntries(value === undefined ? others : [...others, [label, value]]);
    } else {
      throw invalidArgument(
        key,
        `the field ${quoteKey(field)} of the snapshot ${quoteKey(key)} cannot be updated`,
        "use 'labels', or 'labels.' and the name of a label",
      );
    }
  }
  return updated;
}

function checkMask(value: unknown): readonly string[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw invalidArgumentType('mask', 'a list of fields', value);
  return Array.from(value, (field, i) => checkText(field, `mask[${i}]`));
}

/**
 * Layers of file systems and their stack, with the verbs and the meaning of containerd's overlay snapshotter. The
 * records are in an LMDB store in the root, the files in numbered directories. Several processes may use one root.
 * docs/snapshots.md tells what a crash at any moment leaves.
 */
export class Snapshotter {
  /** The directory with the store and the snapshots, as an absolute path. */
  readonly root: string;
  readonly #options: CheckedSnapshotterOptions;
  readonly #store: Store;
  readonly #directories: Directories;
  readonly #settings: MountSettings;
  /** Runs tasks that are mostly brief. */
  readonly #run: typeof run;
  /** Numbers that this object has taken and not used. */
  readonly #numbers: number[] = [];
  #taking: Promise<void> | undefined;
  #nextCount = 1;
  /** Numbers whose directories have been moved aside: their entries in the table `removing` may go. */
  readonly #aside = new Set<number>();
  /** The verbs that `close` waits for. */
  readonly #underWay = new Set<Promise<unknown>>();
  #closing: Promise<void> | undefined;

  private constructor(
    root: string,
    options: CheckedSnapshotterOptions,
    store: Store,
    directories: Directories,
    settings: MountSettings,
    isBlocking: boolean,
  ) {
    this.root = root;
    this.#options = options;
    this.#store = store;
    this.#directories = directories;
    this.#settings = settings;
    this.#run = isBlocking ? runBriefly : run;
  }

  /**
   * Opens a root, and makes it, with mode 0700, where there is none. Needs the package lmdb.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_DEPENDENCY_MISSING`, `ERR_SNAPSHOT_STORE_DAMAGED`,
   * `ERR_SNAPSHOT_STORE_VERSION`, `ERR_SNAPSHOT_STORE_FAILED`; with `readonly`, `ERR_SNAPSHOT_NOT_FOUND`;
   * `ERR_SNAPSHOT_FAILED_PRECONDITION` if this thread has it open with `fsync: 'none'` and this one syncs
   * @throws {OverlayError} the file system cannot hold an upper, as `overlayfs explain` says it, or the root cannot be
   * made
   */
  static async open(root: PathLike, options?: SnapshotterOptions): Promise<Snapshotter> {
    return Snapshotter.#open(root, options, false);
  }

  /**
   * @internal As `open`, for a process that does nothing else: its verbs perform brief work and write the store on the
   * calling thread. Each takes fewer hand-overs between threads, and the event loop waits for the disk meanwhile. While
   * such a snapshotter is open, the thread may have no other one of this root: that could wait for the same lock for ever.
   */
  static async openBlocking(root: PathLike, options?: SnapshotterOptions): Promise<Snapshotter> {
    return Snapshotter.#open(root, options, true);
  }

  static async #open(
    root: PathLike,
    options: SnapshotterOptions | undefined,
    isBlocking: boolean,
  ): Promise<Snapshotter> {
    const path = toRoot(root);
    const checked = checkSnapshotterOptions(options);
    const { isReadonly, fsync } = checked;
    const directories = await run(Directories.open(path, { isReadonly, isSynced: fsync === 'all' }));
    try {
      const directory = directories.snapshots;
      if (!isReadonly) await run(refuseUnsuitable(directory));
      const settings = {
        directory,
        remapIds: checked.remapIds ?? (await run(canRemap(directory))),
        mountOptions: toMountOptions(directory, checked.mountOptions),
      };
      const isSynced = isReadonly || fsync !== 'none';
      const { lock } = directories;
      const store = await Store.open(`${path}/${STORE_FILE}`, { isReadonly, isSynced, isBlocking, lock });
      return new Snapshotter(path, checked, store, directories, settings, isBlocking);
    } catch (error) {
      directories.close();
      throw error;
    }
  }

  /** The capabilities, in containerd's words: `remap-ids`, `only-remap-ids`, `rebase`. */
  get capabilities(): string[] {
    return [
      ...(this.#settings.remapIds ? ['remap-ids'] : []),
      ...(this.#options.slowChown ? [] : ['only-remap-ids']),
      ...(canRebase() ? ['rebase'] : []),
    ];
  }

  /**
   * Makes an active snapshot over a committed one, or without a parent. Returns the mounts in which to change it.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND` (the parent), `ERR_SNAPSHOT_INVALID_ARGUMENT` (the parent is not
   * committed), `ERR_SNAPSHOT_ALREADY_EXISTS`
   */
  async prepare(key: string, parent?: string, options?: SnapshotOptions): Promise<SnapshotMount[]> {
    return this.#during(() => this.#create('active', key, parent, options));
  }

  /** Makes a read-only view of a committed snapshot. Throws as `prepare`. */
  async view(key: string, parent?: string, options?: SnapshotOptions): Promise<SnapshotMount[]> {
    return this.#during(() => this.#create('view', key, parent, options));
  }

  async #create(
    kind: 'active' | 'view',
    name: string,
    parentName: string | undefined,
    options: SnapshotOptions | undefined,
  ): Promise<SnapshotMount[]> {
    checkKey(name, 'key');
    const parent = checkParent(parentName);
    const labels = checkSnapshotOptions(options);
    this.#refuseReadonly(name);
    const mapped = mappedOwner(labels);
    const owner = await this.#chooseOwner({ key: name, parent }, mapped);
    const { id, lock } = await this.#makeDirectory(kind, owner);
    try {
      return await this.#write((tables) => {
        const time = now();
        const project = kind === 'active' ? this.#directories.projectOf(id) : undefined;
        const made = { name, id, kind, parent, created: time, updated: time, labels };
        const record = project === undefined ? made : { ...made, project };
        // LMDB keeps what was written before an error is thrown.
        const above = rules.checkCreation(tables, { key: name, parent });
        const mounts = this.#toMounts(tables, record);
        rules.create(tables, record, above);
        return mounts;
      });
    } catch (error) {
      // If the store has failed, its last transaction may be on the disk all the same.
      if (isRefusal(error)) await this.#run(this.#directories.unmake(id));
      throw error;
    } finally {
      close(lock);
    }
  }

  /** Checks that a snapshot can be made. Returns the owner of its directory: that of the id map, or the parent's. */
  async #chooseOwner(creation: rules.Creation, mapped: Owner | undefined): Promise<Owner | undefined> {
    for (;;) {
      const found = this.#store.read((tables) => rules.checkCreation(tables, creation));
      if (mapped !== undefined || found === undefined) return mapped;
      const owner = await this.#unlessRemoved(found, this.#directories.ownerOf(found.id));
      if (owner !== undefined) return owner;
    }
  }

  /** Looks at the directory of a snapshot. Returns undefined if others have removed that meanwhile. */
  async #unlessRemoved<T>({ name, id }: SnapshotRecord, look: Task<T>): Promise<T | undefined> {
    try {
      return await this.#run(look);
    } catch (error) {
      if (this.#store.read((tables) => tables.get(name))?.id === id) throw error;
      return undefined;
    }
  }

  async #makeDirectory(kind: SnapshotKind, owner: Owner | undefined): Promise<{ id: number; lock: Held }> {
    for (;;) {
      const id = await this.#takeNumber();
      const lock = await this.#run(this.#directories.make(id, kind, owner));
      if (lock !== undefined) return { id, lock };
    }
  }

  /** Returns a number that was never used. Takes more at once the more are used. */
  async #takeNumber(): Promise<number> {
    for (;;) {
      const number = this.#numbers.shift();
      if (number !== undefined) return number;
      this.#taking ??= this.#takeNumbers();
      await this.#taking;
    }
  }

  async #takeNumbers(): Promise<void> {
    try {
      const count = this.#nextCount;
      const first = await this.#write((tables) => tables.takeNumbers(count));
      for (let i = 0; i < count; i++) this.#numbers.push(first + i);
      this.#nextCount = Math.min(2 * count, MOST_NUMBERS);
    } finally {
      this.#taking = undefined;
    }
  }

  #toMounts(tables: rules.Reader, record: SnapshotRecord): SnapshotMount[] {
    const parents = rules.ancestorsOf(tables, record).map(({ id }) => id);
    return toMounts(record, parents, this.#settings);
  }

  /**
   * Returns the mounts of an active snapshot or a view.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND`, `ERR_SNAPSHOT_FAILED_PRECONDITION` (it is committed)
   */
  async mounts(key: string): Promise<SnapshotMount[]> {
    checkKey(key, 'key');
    this.#refuseClosed();
    this.#directories.refuseMoved();
    return this.#store.read((tables) => {
      const record = rules.find(tables, key);
      if (record.kind === 'committed') {
        throw failedPrecondition(
          key,
          `the snapshot ${quoteKey(key)} is committed and has no mounts`,
          'make a view of it, or prepare a snapshot on it',
        );
      }
      return this.#toMounts(tables, record);
    });
  }

  /**
   * Makes an active snapshot a committed one called `name`. The key is free then; the labels are those given here. A
   * snapshot without a parent can get one.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND`, `ERR_SNAPSHOT_ALREADY_EXISTS`, `ERR_SNAPSHOT_FAILED_PRECONDITION`
   * (it is not active, or the new parent is not committed), `ERR_SNAPSHOT_INVALID_ARGUMENT` (it has another parent)
   */
  async commit(name: string, key: string, options?: CommitOptions): Promise<void> {
    checkKey(name, 'name');
    checkKey(key, 'key');
    const { labels, parent } = checkCommitOptions(options);
    this.#refuseReadonly(key);
    return this.#during(() => this.#commit({ name, key, parent }, labels));
  }

  async #commit(committal: rules.Committal, labels: Labels): Promise<void> {
    const { key } = committal;
    for (let isDone = false; !isDone; ) {
      // Measured outside the transaction, in which nobody else could write.
      const { active } = this.#store.read((tables) => rules.checkCommittal(tables, committal));
      const usage = await this.#unlessRemoved(active, this.#directories.measure(active));
      if (usage === undefined) continue;
      isDone = await this.#write((tables) => {
        const isSame = tables.get(key)?.id === active.id;
        // Others have removed it, and may have made another one of that key.
        if (isSame || tables.get(key) === undefined) rules.commit(tables, committal, { labels, usage, now: now() });
        return isSame;
      });
    }
  }

  /**
   * Removes a snapshot that has no children. Its files go too, unless an overlay in the mount table of this thread uses
   * them, or something is mounted inside: then they stay until a `cleanup` finds them free. With `asyncRemove` they stay
   * in any case. As in containerd, the caller unmounts binds, and mounts in other namespaces, before.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND`, `ERR_SNAPSHOT_FAILED_PRECONDITION` (it has children)
   */
  async remove(key: string): Promise<void> {
    checkKey(key, 'key');
    this.#refuseReadonly(key);
    return this.#during(() => this.#remove(key));
  }

  async #remove(key: string): Promise<void> {
    const { id } = await this.#write((tables) => rules.remove(tables, key));
    if (this.#options.asyncRemove) return;
    // The record is gone, so the snapshot is removed; what cannot go now is left to `cleanup`.
    await run(this.#removeDirectory(id)).catch(() => {});
  }

  *#removeDirectory(id: number): Task<void> {
    try {
      yield* this.#directories.remove(id, () => this.#aside.add(id));
    } catch (error) {
      // The next clean-up finds its entry and goes on.
      this.#aside.delete(id);
      throw error;
    }
  }

  /** @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND` */
  async stat(key: string): Promise<SnapshotInfo> {
    checkKey(key, 'key');
    this.#refuseClosed();
    return this.#toInfo(this.#store.read((tables) => rules.find(tables, key)));
  }

  #toInfo({ name, parent, kind, created, updated, labels, id }: SnapshotRecord): SnapshotInfo {
    if (!this.#options.upperdirLabel) return { name, parent, kind, created, updated, labels, id };
    const upperdir = { [UPPERDIR_LABEL]: upperPath(this.#settings.directory, id) };
    return { name, parent, kind, created, updated, labels: { ...labels, ...upperdir }, id };
  }

  /**
   * Changes labels. `mask` names what changes: `'labels'` for all, `'labels.NAME'` for one, which goes if `info` does
   * not have it. Default: all.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND`, `ERR_SNAPSHOT_INVALID_ARGUMENT` (another field)
   */
  async update(info: Pick<SnapshotInfo, 'name' | 'labels'>, mask?: readonly string[]): Promise<SnapshotInfo> {
    if (typeof info !== 'object' || info === null) throw invalidArgumentType('info', 'an object', info);
    const name = checkKey(info.name, 'name');
    const labels = checkLabels(info.labels, 'labels');
    const fields = checkMask(mask);
    this.#refuseReadonly(name);
    const change = (before: Labels) => toUpdated(before, labels, fields, name);
    return this.#toInfo(await this.#during(() => this.#write((tables) => rules.update(tables, name, change, now()))));
  }

  /**
   * Yields the infos of all snapshots, as they are at one moment, in the order of their names. A filter is a list of
   * selectors with commas, all of which match: `kind==active`, `parent!=base`, `labels."a.b"~=^v\d`, `labels.name`. With
   * several filters, one has to match.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_INVALID_ARGUMENT`: a filter cannot be read
   */
  async *walk(filters: string | readonly string[] = []): AsyncGenerator<SnapshotInfo, void, undefined> {
    const texts = typeof filters === 'string' ? [filters] : filters;
    if (!Array.isArray(texts)) throw invalidArgumentType('filters', 'a string, or a list of strings', filters);
    const matches = parseFilters(texts.map((text, i) => checkText(text, `filters[${i}]`)));
    const found = await this.#during(() =>
      this.#store.readAll(
        (tables, transaction) => tables.records(transaction),
        (record) => (texts.length === 0 || matches(toFields(record)) ? record : undefined),
      ),
    );
    const slices = new Slices();
    for (const record of found) {
      // A consumer that waits for nothing else would hold up the event loop.
      if (slices.isOver()) await run(slices.pause());
      yield this.#toInfo(record);
    }
  }

  /**
   * Returns the space that a snapshot takes, without its parents. For an active snapshot it is measured, for a committed
   * one it was at `commit`; a view takes none.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND`
   */
  async usage(key: string): Promise<SnapshotUsage> {
    checkKey(key, 'key');
    return this.#during(() => this.#usage(key));
  }

  async #usage(key: string): Promise<SnapshotUsage> {
    for (;;) {
      const record = this.#store.read((tables) => rules.find(tables, key));
      if (record.kind !== 'active') return record.usage ?? { size: 0, inodes: 0 };
      const usage = await this.#unlessRemoved(record, this.#directories.measure(record));
      if (usage !== undefined) return usage;
    }
  }

  /**
   * Removes the directories that no snapshot has: of snapshots that were removed, and what a crash has left. A directory
   * that `remove` would leave stays.
   */
  async cleanup(): Promise<Cleanup> {
    this.#refuseReadonly();
    return this.#during(() => this.#cleanup());
  }

  async #cleanup(): Promise<Cleanup> {
    const removed: number[] = [];
    const kept: { path: string; error: Error }[] = [];
    const directories = this.#directories;
    const attempt = async (id: number, dialogue: Task<unknown>): Promise<void> => {
      try {
        if ((await run(dialogue)) !== false) removed.push(id);
      } catch (error) {
        kept.push({ path: directories.placeOf(id), error: error as Error });
      }
    };
    const removing = await this.#store.readAll(
      (tables, transaction) => tables.removing(transaction),
      (id) => id,
    );
    const found = await directories.numbers();
    for (const id of removing) {
      if (!this.#aside.has(id)) await attempt(id, this.#removeDirectory(id));
    }
    const known = new Set(removing);
    await this.#store.readAll(
      (tables, transaction) => tables.numbers(transaction),
      (id) => void known.add(id),
    );
    // A directory that was made in the meantime has a record now, or a lock.
    const isStray = (id: number): boolean => !this.#store.read((tables) => tables.hasNumber(id));
    for (const id of found.removed) {
      if (!known.has(id) && isStray(id)) await attempt(id, directories.removeAside(id));
    }
    for (const id of found.snapshots) {
      if (known.has(id) || !isStray(id)) continue;
      await attempt(
        id,
        directories.removeStray(id, () => isStray(id)),
      );
    }
    while (this.#aside.size > 0) await this.#write(() => {});
    return { removed, kept };
  }

  /** Performs a transaction, with some of what earlier removals have left to be noted. */
  async #write<T>(perform: (tables: Tables) => T): Promise<T> {
    const aside = firstOf(this.#aside, MOST_NOTED);
    const result = await this.#store.write((tables) => {
      const value = perform(tables);
      for (const id of aside) tables.deleteRemoving(id);
      return value;
    });
    for (const id of aside) this.#aside.delete(id);
    return result;
  }

  #refuseReadonly(key?: string): void {
    if (!this.#options.isReadonly) return;
    throw new SnapshotError({
      code: 'ERR_SNAPSHOT_READ_ONLY',
      what: `the snapshotter of ${quoteKey(this.root)} is open for reading`,
      hint: text`open it without ${option('readonly')}`,
      key,
    });
  }

  #refuseClosed(): void {
    if (this.#closing === undefined) return;
    throw new SnapshotError({
      code: 'ERR_SNAPSHOT_CLOSED',
      what: 'the snapshotter has been closed',
      hint: 'open it again',
      path: this.#store.path,
    });
  }

  /** Performs a verb that uses the store or the directories for longer. */
  async #during<T>(perform: () => Promise<T>): Promise<T> {
    this.#refuseClosed();
    this.#directories.refuseMoved();
    const verb = perform();
    this.#underWay.add(verb);
    try {
      return await verb;
    } finally {
      this.#underWay.delete(verb);
    }
  }

  /** Closes the store, after the verbs that are under way. Mounts stay as they are. */
  async close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await Promise.allSettled(this.#underWay);
    // The next clean-up notes what stays.
    if (this.#aside.size > 0) await this.#write(() => {}).catch(() => {});
    await this.#store.close();
    this.#directories.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** Returns true when a rule has refused the request: then nothing was written. */
const isRefusal = (error: unknown): boolean =>
  error instanceof SnapshotError && error.code !== 'ERR_SNAPSHOT_STORE_FAILED';
