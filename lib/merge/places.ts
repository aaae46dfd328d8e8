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

/** Entries that one native call looks up. */
const AT_ONCE = 256;

/** Rights to change the entries of a directory. */
const WRITES_AND_ENTERS = 0o3;

/** The treatment of the entry at a path: `merge` takes the entries of a directory into the one that is there. */
type Fate = 'merge' | 'clear' | 'replace';

interface Place {
  readonly path: string;
  readonly inode: bigint;
  readonly isDirectory: boolean;
  readonly fate: Fate;
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
  #waiting: Place[] = [];
  #lastAbsent: string | undefined;
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
    return this.#waiting.length >= AT_ONCE;
  }

  /** Adds an entry of the upper. */
  add({ type, inode }: Records, path: string, fate: Fate): void {
    if (!this.#isInAbsent(path)) this.#waiting.push({ path, inode, isDirectory: type === k.S_IFDIR, fate });
  }

  #isInAbsent(path: string): boolean {
    return this.#lastAbsent !== undefined && path.startsWith(`${this.#lastAbsent}/`);
  }

  *look(): Task<void> {
    const waiting = this.#waiting;
    this.#waiting = [];
    if (waiting.length === 0) return;
    const found = yield* examine(
      this.#dir.descriptor,
      waiting.map(({ path }) => path),
    );
    const trees: string[] = [];
    for (const place of waiting) {
      found.advance();
      const { path, inode, isDirectory } = place;
      if (found.error === 0) {
        if (this.#check(found, place)) trees.push(path);
      } else if (found.error === e.ENOENT && isDirectory && !this.#isInAbsent(path)) {
        this.absent.add(inode);
        this.#lastAbsent = path;
      }
    }
    for (const path of trees) yield* this.#checkTree(path);
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
    for (let first = 0; first < foreign.length; first += AT_ONCE) {
      const plan = new Plan();
      const some = foreign.slice(first, first + AT_ONCE).map(([path, one]) => {
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
