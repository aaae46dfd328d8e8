/** containerd's overlay snapshotter: its verbs, over the store and the directories. */
import { mkdirSync } from 'node:fs';
import { toOptions } from '../arguments.js';
import { abortError, invalidArgumentType } from '../errors.js';
import { close, type Held } from '../kernel/held.js';
import { Slices } from '../kernel/slices.js';
import { pause, run, runBriefly, type Task } from '../kernel/task.js';
import type { OverlayOptions } from '../options/check.js';
import { mountOverlay, type OverlayMount } from '../overlay/mount.js';
import { isAbsolute, type PathLike, pathString, toAbsolute, toPath, withoutTrailingSlashes } from '../paths.js';
import { programFailed, type RunResult, showAt } from '../programs/run.js';
import { option, text } from '../text.js';
import { explainSystemError } from '../verdicts.js';
import { Directories } from './directories.js';
import { failedPrecondition, invalidArgument, quoteKey, SnapshotError, type SnapshotErrorCode } from './errors.js';
import { type Fields, parseFilters } from './filters.js';
import { checkLabels, checkText, mappedOwner, type Owner, UPPERDIR_LABEL } from './labels.js';
import { type Kept, type Leftover, lockDead, removeLeftovers } from './leftovers.js';
import { MAKER_LABEL, ownMaker, parseMaker } from './maker.js';
import { ending, toOverlay } from './mount-all.js';
import { type MountSettings, type SnapshotMount, toMounts, upperPath } from './mounts.js';
import {
  type CheckedSnapshotterOptions,
  type CommitOptions,
  checkCommitOptions,
  checkEnsureOptions,
  checkKey,
  checkParent,
  checkSetLabelsOptions,
  checkSnapshotOptions,
  checkSnapshotterOptions,
  type EnsureOptions,
  type SetLabelsOptions,
  type SnapshotOptions,
  type SnapshotterOptions,
} from './options.js';
import type { Labels, SnapshotKind, SnapshotRecord, SnapshotUsage } from './records.js';
import * as rules from './rules.js';
import { STORE_FILE, Store, type WriteOptions } from './store.js';
import { canRebase, canRemap, refuseUnsuitable, toMountOptions } from './suitable.js';
import type { Tables } from './tables.js';

/** A snapshot, as the store knows it. */
export interface SnapshotInfo {
  /** The key of an active snapshot or a view, the name of a committed one. */
  readonly name: string;
  /** The name of the parent, or `''`. */
  readonly parent: string;
  readonly kind: SnapshotKind;
  /** When it was made or committed. */
  readonly created: Date;
  /** The same time in nanoseconds since 1970, as decimal digits. */
  readonly createdNs: string;
  /** When its labels were last changed, like `created`. */
  readonly updated: Date;
  readonly updatedNs: string;
  readonly labels: Labels;
  /** The number of its directory: `snapshots/NUMBER` in the root. */
  readonly id: number;
}

/** The result of `cleanup`. */
export interface Cleanup {
  /** The numbers of the directories that are gone now. */
  readonly removed: readonly number[];
  /** The snapshots and temporary directories of processes that were killed. They are gone now. */
  readonly left: readonly Leftover[];
  /** Directories that could not be removed, because an overlay uses them, for example. They stay for the next clean-up. */
  readonly kept: readonly Kept[];
}

/** An active snapshot that goes with this process: a clean-up removes it once nobody holds it. */
export interface HeldSnapshot {
  readonly mounts: SnapshotMount[];
  /** Ends the hold: of a snapshot that was committed, for example. */
  release(): void;
  /** Removes the snapshot as `remove` does, unless it was committed or is another one of its key. */
  remove(): Promise<void>;
  /** Ends the hold, and makes it a snapshot like any other. */
  keep(): Promise<void>;
}

/** How a snapshot is mounted: options of `mountOverlay`. */
export type SnapshotMountOptions = Pick<OverlayOptions, (typeof mountOptions)[number]>;
const mountOptions = ['target', 'rootless', 'subIds', 'nodev', 'nosuid', 'noexec', 'signal'] as const;
const mountNames: ReadonlySet<string> = new Set(mountOptions);

interface BuildOptions {
  readonly parent?: string;
  readonly signal?: AbortSignal | undefined;
}

type BuildFunction = (claim: {
  readonly key: string;
  readonly mounts: readonly SnapshotMount[];
}) => Promise<Omit<CommitOptions, 'name'>>;

/** In milliseconds, between two looks at a snapshot that another caller makes. */
const INTERVAL = 50;

