/** Folds an upper into a directory: the options, and the checks before anything is read. */
import { checkBoolean, checkFunction, checkSignal, checkWord, toOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { abortError, type Conflict, OverlayError } from '../errors.js';
import { close, type Held } from '../kernel/held.js';
import { run, type Task } from '../kernel/task.js';
import { isAtOrBelow, type PathLike, pathString, quotePath, toAbsolute, toPath } from '../paths.js';
import type { Progress } from '../progress.js';
import { type GivenLayers, type Layers, toLayers, upperOf } from '../trees/given.js';
import { lockDirectory, unlock } from '../trees/lock.js';
import { type MarkSpace, spaceOf } from '../trees/marks.js';
import { openRoot, type Root, refuseMerged } from '../trees/root.js';
import { checkSync, type Sync } from '../trees/synced.js';
import { refuseUsed, usedByOther } from '../trees/used.js';
import { examine } from '../trees/walk.js';
import { type Baseline, toBaseline } from './baseline.js';
import { statDescriptor } from './modes.js';
import { Merge, type MergeSummary, type Settings } from './write.js';

export interface MergeOptions {
  /** The directory to merge into: a plain directory, such as the lower layer, or a mounted overlay. */
  into: PathLike;
  /**
   * Empties the upper: renames its files where the upper and the directory are on one mount. Default: false; the upper
   * stays as it is, and the file system clones the files where it can (FICLONE, ioctl_ficlone(2)).
   */
  move?: boolean;
  /** Changes that others make in the directory after this moment are conflicts. By default the merge looks for none. */
  since?: Baseline;
  /**
   * Decides conflicts. `'error'` throws an error that lists all of them, `'ours'` takes the upper's version, and
   * `'theirs'` keeps the directory's version. A function decides each conflict. Default: `'error'`.
   */
  conflict?: 'error' | 'ours' | 'theirs' | ((conflict: Conflict) => 'ours' | 'theirs');
  /** Gives the directory itself the owner, mode, times and attributes of the upper's root. Default: false. */
  root?: boolean;
  /**
   * Takes an upper without any mark of overlayfs for one, even if the directory deletes or changes its entries as an
   * upper of it would. By default the merge refuses such a pair: the two are probably swapped (`'layers-swapped'`). A
   * mount's upper, and a merge with `since`, need no such check. Default: false.
   */
  unmarked?: boolean;
  /** Makes all checks and changes nothing. The result lists conflicts even for `conflict: 'error'`. Default: false. */
  dryRun?: boolean;
  /**
   * `'end'`: the merge is on the disk before the promise is fulfilled, and a power cut at any moment leaves what a later
   * call can finish, syncfs(2). `'none'`: the kernel writes it when it likes. Default: `'end'`.
   */
  sync?: Sync;
  onProgress?: (progress: Progress) => void;
  signal?: AbortSignal;
}

const names = ['into', 'move', 'since', 'conflict', 'root', 'unmarked', 'dryRun', 'sync', 'onProgress', 'signal'];
const known: ReadonlySet<string> = new Set(names);

function toSettings({ isMounted }: GivenLayers, options: MergeOptions): Settings {
  const { conflict, onProgress, since } = options;
  checkFunction(onProgress, 'onProgress');
  return {
    moves: checkBoolean(options.move, 'move') ?? false,
    since: since === undefined ? undefined : toBaseline(since),
    conflict:
      typeof conflict === 'function'
        ? conflict
        : (checkWord<'error' | 'ours' | 'theirs'>(conflict, 'conflict', ['error', 'ours', 'theirs']) ?? 'error'),
    root: checkBoolean(options.root, 'root') ?? false,
    looksForSwap: checkBoolean(options.unmarked, 'unmarked') !== true && since === undefined && !isMounted,
    dryRun: checkBoolean(options.dryRun, 'dryRun') ?? false,
    syncs: checkSync(options.sync),
    onProgress,
    signal: checkSignal(options.signal),
  };
}

function* merged(from: Layers, given: MergeOptions): Task<MergeSummary> {
  const options = toOptions(given, known);
  const layers = toLayers(from);
  const upperPath = upperOf(layers, from);
  const settings = toSettings(layers, options);
  const dirPath = toAbsolute(toPath(options.into, 'into'));
  if (settings.signal?.aborted) throw abortError(settings.signal);
  const upper = yield* openRoot(upperPath);
  try {
    yield* refuseMerged(upperPath, upper.descriptor);
    const dir = yield* openRoot(dirPath);
    try {
      refuseOverlap(upper, dir);
      yield* refuseOtherBase(dir, settings);
      const lock = yield* lockDirectory('.', dir.descriptor);
      if (lock === 'taken') {
        throw new OverlayError({
          errno: e.EBUSY,
          reason: 'layer-in-use',
          what: `another merge into ${quotePath(dirPath)} is under way`,
          hint: 'wait for it',
          path: pathString(dirPath),
        });
      }
      let upperLock: Held | undefined;
      try {
        if (settings.moves) upperLock = yield* takeUpper(upper);
        const space = layers.space ?? (yield* findSpace(upper));
        return yield* new Merge(upper, dir, space, settings).run();
      } finally {
        if (upperLock !== undefined) yield* unlock(upperLock);
        if (lock !== undefined) yield* unlock(lock);
      }
    } finally {
      close({ descriptor: dir.descriptor });
    }
  } finally {
    close({ descriptor: upper.descriptor });
  }
}

/** Locks an upper that is to be emptied. */
function* takeUpper(upper: Root): Task<Held | undefined> {
  yield* refuseUsed(upper);
  const lock = yield* lockDirectory('.', upper.descriptor);
  if (lock === 'taken') throw usedByOther(upper.path);
  return lock;
}

function* findSpace({ descriptor }: Root): Task<MarkSpace> {
  const records = yield* examine(descriptor, [''], { attributes: 'directories' });
  return records.advance() ? spaceOf(records.attributes) : 'either';
}

function refuseOverlap(upper: Root, dir: Root): void {
  const isSame = upper.found.inode === dir.found.inode && upper.found.device === dir.found.device;
  if (!isSame && !isAtOrBelow(dir.real, upper.real)) return;
  const [a, b] = [quotePath(upper.path), quotePath(dir.path)];
  throw new OverlayError({
    errno: e.EINVAL,
    reason: isSame ? 'layer-twice' : 'layers-overlap',
    what: isSame ? `${a} and ${b} are the same directory` : `${a} cannot be merged into ${b}, which lies inside it`,
    hint: 'name two separate directories',
    path: pathString(dir.path),
  });
}

function* refuseOtherBase(dir: Root, { since }: Settings): Task<void> {
  if (since === undefined) return;
  // A new directory may get the inode of a removed one. The number of its device may be another one after a restart.
  const { ino, birthtimeNs } = yield* statDescriptor(dir.descriptor);
  if (since.inode === String(ino) && birthtimeNs < since.ctime) return;
  throw new OverlayError({
    errno: e.EINVAL,
    reason: 'layer-changed',
    what: `the baseline belongs to another directory than ${quotePath(dir.path)}`,
    hint: 'pass the baseline of this directory',
    path: pathString(dir.path),
  });
}

/**
 * Folds an upper into a directory: its deletions, replacements, opaque directories, renames, hard links, contents,
 * owners, modes, times and attributes. The directory `into` then equals the merged view. First unmount the overlay that
 * uses the upper, or let no program use it during the merge. A merge by move refuses an upper that an overlay uses, also if that overlay is the argument.
 * `remove` says which overlays it sees.
 *
 * With `index`, the kernel shows a changed file under all its hard links, and the upper may lack some of them. The merge
 * refuses such an upper before it writes anything, with `reason: 'layers-incomplete'` and the remedy.
 *
 * The merge replaces each file atomically, rename(2). A path that exists before and after the merge is never missing. One
 * exception is a file in the place of a directory, or the other way round, where the file system cannot exchange the two:
 * among them is an overlay without `redirectDir` for directories of its lower layers.
 * A merge that failed or was killed can be called again: it resumes, and the result is the same. A copy can finish a
 * merge by move, unless that has moved some hard links of a file and not all (`'layers-incomplete'`). Until the merge is
 * complete, `into` has a directory `.overlayfs-merge`, which may hold entries of the upper, and merges of other uppers are
 * refused (`'layer-in-use'`). Do not repeat a complete merge by copy if the upper has renamed
 * directories: the second merge would look for them at their old paths. A merge by move leaves nothing to repeat.
 *
 * With `since`, the merge finds all conflicts before it writes anything. A conflict is a path that the upper changes
 * and that others have changed in the directory. A file that the upper replaces with another one, and that others
 * removed, is no conflict. Without `index`, the kernel does not mark the copy of a file with several hard links. The
 * baseline has the names of such files: one that others removed is a conflict if the upper has a file there that may be its
 * copy. For a baseline without them, the merge recognizes a copy by times, of the file or its directory, that are older than
 * the file itself. A new file with such times is then a conflict too, and a copy is none that was written and read since,
 * in a directory with new names. The merge cannot see a write through a memory mapping, mmap(2), to a page that was already
 * dirty at the baseline: such a write changes no time. A call that resumes looks for no new conflicts.
 *
 * @throws {OverlayError} `reason` is `'layer-conflict'` with all of them in `conflicts`, `'path-missing'`,
 * `'path-not-directory'`, `'path-exists'`, `'layer-twice'`, `'layers-overlap'`, `'layers-swapped'`, `'layer-in-use'`,
 * `'layer-changed'`, `'layers-incomplete'`, `'mount-inside'`, `'out-of-space'`, `'read-only'`, `'permission-denied'` or `'xattr-denied'`.
 * The message says how far the merge got
 */
export async function merge(layers: Layers, options: MergeOptions): Promise<MergeSummary> {
  return run(merged(layers, options));
}
