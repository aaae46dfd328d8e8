/**
 * The directories of snapshots. A directory is made under a number that nobody else has, and locked by flock(2) until its
 * record is in the store. A directory without a record and without a lock is therefore nobody's.
 */
import { existsSync } from 'node:fs';
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close, type Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { statPathSync } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import { removeAside, removeDirectory } from '../layers/remove.js';
import { measure } from '../layers/usage.js';
import { quotePath } from '../paths.js';
import { makeDirectories } from '../trees/synced.js';
import { examine, Walker } from '../trees/walk.js';
import { TreeWriter, WriteFailure } from '../trees/write.js';
import { explainErrno } from '../verdicts.js';
import { SnapshotError } from './errors.js';
import type { Owner } from './labels.js';
import type { CheckedSnapshotterOptions } from './options.js';
import { hasProjectQuota, projectUsage, toProject } from './quota.js';
import type { SnapshotKind, SnapshotRecord, SnapshotUsage } from './records.js';

/** The modes with which containerd makes directories. The umask applies, as there. */
const mode = { root: 0o700, snapshot: 0o700, fs: 0o755, work: 0o711 } as const;

const OPEN = k.O_DIRECTORY | k.O_CLOEXEC;

/** The error for a directory that could not be made, opened or read. `purpose` follows "to". */
function failure(path: string, purpose: string, errno: number, syscall?: string): OverlayError {
  const verdict = explainErrno(errno, { name: `the directory ${quotePath(path)}`, purpose, syscall });
  return new OverlayError({ errno, path, syscall, ...verdict });
}

/** The directories of a root that is open. */
export class Directories {
  /** The directory with those of the snapshots. */
  readonly snapshots: string;
  readonly #removed: string;
  /** The same directory, open. */
  readonly #all: Held;
  /** The one with those that were moved aside. Those who read need none. */
  readonly #aside: Held;
  readonly #isSynced: boolean;
  /** True when each snapshot is a project of its own. */
  readonly #hasProjects: boolean;
  readonly #device: number;
  readonly #inode: bigint;

  private constructor(root: string, all: Held, aside: Held, isSynced: boolean, hasProjects: boolean) {
    this.snapshots = `${root}/snapshots`;
    this.#removed = `${root}/removed`;
    this.#all = all;
    this.#aside = aside;
    this.#isSynced = isSynced;
    // Not by fstat of node:fs: Deno's knows only descriptors that it has opened itself.
    const { device, inode } = statPathSync('', { at: all.descriptor, flags: k.AT_EMPTY_PATH });
    this.#device = device;
    this.#inode = inode;
    this.#hasProjects = hasProjects;
  }

  /**
   * Opens the directories, and makes them where they are missing, unless `isReadonly`. With `fsync: 'all'` a directory is
   * on the disk before its record is written, and its removal before the record goes.
   */
  static *open(root: string, { isReadonly, fsync }: DirectoryOptions): Task<Directories> {
    if (!isReadonly) yield* makeDirectories(root, mode.root, fsync !== 'none');
    const plan = new Plan();
    if (!isReadonly) {
      for (const name of ['snapshots', 'removed']) {
        plan.add(calls.mkdirat, [k.AT_FDCWD, `${root}/${name}`, mode.root], { tolerate: [e.EEXIST] });
      }
    }
    const open = (name: string, tolerate: readonly number[]): Descriptor =>
      plan.add(calls.openat2, [k.AT_FDCWD, `${root}/${name}`, OPEN, 0], { keep: true, output: 0, tolerate });
    const snapshots = open('snapshots', []);
    const removed = open('removed', [e.ENOENT]);
    const outcome = yield* ask(plan);
    if (outcome instanceof StepFailure) {
      const { call, args } = outcome.step ?? {};
      const path = call === calls.openat2 ? String(args?.[1]) : root;
      throw failure(path, `open ${quotePath(path)}`, outcome.errno, call?.name);
    }
    const held = (made: Descriptor): Held => ({ descriptor: outcome.result(plan.stepOf(made)) });
    const [all, aside] = [held(snapshots), held(removed)];
    const hasProjects = !isReadonly && (yield* hasProjectQuota(all.descriptor));
    return new Directories(root, all, aside, fsync === 'all', hasProjects);
  }