/** Comes to undefined if the snapshotter refuses the verb with this code. The error may be another bundle's. */
export async function unless<T>(code: SnapshotErrorCode, verb: Promise<T>): Promise<T | undefined> {
  try {
    return await verb;
  } catch (error) {
    if ((error as { readonly code?: string }).code === code) return undefined;
    throw error;
  }
}

/** Throws if a result is that of a program that has failed. */
function refuseFailed(result: unknown): void {
  const { exitCode = 0 } = (result ?? {}) as Partial<RunResult>;
  if (exitCode !== 0) throw programFailed('the program that makes the snapshot', result as RunResult);
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

const toDate = (nanoseconds: string): Date => new Date(Number(nanoseconds.slice(0, -6)));

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

/** Returns the labels that a change leaves. `changed` has those with an empty value too, which go. */
const toChanged = (before: Labels, changed: object, wanted: Labels): Labels => ({
  ...Object.fromEntries(Object.entries(before).filter(([name]) => !Object.hasOwn(changed, name))),
  ...wanted,
});

/**
 * Layers of file systems and their stack, with the verbs and the meaning of containerd's overlay snapshotter. The
 * records are in an SQLite database in the root, the files in numbered directories. Several processes may use one root.
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
   * Opens a root, and makes it, with mode 0700, where there is none. Needs `node:sqlite`, or the package
   * `@photostructure/sqlite`.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_DEPENDENCY_MISSING`, `ERR_SNAPSHOT_STORE_DAMAGED`,
   * `ERR_SNAPSHOT_STORE_VERSION`, `ERR_SNAPSHOT_STORE_FAILED`; with `readonly`, `ERR_SNAPSHOT_NOT_FOUND`;
   * @throws {OverlayError} the file system cannot hold an upper, as `overlayfs explain` says it, or the root cannot be
   * made
   */
  static async open(root: PathLike, options?: SnapshotterOptions): Promise<Snapshotter> {
    return Snapshotter.#open(root, options, false);
  }

  /**
   * @internal As `open`, for a process that does nothing else: its verbs perform brief work on the calling thread. Each
   * takes fewer hand-overs between threads, and the event loop waits for the disk meanwhile.
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
    const directories = await run(Directories.open(path, { isReadonly, fsync }));
    try {
      const directory = directories.snapshots;
      if (!isReadonly) await run(refuseUnsuitable(directory));
      const settings = {
        directory,
        remapIds: checked.remapIds ?? (await run(canRemap(directory))),
        mountOptions: toMountOptions(directory, checked.mountOptions),
      };
      const isSynced = isReadonly || fsync !== 'none';
      const store = await Store.open(`${path}/${STORE_FILE}`, { isReadonly, isSynced });
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

  /** @internal As `prepare`. The directory stays locked, and the snapshot is labelled with its maker. */
  async hold(key: string, parent?: string): Promise<HeldSnapshot> {
    let held: { readonly id: number; readonly lock: Held } | undefined;
    const options = { labels: { [MAKER_LABEL]: JSON.stringify(ownMaker()) } };
    const mounts = await this.#during(() =>
      this.#create('active', key, parent, options, (made) => {
        held = made;
      }),
    );
    const { id, lock } = held as unknown as { id: number; lock: Held };
    return {
      mounts,
      release: () => close(lock),
      remove: async () => void (await this.#during(() => this.#removeHeld(id, lock))),
      keep: async () => {
        await this.setLabels(key, { [MAKER_LABEL]: '' });
        close(lock);
      },
    };
  }

  /** Ends the hold of a snapshot and removes it. Returns false if it is a snapshot like any other by now. */
  async #removeHeld(id: number, lock: Held): Promise<boolean> {
    try {
      const isLasting = await this.#write(
        (tables) => {
          const record = tables.byId(id);
          if (record === undefined) return false;
          if (!Object.hasOwn(record.labels, MAKER_LABEL)) return true;
          rules.remove(tables, record.name);
          return false;
        },
        { isRemoval: true },
      );
      if (isLasting) return false;
    } finally {
      close(lock);
    }
    // A removal by its key has left the directory, which was locked.
    if (!this.#options.asyncRemove) await run(this.#removeDirectory(id)).catch(() => {});
    return true;
  }

  /** @internal Removes a snapshot that a process has held and left. */
  async removeDead(key: string): Promise<void> {
    await this.#during(() => this.#removeDead(key));
  }

  async #removeDead(key: string): Promise<Leftover | undefined> {
    const record = this.#store.read((tables) => tables.get(key));
    const text = record?.labels[MAKER_LABEL];
    if (record === undefined || text === undefined) return undefined;
    const path = this.#directories.pathOf(record.id);
    const lock = await run(lockDead(path));
    if (lock === undefined || !(await this.#removeHeld(record.id, lock))) return undefined;
    return { path, key, maker: parseMaker(text) };
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
    hold?: (made: { readonly id: number; readonly lock: Held }) => void,
  ): Promise<SnapshotMount[]> {
    checkKey(name, 'key');
    const parent = checkParent(parentName);
    const labels = checkSnapshotOptions(options);
    this.#refuseReadonly(name);
    const mapped = mappedOwner(labels);
    const owner = await this.#chooseOwner({ key: name, parent }, mapped);
    const { id, lock } = await this.#makeDirectory(kind, owner);
    let isHeld = false;
    try {
      const mounts = await this.#write((tables) => {
        const time = now();
        const project = kind === 'active' ? this.#directories.projectOf(id) : undefined;
        const made = { name, id, kind, parent, created: time, updated: time, labels };
        const record = project === undefined ? made : { ...made, project };
        rules.checkCreation(tables, { key: name, parent });
        tables.put(record);
        return this.#toMounts(tables, record);
      });
      hold?.({ id, lock });
      isHeld = hold !== undefined;
      return mounts;
    } catch (error) {
      // If the store has failed, its last transaction may be on the disk all the same.
      if (isRefusal(error)) await this.#run(this.#directories.unmake(id));
      throw error;
    } finally {
      if (!isHeld) close(lock);
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
      // After a power cut, `make` passes over a number that is given out again.
      const first = await this.#write((tables) => tables.takeNumbers(count), { isProvisional: true });
      for (let i = 0; i < count; i++) this.#numbers.push(first + i);
      this.#nextCount = Math.min(2 * count, MOST_NUMBERS);
    } finally {
      this.#taking = undefined;
    }
  }

  #toMounts(tables: rules.Reader, record: SnapshotRecord): SnapshotMount[] {
    return toMounts(record, rules.ancestorsOf(tables, record), this.#settings);
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
   * Mounts an active snapshot or a view as an overlay. Without a target the mount is detached, for a plain user too: a
   * program that its `run` starts sees it in its working directory. `volatile` is left out.
   *
   * @param options `target`, and how to mount, as for `mountOverlay`; `rootless` is `'auto'` without a target
   * @throws {SnapshotError} as `mounts`
   * @throws {OverlayError} as `mountOverlay`
   *
   * @example
   * await using overlay = await snapshotter.mount('build');
   * await overlay.run('make', [], { check: true });
   */
  async mount(key: string, options?: SnapshotMountOptions): Promise<OverlayMount> {
    const more = toOptions(options, mountNames);
    const mounts = await this.mounts(key);
    const overlay = toOverlay(mounts, () => this.#makeEmpty());
    const auto = more.target === undefined && more.rootless === undefined ? { rootless: 'auto' as const } : {};
    const mount = await mountOverlay({ ...overlay, ...auto, ...more });
    const { id } = this.#store.read((tables) => rules.find(tables, key));
    showAt(mount, upperPath(this.#settings.directory, id));
    return mount;
  }

  /** A directory that stays empty: an overlay has to have a lower layer. */
  #makeEmpty(): string {
    const path = `${this.root}/empty`;
    try {
      mkdirSync(path, { recursive: true });
    } catch (error) {
      throw explainSystemError(error, `make ${quoteKey(path)}`, 'let this process write to the root');
    }
    return path;
  }

  /**
   * Returns a committed snapshot of this name, and makes it if there is none: prepares one on `parent`, calls `make` with
   * its mount, and commits it. One caller at a time makes it, among all processes; the others wait
   * for it. If that one fails or is killed, nothing of it stays, and the next one tries. `make` has to end all that it
   * starts.
   *
   * @param make changes the files of the mount. If its result has an `exitCode` other than 0, as of a program that failed,
   * it has failed
   * @returns a promise of `name`
   * @throws {SnapshotError} as `prepare` and `commit`; `ERR_SNAPSHOT_FAILED_PRECONDITION`: the snapshot of this name is not
   * committed, or has another parent
   * @throws {ProgramError} `ERR_PROGRAM_FAILED`: the program failed
   * @throws {Error} `ABORT_ERR`; that of `make`
   *
   * @example
   * const name = await snapshotter.ensure(hash, { parent: 'base' }, (overlay) => overlay.run('make'));
   */
  async ensure(name: string, options: EnsureOptions, make: (mount: OverlayMount) => unknown): Promise<string> {
    checkKey(name, 'name');
    const { parent, labels, signal } = checkEnsureOptions(options);
    if (typeof make !== 'function') throw invalidArgumentType('make', 'a function', make);
    this.#refuseReadonly(name);
    await this.build(name, { parent, signal }, async ({ key }) => {
      const mount = await this.mount(key, { ...(signal && { signal }) });
      await ending(
        async () => refuseFailed(await make(mount)),
        () => mount.unmount(),
      );
      return { labels };
    });
    const found = await this.stat(name);
    if (found.parent === parent) return name;
    throw failedPrecondition(
      name,
      `the snapshot ${quoteKey(name)} is there, with the parent ${quoteKey(found.parent)} instead of ${quoteKey(parent)}`,
      'choose another name, or that parent',
    );
  }

  /**
   * @internal Makes a committed snapshot unless there is one of this name. One caller at a
   * time makes it, among all processes; the others wait. Returns whether it was this one.
   */
  async build(name: string, { parent = '', signal }: BuildOptions, make: BuildFunction): Promise<boolean> {
    const key = `building ${name}`;
    for (;;) {
      if (signal?.aborted) throw abortError(signal);
      if (this.#hasCommitted(name)) return false;
      const held = await unless('ERR_SNAPSHOT_ALREADY_EXISTS', this.hold(key, parent));
      if (held === undefined) {
        await this.removeDead(key);
        await run(pause(INTERVAL, signal));
        continue;
      }
      try {
        // Another one may have committed it, and freed the key, since the look.
        if (!this.#hasCommitted(name)) {
          const options = await make({ key, mounts: held.mounts });
          const committing = this.commit(key, { name, ...options }).then(() => true);
          if ((await unless('ERR_SNAPSHOT_ALREADY_EXISTS', committing)) === true) return true;
        }
        await held.remove();
      } catch (error) {
        await held.remove().catch(() => {});
        throw error;
      } finally {
        held.release();
      }
    }
  }

  #hasCommitted(name: string): boolean {
    this.#refuseClosed();
    const kind = this.#store.read((tables) => tables.get(name))?.kind;
    if (kind === undefined || kind === 'committed') return kind !== undefined;
    throw failedPrecondition(name, `the snapshot ${quoteKey(name)} is ${kind}, not committed`, 'choose another name');
  }

  /**
   * Makes an active snapshot a committed one, `name`. The key is free then; the labels are those given here. A snapshot
   * without a parent can get one.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND`, `ERR_SNAPSHOT_ALREADY_EXISTS`, `ERR_SNAPSHOT_FAILED_PRECONDITION`
   * (it is not active, or the new parent is not committed), `ERR_SNAPSHOT_INVALID_ARGUMENT` (it has another parent)
   */
  async commit(key: string, options: CommitOptions): Promise<void> {
    checkKey(key, 'key');
    const { name, labels, parent, syncs } = checkCommitOptions(options, this.#options.fsync);
    this.#refuseReadonly(key);
    return this.#during(() => this.#commit({ name, key, parent }, labels, syncs));
  }

  async #commit(committal: rules.Committal, labels: Labels, syncs: boolean): Promise<void> {
    const { key } = committal;
    for (let isDone = false; !isDone; ) {
      // Measured outside the transaction, in which nobody else could write.
      const { active } = this.#store.read((tables) => rules.checkCommittal(tables, committal));
      const usage = await this.#unlessRemoved(active, this.#directories.measure(active));
      if (usage === undefined) continue;
      if (syncs) await run(this.#directories.sync());
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
    const { id } = await this.#write((tables) => rules.remove(tables, key), { isRemoval: true });
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
    const [createdNs, updatedNs] = [String(created), String(updated)];
    const times = { created: toDate(createdNs), createdNs, updated: toDate(updatedNs), updatedNs };
    if (!this.#options.upperdirLabel) return { name, parent, kind, ...times, labels, id };
    const upperdir = { [UPPERDIR_LABEL]: upperPath(this.#settings.directory, id) };
    return { name, parent, kind, ...times, labels: { ...labels, ...upperdir }, id };
  }

  /**
   * Sets labels; one with an empty value goes. Returns the snapshot as it is then.
   *
   * @param labels names and values, of at most 4,096 bytes together
   * @param options `replace: true`: all other labels go
   * @throws {SnapshotError} `ERR_SNAPSHOT_NOT_FOUND`, `ERR_SNAPSHOT_INVALID_ARGUMENT`
   */
  async setLabels(key: string, labels: Labels, options?: SetLabelsOptions): Promise<SnapshotInfo> {
    checkKey(key, 'key');
    const wanted = checkLabels(labels, 'labels');
    const replaces = checkSetLabelsOptions(options);
    this.#refuseReadonly(key);
    const change = (before: Labels) => (replaces ? wanted : toChanged(before, labels, wanted));
    return this.#toInfo(await this.#during(() => this.#write((tables) => rules.setLabels(tables, key, change, now()))));
  }

  /**
   * Yields the infos of all snapshots, as they are at one moment, in the order of their names. A filter is a list of
   * selectors with commas, all of which match: `kind==active`, `parent!=base`, `labels."a.b"~=^v\d`, `labels.name`. With
   * several filters, one has to match.
   *
   * With `readonly`, yields of a damaged store what is left, and then throws.
   *
   * @throws {SnapshotError} `ERR_SNAPSHOT_INVALID_ARGUMENT`: a filter cannot be read; `ERR_SNAPSHOT_STORE_DAMAGED`
   */
  async *list(filters: string | readonly string[] = []): AsyncGenerator<SnapshotInfo, void, undefined> {
    const texts = typeof filters === 'string' ? [filters] : filters;
    if (!Array.isArray(texts)) throw invalidArgumentType('filters', 'a string, or a list of strings', filters);
    const matches = parseFilters(texts.map((text, i) => checkText(text, `filters[${i}]`)));
    const select = (record: SnapshotRecord) => (texts.length === 0 || matches(toFields(record)) ? record : undefined);
    let damage: unknown;
    const found = await this.#during(async () => {
      try {
        return await this.#store.readAll((tables) => tables.records(), select);
      } catch (error) {
        damage = error;
        const remains = await this.#store.readRemains(error, select);
        if (remains === undefined) throw error;
        return remains;
      }
    });
    const slices = new Slices();
    for (const record of found) {
      // A consumer that waits for nothing else would hold up the event loop.
      if (slices.isOver()) await run(slices.pause());
      yield this.#toInfo(record);
    }
    if (damage !== undefined) throw damage;
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
      if (record.kind !== 'active') return record.usage ?? { bytes: 0, inodes: 0 };
      const usage = await this.#unlessRemoved(record, this.#directories.measure(record));
      if (usage !== undefined) return usage;
    }
  }

  /**
   * Removes the directories that no snapshot has: of snapshots that were removed, and what a crash has left. A directory
   * that `remove` would leave stays.
   *
   * Also removes what processes have left that were killed in `runContainer`, `unpack` or `withTempMount`: containers,
   * which it ends, with their snapshots in this root, and this user's temporary directories in os.tmpdir(), which it
   * unmounts. The lock on each of them, flock(2), ends with its process, and what is locked stays.
   */
  async cleanup(): Promise<Cleanup> {
    this.#refuseReadonly();
    return this.#during(() => this.#cleanup());
  }

  async #cleanup(): Promise<Cleanup> {
    const removed: number[] = [];
    // Before the snapshots that are mounted there.
    const { left, kept } = await removeLeftovers();
    const held = await this.#store.readAll(
      (tables) => tables.records(),
      ({ name, id, labels }): [string, number] | undefined =>
        Object.hasOwn(labels, MAKER_LABEL) ? [name, id] : undefined,
    );
    for (const [key, id] of held) {
      try {
        const found = await this.#removeDead(key);
        if (found !== undefined) left.push(found);
      } catch (error) {
        kept.push({ path: this.#directories.pathOf(id), error: error as Error });
      }
    }
    const directories = this.#directories;
    const attempt = async (id: number, dialogue: Task<unknown>): Promise<void> => {
      try {
        if ((await run(dialogue)) !== false) removed.push(id);
      } catch (error) {
        kept.push({ path: directories.placeOf(id), error: error as Error });
      }
    };
    const removing = await this.#store.readAll(
      (tables) => tables.removing(),
      (id) => id,
    );
    const found = await run(directories.numbers());
    for (const id of removing) {
      if (!this.#aside.has(id)) await attempt(id, this.#removeDirectory(id));
    }
    const known = new Set(removing);
    await this.#store.readAll(
      (tables) => tables.numbers(),
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
    while (this.#aside.size > 0) await this.#write(() => {}, { isRemoval: true });
    return { removed, left, kept };
  }

  /** Performs a transaction, with some of what earlier removals have left to be noted. */
  async #write<T>(perform: (tables: Tables) => T, options?: WriteOptions): Promise<T> {
    const aside = firstOf(this.#aside, MOST_NOTED);
    const result = await this.#store.write((tables) => {
      const value = perform(tables);
      for (const id of aside) tables.deleteRemoving(id);
      return value;
    }, options);
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
    if (this.#aside.size > 0) await this.#write(() => {}, { isRemoval: true }).catch(() => {});
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
