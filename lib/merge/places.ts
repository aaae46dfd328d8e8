/**
 * Looks, before a merge, at what the target directory has at the paths of the upper: directories that it lacks, and
 * entries that this process may not replace or remove.
 */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import type { Task } from '../kernel/task.js';
import { joinPath } from '../paths.js';
import { below, toBytePath } from '../trees/encodings.js';
import type { Records } from '../trees/records.js';
import type { Root } from '../trees/root.js';
import { examine, Walker } from '../trees/walk.js';
import type { Actor } from './actor.js';
import {
  cannotBeRead,
  cannotBeWritten,
  FROZEN,
  IS_MOUNT,
  inSticky,
  keepsMetadata,
  type Obstacle,
  type Obstacles,
} from './obstacles.js';

/** The most entries that wait for one native call. */
const MOST_DIRECTORIES = 256;
const MOST_OTHERS = 4096;

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

export class Places {
  readonly #dir: Root;
  readonly #actor: Actor;
  readonly #obstacles: Obstacles;
  readonly #breathe: () => Task<void>;
  /** Inodes of those directories of the upper that do not exist in the target directory, the topmost ones only. */
  readonly absent = new Set<bigint>();
  /** The bytes that files take up which the merge replaces or removes. */
  freed = 0;
  /** How many names of a file with several the merge replaces or removes, by inode. */
  readonly #names = new Map<bigint, number>();
  /** By depth: the directories above the current entry. */
  readonly #above: (Directory | undefined)[] = [];
  #directories: Directory[] = [];
  /** Entries wait until it is known whether their directories exist: nothing is to be looked up in the others. */
  #others: Place[] = [];
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
    const { uid } = found;
    const isForeign = this.#actor.isForeign(found);
    if (found.isFrozen) this.#add('', FROZEN);
    if (isForeign && getsMetadata) this.#add('', keepsMetadata(uid));
    this.#isSticky = isForeign && (found.mode & k.S_ISVTX) !== 0;
    const onDenial = (errno: number): void => {
      // The owner can open it up.
      if (isForeign || errno === e.EROFS) this.#add('', cannotBeWritten(uid, errno));
    };
    this.#actor.askLater({ root: this.#dir, path: '', rights: k.W_OK | k.X_OK, onDenial });
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
    if (found.isOtherMount) {
      this.#add(path, IS_MOUNT, path);
      return false;
    }
    if (found.isFrozen) this.#add(path, FROZEN, path);
    const isDirectory = found.type === k.S_IFDIR;
    const isForeign = this.#actor.isForeign(found);
    if (isDirectory && fate !== 'replace') {
      if (isForeign) this.#add(path, keepsMetadata(found.uid), path);
      return fate === 'clear';
    }
    if (this.#isSticky && !path.includes('/') && isForeign) this.#add(path, inSticky(this.#dir.path, found.uid), path);
    if (!isDirectory) this.#free(found);
    return isDirectory;
  }

  /** Checks that a directory can be emptied. */
  *#checkTree(root: string): Task<void> {
    const { descriptor, path: dir } = this.#dir;
    const walker = new Walker(toBytePath(root), { at: descriptor, atPath: dir, followRoot: false });
    /** By depth: this process may remove only entries of its own. */
    const sticky: boolean[] = [];
    /** A directory of another user, until the next record tells whether it is empty: whoever may remove it then. */
    let doubted: { readonly path: string; readonly uid: number } | undefined;
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          yield* this.#breathe();
          const { type, mode, uid, depth } = walker;
          const path = walker.path === '' ? root : below(root, walker.path);
          const above = path.slice(0, path.lastIndexOf('/'));
          const isForeign = this.#actor.isForeign(walker);
          if (walker.isOtherMount) this.#add(path, IS_MOUNT, root);
          if (depth > 0 && walker.isFrozen) this.#add(path, FROZEN, root);
          if (depth > 0 && sticky[depth - 1] && isForeign) {
            this.#add(path, inSticky(joinPath(dir, toBytePath(above)), uid), root);
          }
          if (doubted?.path === above) this.#askForChanges(doubted.path, doubted.uid, root);
          doubted = undefined;
          if (type !== k.S_IFDIR) this.#free(walker);
          else if (!walker.isOtherMount) {
            if (isForeign && walker.error === e.EACCES) this.#add(path, cannotBeRead(uid), root);
            sticky[depth] = isForeign && (mode & k.S_ISVTX) !== 0;
            if (isForeign) doubted = { path, uid };
          }
        }
      }
    } catch (error) {
      // The root itself cannot be read. Its owner can open it up, and another user can remove it if it is empty.
      if (!(error instanceof OverlayError) || error.reason !== 'path-inaccessible') throw error;
      const found = yield* examine(descriptor, [root]);
      if (found.advance() && this.#actor.isForeign(found)) this.#add(root, cannotBeRead(found.uid), root);
    } finally {
      walker.close();
    }
  }

  #askForChanges(path: string, uid: number, place: string): void {
    const onDenial = (errno: number): void => this.#add(path, cannotBeWritten(uid, errno), place);
    this.#actor.askLater({ root: this.#dir, path, rights: k.W_OK | k.X_OK, onDenial });
  }

  /** Counts what is freed when the last name of a file goes. */
  #free({ type, links, blocks, inode }: Records): void {
    if (type !== k.S_IFREG) return;
    const names = links === 1 ? 1 : (this.#names.get(inode) ?? 0) + 1;
    if (links > 1) this.#names.set(inode, names);
    if (names === links) this.freed += 512 * blocks;
  }

  #add(path: string, obstacle: Obstacle, place?: string): void {
    this.#obstacles.add(this.#dir.path, path, obstacle, place);
  }
}
