/**
 * Looks, before a merge, at what the target directory has at the paths of the upper: directories that it lacks, and
 * entries that this process may not replace or remove.
 */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { below, toBytePath } from '../trees/encodings.js';
import type { Records } from '../trees/records.js';
import type { Root } from '../trees/root.js';
import { examine, Walker } from '../trees/walk.js';
import { type Actor, frozen, inSticky, type Obstacles, type Reason } from './obstacles.js';

/** The most entries that wait for one native call. */
const MOST_DIRECTORIES = 256;
const MOST_OTHERS = 4096;

/** Rights to change the entries of a directory. */
const WRITES_AND_ENTERS = 0o3;

/** The treatment of the entry at a path: `merge` takes the entries of a directory into the one that is there. */
type Fate = 'merge' | 'clear' | 'replace';

interface Place {
  readonly path: string;
  readonly fate: Fate;
  readonly parent: Directory | undefined;
}

/** A directory of the upper. */
interface Directory extends Place {
  readonly inode: bigint;
  /** The target directory lacks it. Undefined before the look. */
  isAbsent: boolean | undefined;
}

interface Foreign {
  readonly uid: number;
  /** The place in the upper because of which it is changed. */
  readonly place: string;
}

export class Places {
  readonly #dir: Root;
  readonly #actor: Actor;
  readonly #obstacles: Obstacles;
  readonly #breathe: () => Task<void>;
  /** Inodes of those directories of the upper that do not exist in the target directory, the topmost ones only. */
  readonly absent = new Set<bigint>();
  /** The bytes that files take up which the merge replaces or removes. */
  freed = 0;
  /** By depth: the directories above the current entry. */
  readonly #above: (Directory | undefined)[] = [];
  #directories: Directory[] = [];
  /** Entries wait until it is known whether their directories exist: nothing is to be looked up in the others. */
  #others: Place[] = [];
  /** Directories that have to be changed although their modes do not let this process, by path. */
  readonly #foreign = new Map<string, Foreign>();
  /** The root of the target lets this process replace only entries of its own. */
  #isSticky = false;

  constructor(dir: Root, actor: Actor, obstacles: Obstacles, breathe: () => Task<void>) {
    this.#dir = dir;
    this.#actor = actor;
    this.#obstacles = obstacles;
    this.#breathe = breathe;
  }