  /** Throws if the path of the root leads to another directory by now. The numbers there are those of other snapshots. */
  refuseMoved(): void {
    const found = statPathSync(this.snapshots);
    const { errno } = found;
    if (errno !== 0 && errno !== e.ENOENT && errno !== e.ENOTDIR) {
      throw failure(this.snapshots, `look at ${quotePath(this.snapshots)}`, errno, 'statx');
    }
    if (found.inode === this.#inode && found.device === this.#device) return;
    throw new SnapshotError({
      code: 'ERR_SNAPSHOT_FAILED_PRECONDITION',
      what: `the directory ${quotePath(this.snapshots)} has been moved or replaced since it was opened`,
      hint: 'close the snapshotter, and open the root where it is now',
      path: this.snapshots,
    });
  }

  /** Returns the project of a new snapshot, where it gets one. */
  projectOf(id: number): number | undefined {
    return this.#hasProjects ? toProject(this.#inode, id) : undefined;
  }

  /** Writes the files of all snapshots to the disk. */
  *sync(): Task<void> {
    const writer = new TreeWriter(this.#all.descriptor);
    try {
      yield* writer.sync();
    } catch (error) {
      if (!(error instanceof WriteFailure)) throw error;
      const { snapshots } = this;
      throw failure(snapshots, `write the files in ${quotePath(snapshots)} to the disk`, error.errno, 'syncfs');
    }
  }

  /** Returns the space that the files of a snapshot take. */
  *measure({ id, project }: Pick<SnapshotRecord, 'id' | 'project'>): Task<SnapshotUsage> {
    const counted = project === undefined ? undefined : yield* projectUsage(this.#all.descriptor, project);
    if (counted === undefined) {
      const { bytes, inodes } = yield* measure(`${this.pathOf(id)}/fs`);
      return { bytes, inodes };
    }
    // The workdir has to be of the same project, as rename(2) demands. Whiteouts in it may have links in the upper, and
    // count there.
    const work = yield* measure(`${this.pathOf(id)}/work`, true);
    return { bytes: counted.bytes - work.bytes, inodes: counted.inodes - work.inodes };
  }

  close(): void {
    close(this.#all);
    close(this.#aside);
  }

  pathOf(id: number): string {
    return `${this.snapshots}/${id}`;
  }

  /**
   * Makes the directory of a snapshot. Returns the descriptor that locks it, or undefined if the number cannot be used:
   * something has the name, or a clean-up in another process took the directory for a stray one.
   */
  *make(id: number, kind: SnapshotKind, owner: Owner | undefined): Task<Held | undefined> {
    const plan = new Plan();
    const all = this.#all.descriptor;
    const name = String(id);
    const made = plan.add(calls.mkdirat, [all, name, mode.snapshot], { undo: true });
    const directory = plan.add(calls.openat2, [all, name, OPEN | k.O_NOFOLLOW, 0], { keep: true, output: 0 });
    const lock = plan.add(calls.flock, [directory, k.LOCK_EX | k.LOCK_NB]);
    plan.add(calls.mkdirat, [directory, 'fs', mode.fs], { undo: true });
    if (kind === 'active') {
      plan.add(calls.mkdirat, [directory, 'work', mode.work], { undo: true });
      const project = this.projectOf(id);
      if (project !== undefined) {
        for (const name of ['fs', 'work']) {
          plan.add(calls.set_project, [plan.add(calls.openat2, [directory, name, OPEN | k.O_NOFOLLOW, 0]), project]);
        }
      }
    }
    if (owner !== undefined) {
      plan.add(calls.fchownat, [directory, 'fs', owner.uid, owner.gid, k.AT_SYMLINK_NOFOLLOW]);
    }
    if (this.#isSynced) for (const synced of [directory, all]) plan.add(calls.fsync, [synced]);
    const outcome = yield* ask(plan);
    if (!(outcome instanceof StepFailure)) return { descriptor: outcome.result(plan.stepOf(directory)) };
    const { errno, step } = outcome;
    const isTaken =
      (step === plan.stepOf(made) && errno === e.EEXIST) ||
      (step === plan.stepOf(lock) && errno === e.EAGAIN) ||
      (step !== plan.stepOf(made) && errno === e.ENOENT);
    if (isTaken) return undefined;
    const path = this.pathOf(id);
    throw failure(path, `make ${quotePath(path)}`, errno, step?.call.name);
  }

  /** Removes a directory that `make` has made, and nothing has been put into. */
  *unmake(id: number): Task<void> {
    const plan = new Plan();
    for (const path of ['/fs', '/work', '']) {
      plan.add(calls.unlinkat, [this.#all.descriptor, id + path, k.AT_REMOVEDIR], { tolerate: 'any' });
    }
    yield* ask(plan);
  }

  /** Returns the owner of a snapshot's root directory. */
  *ownerOf(id: number): Task<Owner> {
    const found = yield* examine(this.#all.descriptor, [`${id}/fs`]);
    found.advance();
    const { uid, gid, error } = found;
    if (error === 0) return { uid, gid };
    const path = `${this.pathOf(id)}/fs`;
    throw failure(path, `read the owner of ${quotePath(path)}`, error, 'statx');
  }

  /** Removes the directory of a snapshot, unless something uses it. `onMoved` is called once it has no name any more. */
  *remove(id: number, onMoved: () => void): Task<void> {
    const outcome = yield* this.#remove(id, () => true, onMoved);
    if (outcome === 'locked') {
      const path = this.pathOf(id);
      const what = `another program has locked ${quotePath(path)}`;
      throw new OverlayError({ errno: e.EBUSY, reason: 'layer-in-use', what, hint: 'try again later', path });
    }
    if (outcome !== undefined) return;
    // An earlier attempt has moved it.
    onMoved();
    yield* this.removeAside(id);
  }

  /**
   * Removes a directory that no record seems to name. Returns false if it is being made. `isStray` is asked again while
   * it is locked, so that it cannot get a record.
   */
  *removeStray(id: number, isStray: () => boolean): Task<boolean> {
    return (yield* this.#remove(id, isStray, () => {})) === 'removed';
  }

  *#remove(id: number, isStray: () => boolean, onMoved: () => void): Task<string | undefined> {
    const isWanted = (): boolean => {
      this.refuseMoved();
      return isStray();
    };
    const aside = { path: this.#asideOf(id), isSynced: this.#isSynced, isWanted, onMoved };
    return yield* unlessMissing(removeAside(this.pathOf(id), aside));
  }

  /** Removes a directory that was moved aside, if it is there. */
  *removeAside(id: number): Task<void> {
    this.refuseMoved();
    yield* unlessMissing(removeDirectory(this.#asideOf(id)));
  }

  #asideOf(id: number): string {
    return `${this.#removed}/${id}`;
  }

  /** The path of a directory that may have been moved aside. */
  placeOf(id: number): string {
    return existsSync(this.pathOf(id)) ? this.pathOf(id) : this.#asideOf(id);
  }

  /** The numbers of the snapshots' directories, and of those that were moved aside. */
  *numbers(): Task<{ readonly snapshots: number[]; readonly removed: number[] }> {
    return {
      snapshots: yield* numbersIn(this.#all, this.snapshots),
      removed: yield* numbersIn(this.#aside, this.#removed),
    };
  }
}

type DirectoryOptions = Pick<CheckedSnapshotterOptions, 'isReadonly' | 'fsync'>;

/**
 * The numbers that are names of directories in a directory. Other names are not ours. Not by node:fs: a descriptor of its
 * opendir stays when a worker is terminated.
 */
function* numbersIn({ descriptor }: Held, path: string): Task<number[]> {
  const walker = new Walker('', { at: descriptor, atPath: path, unsorted: true, oneLevel: true });
  const numbers: number[] = [];
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        if (walker.type === k.S_IFDIR && /^[1-9]\d{0,14}$/.test(walker.path)) numbers.push(Number(walker.path));
      }
    }
  } finally {
    walker.close();
  }
  return numbers;
}

function* unlessMissing<T>(dialogue: Task<T>): Task<T | undefined> {
  try {
    return yield* dialogue;
  } catch (error) {
    if (error instanceof OverlayError && error.reason === 'path-missing') return undefined;
    throw error;
  }
}