  /** Looks at the target directory itself. With `getsMetadata`, it gets the metadata of the upper's root. */
  *checkRoot(getsMetadata: boolean): Task<void> {
    const found = yield* examine(this.#dir.descriptor, ['']);
    if (!found.advance() || found.error !== 0) return;
    if (found.isFrozen) this.#add('', frozen(this.#dir.path, ''));
    if (!this.#isForeign(found)) return;
    this.#isSticky = (found.mode & k.S_ISVTX) !== 0;
    if (getsMetadata) this.#add('', keepsMetadata(found.uid));
    else if (!this.#actor.isGranted(found, WRITES_AND_ENTERS)) this.#foreign.set('', { uid: found.uid, place: '' });
  }

  get isFull(): boolean {
    return this.#directories.length >= MOST_DIRECTORIES || this.#others.length >= MOST_OTHERS;
  }

  /** Adds an entry of the upper. */
  add(entry: Walker, isWhiteout: boolean, isOpaque: boolean): void {
    const { path, depth } = entry;
    const parent = this.#above[depth - 1];
    const isDirectory = !isWhiteout && entry.type === k.S_IFDIR;
    if (isDirectory) this.#above[depth] = parent;
    if (parent?.isAbsent) return;
    if (!isDirectory) this.#others.push({ path, parent, fate: 'replace' });
    else {
      const fate = isOpaque ? 'clear' : 'merge';
      const directory: Directory = { path, parent, fate, inode: entry.inode, isAbsent: undefined };
      this.#above[depth] = directory;
      this.#directories.push(directory);
    }
  }

  *look(): Task<void> {
    const [directories, others] = [this.#directories, this.#others];
    this.#directories = [];
    this.#others = [];
    const found = yield* this.#examine(directories);
    const trees: string[] = [];
    for (const directory of directories) {
      found.advance();
      const { path, inode, parent } = directory;
      directory.isAbsent = parent?.isAbsent || found.error === e.ENOENT;
      if (directory.isAbsent && !parent?.isAbsent) this.absent.add(inode);
      if (found.error === 0 && this.#check(found, directory)) trees.push(path);
    }
    const rest = others.filter(({ parent }) => !parent?.isAbsent);
    const there = yield* this.#examine(rest);
    for (const place of rest) {
      there.advance();
      if (there.error === 0 && this.#check(there, place)) trees.push(place.path);
    }
    for (const path of trees) yield* this.#checkTree(path);
  }

  *#examine(places: readonly Place[]): Task<Records> {
    return yield* examine(
      this.#dir.descriptor,
      places.map(({ path }) => path),
    );
  }

  /** Checks what is there. Returns true for a directory whose entries are removed. */
  #check(found: Records, { path, fate }: Place): boolean {
    if (found.isOtherMount) throw mountInside(this.#dir.path, path);
    if (found.isFrozen) this.#add(path, frozen(this.#dir.path, path));
    const isDirectory = found.type === k.S_IFDIR;
    if (isDirectory && fate !== 'replace') {
      if (this.#isForeign(found)) this.#add(path, keepsMetadata(found.uid));
      return fate === 'clear';
    }
    if (this.#isSticky && !path.includes('/') && this.#isForeign(found)) {
      this.#add(path, inSticky(this.#dir.path, found.uid));
    }
    if (!isDirectory) this.#free(found);
    return isDirectory;
  }

  /** Checks that a directory can be emptied. */
  *#checkTree(root: string): Task<void> {
    const { descriptor, path: dir } = this.#dir;
    const walker = new Walker(toBytePath(root), { at: descriptor, atPath: dir, followRoot: false });
    /** By depth: this process may remove only entries of its own. */
    const sticky: boolean[] = [];
    let doubted: { readonly path: string; readonly uid: number } | undefined;
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          yield* this.#breathe();
          const { type, mode, uid, depth } = walker;
          const path = walker.path === '' ? root : below(root, walker.path);
          if (walker.isOtherMount) throw mountInside(dir, path);
          if (depth > 0 && walker.isFrozen) this.#add(path, frozen(dir, path), root);
          const above = path.slice(0, path.lastIndexOf('/'));
          if (depth > 0 && sticky[depth - 1] && this.#isForeign(walker)) {
            this.#add(path, inSticky(joinPath(dir, toBytePath(above)), uid), root);
          }
          if (doubted?.path === above) this.#foreign.set(above, { uid: doubted.uid, place: root });
          doubted = undefined;
          if (type !== k.S_IFDIR) {
            this.#free(walker);
            continue;
          }
          const isForeign = this.#isForeign(walker);
          sticky[depth] = isForeign && (mode & k.S_ISVTX) !== 0;
          if (isForeign && walker.error === e.EACCES) this.#add(path, cannotBeRead(uid), root);
          // An empty directory can be removed whoever owns it. The next record tells.
          if (isForeign && !this.#actor.isGranted(walker, WRITES_AND_ENTERS)) doubted = { path, uid };
        }
      }
    } finally {
      walker.close();
    }
  }

  /** Asks the kernel about directories of other users whose modes grant nothing: an access control list may. */
  *end(): Task<void> {
    yield* this.look();
    const foreign = [...this.#foreign];
    for (let first = 0; first < foreign.length; first += MOST_DIRECTORIES) {
      const plan = new Plan();
      const some = foreign.slice(first, first + MOST_DIRECTORIES).map(([path, one]) => {
        const at = path === '' ? '.' : toBytePath(path);
        const args = [this.#dir.descriptor, at, k.W_OK | k.X_OK, k.AT_EACCESS] as const;
        const step = plan.stepOf(plan.add(calls.faccessat2, args, { output: 0, tolerate: 'any' }));
        return { path, ...one, step };
      });
      const outcome = yield* ask(plan);
      if (outcome instanceof StepFailure) return;
      for (const { path, uid, place, step } of some) {
        if (outcome.result(step) === -e.EACCES) this.#add(path, cannotBeWritten(uid), place);
      }
    }
  }

  #isForeign({ uid }: Records): boolean {
    return uid !== this.#actor.uid && !this.#actor.isRoot;
  }

  #free({ type, links, blocks }: Records): void {
    if (type === k.S_IFREG && links === 1) this.freed += 512 * blocks;
  }

  #add(path: string, reason: Reason, place = path): void {
    this.#obstacles.add(this.#dir.path, path, reason, place);
  }
}

const keepsMetadata = (uid: number): Reason => [
  `belongs to the user ${uid}, and only its owner may give it the metadata of the upper`,
  'run as that user or as root',
];

const cannotBeWritten = (uid: number): Reason => [
  `belongs to the user ${uid}, and this process may change nothing in it`,
  'run as that user or as root',
];

const cannotBeRead = (uid: number): Reason => [
  `belongs to the user ${uid}, and this process may not see whether it is empty`,
  'run as that user or as root, or remove it if it is empty',
];

export const mountInside = (root: Path, path: string): OverlayError =>
  new OverlayError({
    errno: e.EXDEV,
    reason: 'mount-inside',
    what: `something is mounted inside ${quotePath(root)}, at ${quotePath(joinPath(root, toBytePath(path)))}; nothing was merged`,
    hint: 'unmount it, then call it again',
    path: pathString(root),
  });
