/**
 * The first walk of a merge: finds every obstacle before anything is written. These are conflicts, redirects whose target
 * is missing, hard links that the upper lacks, mounts, attributes that may not be read, and changes since an earlier call.
 */
import * as e from '../errnos.js';
import { type Conflict, invalidArgumentType, OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import type { Task } from '../kernel/task.js';
import { isAtOrBelow, joinPath, type Path, pathString, quotePath, toBytes } from '../paths.js';
import { below, toBytePath } from '../trees/encodings.js';
import { isValidRedirect, isWhiteoutEntry, type MarkSpace, type Marks, readMarks, shownName } from '../trees/marks.js';
import type { Attributes, Records, Time } from '../trees/records.js';
import type { Root } from '../trees/root.js';
import { examine, type Tape, Walker } from '../trees/walk.js';
import { Actor } from './actor.js';
import type { CheckedBaseline } from './baseline.js';
import { Conflicts, type FoundConflict } from './conflicts.js';
import { isShut, OWNER_WRITES } from './modes.js';
import { IS_MOUNT, Obstacles } from './obstacles.js';
import { Places } from './places.js';
import { refuseFull } from './room.js';
import { SplitLinks } from './split-links.js';
import { hasHiddenUserAttribute, UpperCheck } from './upper-check.js';

/** A directory inside the target directory, in which a merge makes entries. Its last step removes it. */
export const STAGING = '.overlayfs-merge';

/** The entry below the directory that a redirect leads to. */
export interface Redirected {
  readonly path: string;
  /** The S_IFMT bits of the mode that it must have. */
  readonly type: number;
  readonly isValid: boolean;
}

export interface CheckOptions {
  readonly upper: Root;
  /** The mode of the upper's root, or the one that an earlier call has kept. */
  readonly upperMode: number;
  readonly dir: Root;
  readonly space: MarkSpace;
  /** Keeps the records for the second walk. A dry run has none. */
  readonly tape: Tape | undefined;
  /** The moment from which on the changes of others are conflicts. */
  readonly since: CheckedBaseline | undefined;
  readonly conflict: 'error' | 'ours' | 'theirs' | ((conflict: Conflict) => 'ours' | 'theirs');
  readonly dryRun: boolean;
  readonly moves: boolean;
  /** Files are renamed, not copied. */
  readonly renames: boolean;
  /** The directory itself gets the metadata of the upper's root. */
  readonly root: boolean;
  /** The state that an earlier call has stored, if this one resumes it. */
  readonly earlier: EarlierCheck | undefined;
  /** This call copies what an earlier one has begun to move. */
  readonly finishesMove: boolean;
  /** Called for each entry: checks the signal, and lets the event loop run. */
  readonly breathe: () => Task<void>;
}

export interface EarlierCheck {
  /** Paths at which the directory keeps its version. */
  readonly theirs: readonly string[];
  /** Directories that keep their own metadata, with their modes. */
  readonly kept: readonly (readonly [path: string, mode: number])[];
  /** The modes of entries that the merge opens up, by the inode in the upper. */
  readonly modes: readonly (readonly [inode: string, mode: number])[];
  /** Inodes of the upper whose redirects lead to clones. */
  readonly redirects: readonly string[];
  /** If every entry is copied: the newest change in the upper before that, ctime in ms. */
  readonly latest?: number;
}

export class MergeCheck {
  readonly #options: CheckOptions;
  readonly #looked: Conflicts | undefined;
  #links: SplitLinks | undefined;
  readonly #actor = new Actor();
  readonly #obstacles = new Obstacles();
  readonly #places: Places;
  readonly #upper: UpperCheck;
  /** The path of the upper below the directory, if it lies there. */
  readonly #own: string | undefined;
  readonly #seenRedirects: ReadonlySet<string> | undefined;
  /** The path below `dir` from which the entries of the current directory at each depth come. */
  readonly #origins: string[] = [''];
  /** True for the current directory at each depth if it is at or below a redirect. */
  readonly #areMoved: boolean[] = [];
  /** The inode of the current directory at each depth. */
  readonly #above: bigint[] = [];
  /** By the inode in the upper. */
  readonly redirects = new Map<bigint, Redirected>();
  /** Inodes of those directories of the upper that cannot be renamed whole: they, or entries in them, need changes. */
  readonly soiled = new Set<bigint>();
  /** The bytes that a copy writes at least. */
  #copied = 0;
  /** Inodes of counted files with several links. */
  readonly #counted = new Set<bigint>();
  /** How many links of a file the upper lacks so far, with its path; only if this call finishes a move. */
  readonly #missingLinks = new Map<bigint, { count: number; readonly path: Path }>();
  /** Inodes of those directories of the upper in which a directory has a redirect. */
  readonly holders = new Set<bigint>();
  /** All entries of the upper, without its root. */
  entries = 0;
  /** Whiteouts among them. */
  deleted = 0;
  /** Anything in the upper, or its root, has a mark of overlayfs. */
  isMarked = false;
  /** The newest change in the upper, ctime in ms. */
  latest = 0;
  /** The paths at which the directory keeps its version. */
  readonly theirs: string[];
  /** Directories that keep their own metadata, with their modes, and get the entries of the upper. */
  readonly kept: Map<string, number>;
  /** The modes of entries of the upper that a move must open up, by inode. */
  readonly modes: Map<string, number>;
  conflicts: readonly Conflict[] = [];

  constructor(options: CheckOptions) {
    const { upper, dir, since, earlier } = options;
    this.#options = options;
    this.#looked =
      since === undefined || earlier !== undefined ? undefined : new Conflicts(dir.descriptor, upper.descriptor, since);
    const { space, moves, renames } = options;
    this.#upper = new UpperCheck({ upper, space, moves, renames }, this.#actor, this.#obstacles);
    this.#places = new Places(dir, this.#actor, this.#obstacles, options.breathe);
    this.#own = pathInside(upper.real, dir.real);
    this.#seenRedirects = earlier && new Set(earlier.redirects);
    this.theirs = [...(earlier?.theirs ?? [])];
    this.kept = new Map(earlier?.kept);
    this.modes = new Map(earlier?.modes);
  }

  /** Reads the upper. */
  *walk(): Task<void> {
    const { upper, tape, breathe, root } = this.#options;
    yield* this.#places.checkRoot(root);
    const where = { at: upper.descriptor, atPath: upper.path };
    const walker = new Walker('', { ...where, attributes: 'all', targets: true, ...(tape && { tape }) });
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          yield* breathe();
          if (walker.error !== 0) throw walker.failure();
          this.latest = Math.max(this.latest, toMilliseconds(walker.ctime));
          if (walker.isOtherMount) this.#obstacles.add(upper.path, walker.path, IS_MOUNT);
          if (walker.depth === 0) this.#enterRoot(walker);
          else this.#enter(walker);
          if (this.#places.isFull) yield* this.#places.look();
          if (this.#looked?.isFull) yield* this.#looked.look();
        }
      }
    } finally {
      walker.close();
    }
    yield* this.#places.look();
    yield* this.#actor.askAll();
  }

  /** Inodes of those directories of the upper that do not exist in the target directory, the topmost ones only. */
  get absent(): ReadonlySet<bigint> {
    return this.#places.absent;
  }

  /** Looks for the rest of the obstacles, unless an earlier call has come to its end. */
  *check(): Task<void> {
    if (this.#options.earlier === undefined) yield* this.#checkRedirects();
    if (this.#links !== undefined) yield* this.#links.check();
    for (const { count, path } of this.#missingLinks.values()) {
      if (count > 0) throw linksWereMoved(this.#options.upper.path, path);
    }
    if (this.#looked !== undefined) this.#decide(yield* this.#looked.end());
    const isResumed = this.#options.earlier !== undefined;
    this.#obstacles.refuse(new Set(this.theirs), isResumed);
    const isWhole = !isResumed && this.theirs.length === 0;
    if (isWhole && !this.#options.renames) yield* refuseFull(this.#options.dir, this.#copied - this.#places.freed);
  }

  #decide(found: readonly FoundConflict[]): void {
    const { conflict, dir, dryRun } = this.#options;
    if (found.length > 0 && conflict === 'error' && !dryRun) throw conflictError(dir.path, found);
    for (const { bytePath, conflict: one, isMetadata, mode } of found) {
      const decision = typeof conflict === 'function' ? conflict(one) : conflict;
      if (decision === 'theirs' && isMetadata) this.kept.set(bytePath, mode);
      else if (decision === 'theirs') this.theirs.push(bytePath);
      else if (typeof conflict === 'function' && decision !== 'ours') {
        throw invalidArgumentType('conflict', "a function that returns 'ours' or 'theirs'", decision);
      }
    }
    this.conflicts = found.map((one) => one.conflict);
  }

  #enterRoot(walker: Walker): void {
    const { dir, space, earlier, upperMode, root } = this.#options;
    this.#above[0] = walker.inode;
    if (isShut(upperMode) && !isShut(walker.mode)) this.modes.set(String(walker.inode), upperMode);
    this.#keepMode(walker);
    this.#upper.checkRoot(walker, root);
    // The kernel marks the root of an upper for `index`.
    const marks = readMarks(walker.attributes, space);
    this.isMarked = !hasOnlyShown(walker.attributes, space);
    this.#looked?.enterRoot(marks);
    if (marks.origin !== undefined && earlier === undefined) this.#links = new SplitLinks(dir.path, dir.descriptor);
  }

  #enter(walker: Walker): void {
    const { upper, dir, space } = this.#options;
    this.entries++;
    if (walker.depth === 1 && walker.name === STAGING) throw stagingInUpper(upper.path);
    this.#refuseChanged(walker);
    const { attributes } = walker;
    const marks = readMarks(attributes, space);
    this.#refuseUnreadable(walker);
    const parent = this.#origins[walker.depth - 1] as string;
    const redirect = countingRedirect(walker, marks);
    const origin = redirect === undefined ? below(parent, walker.name) : follow(redirect, parent);
    const isWhiteout = isWhiteoutEntry(walker, marks);
    if (isWhiteout) this.deleted++;
    if (isWhiteout || !hasOnlyShown(attributes, space)) {
      this.isMarked = true;
      this.#soil(walker);
    }
    this.#upper.check(walker, isWhiteout);
    if (!isWhiteout) {
      this.#keepMode(walker);
      if (!this.#options.renames) this.#countBytes(walker);
    }
    if (walker.type === k.S_IFDIR) this.#enterDirectory(walker, origin, redirect !== undefined);
    // Below a redirect, the entries go into a clone, which an earlier call may have filled.
    const isMoved = redirect !== undefined && walker.type === k.S_IFDIR;
    if (!isMoved && this.#areMoved[walker.depth - 1] !== true)
      this.#places.add(walker, isWhiteout, marks.opaque === 'y');
    if (redirect !== undefined) {
      // Only a first call makes clones.
      if (this.#seenRedirects?.has(String(walker.inode)) === false) throw changedSince(upper.path, walker.path);
      this.redirects.set(walker.inode, { path: origin, type: walker.type, isValid: isValidRedirect(redirect) });
      if (walker.type === k.S_IFDIR) addAbove(walker.depth, this.#above, this.holders);
    }
    const place = below(parent, walker.name);
    const isMerged = walker.type === k.S_IFDIR && marks.opaque !== 'y' && redirect === undefined;
    if (place === this.#own || (!isMerged && this.#own !== undefined && isBelow(this.#own, place))) {
      throw upperInWay(upper.path, dir.path);
    }
    if (this.#options.finishesMove && !isWhiteout && walker.type !== k.S_IFDIR) this.#countLinks(walker);
    this.#links?.add(walker, marks, place, redirect === undefined ? undefined : origin);
    // A whiteout stands for all that is below a redirect, at the old path.
    if (this.#areMoved[walker.depth - 1] !== true) {
      this.#looked?.add(walker, marks, isWhiteout, redirect !== undefined, space);
    }
  }

  /** Keeps the mode of an entry that a move must open up: to take entries out, or to change user.* attributes. */
  #keepMode({ type, mode, inode, attributes }: Walker): void {
    const isDirectory = type === k.S_IFDIR;
    const id = String(inode);
    // An earlier call may have opened it up.
    const isKept = this.modes.has(id);
    if (!isKept && (isDirectory ? !isShut(mode) : type !== k.S_IFREG || (mode & OWNER_WRITES) !== 0)) return;
    // The rename to another parent would fail.
    if (isDirectory) this.soiled.add(inode);
    else if (!hasHiddenUserAttribute(attributes, this.#options.space)) return;
    if (this.#options.moves && !isKept) this.modes.set(id, mode & 0o7777);
  }

  #refuseUnreadable({ attributes, path }: Walker): void {
    const { upper, renames, since, space } = this.#options;
    // A file that is renamed keeps its attributes, and loses the marks.
    const needsMarks = !renames || since !== undefined || this.#links !== undefined;
    for (const [name, value] of attributes) {
      const isNeeded = needsMarks || ![name, undefined].includes(shownName(name, space)) || name.endsWith('.redirect');
      if (value !== undefined || !isNeeded) continue;
      throw new OverlayError({
        errno: e.EACCES,
        reason: 'path-inaccessible',
        what: `this process may not read the attribute ${name} of ${quotePath(joinPath(upper.path, toBytePath(path)))}`,
        hint: 'give its owner the right to read it (chmod u+r) and run as the owner, or run as root',
        path: pathString(upper.path),
      });
    }
  }

  #countLinks({ inode, links, path }: Walker): void {
    if (links < 2) return;
    const missing = this.#missingLinks.get(inode) ?? { count: links, path };
    missing.count--;
    this.#missingLinks.set(inode, missing);
  }

  #enterDirectory({ depth, inode }: Walker, origin: string, isRedirected: boolean): void {
    this.#origins[depth] = origin;
    this.#above[depth] = inode;
    this.#areMoved[depth] = isRedirected || this.#areMoved[depth - 1] === true;
  }

  /** Counts what a copy writes at least. */
  #countBytes(entry: Walker): void {
    if (entry.type !== k.S_IFREG) return;
    if (entry.links > 1) {
      if (this.#counted.has(entry.inode)) return;
      this.#counted.add(entry.inode);
    }
    this.#copied += Math.min(entry.size, 512 * entry.blocks);
  }

  /** Refuses what was written to the upper after an earlier call had copied everything. */
  #refuseChanged(walker: Walker): void {
    const { upper, earlier } = this.#options;
    const latest = earlier?.latest;
    // The removal of a link changes the ctime of the others, and only that.
    if (latest === undefined || walker.type === k.S_IFDIR) return;
    if (toMilliseconds(walker.ctime) > latest && toMilliseconds(walker.mtime) > latest) {
      throw changedSince(upper.path, walker.path);
    }
  }

  /** Records that the entry, and therefore each directory above it, cannot be renamed as it is. */
  #soil(walker: Walker): void {
    if (walker.type === k.S_IFDIR) this.soiled.add(walker.inode);
    addAbove(walker.depth, this.#above, this.soiled);
  }

  *#checkRedirects(): Task<void> {
    const wanted = [...this.redirects.values()];
    if (wanted.length === 0) return;
    const { dir } = this.#options;
    const records = yield* examine(
      dir.descriptor,
      wanted.map(({ path }) => path),
    );
    for (const { path, type, isValid } of wanted) {
      records.advance();
      if (!isValid || records.type !== type) throw redirectToNowhere(dir.path, path, type);
    }
  }
}

/** Adds the directories above an entry; `found` has all directories above the ones that it has. */
function addAbove(depth: number, above: readonly bigint[], found: Set<bigint>): void {
  for (let at = depth - 1; at >= 0; at--) {
    const inode = above[at] as bigint;
    if (found.has(inode)) return;
    found.add(inode);
  }
}

/** Returns the redirect if it has an effect. It has none on an opaque directory or on a file with data. */
export function countingRedirect(entry: Records, { redirect, opaque, metacopy }: Marks): string | undefined {
  return entry.type === k.S_IFDIR ? (opaque === 'y' ? undefined : redirect) : metacopy ? redirect : undefined;
}

/** Returns the path, below the root, that a redirect leads to. */
function follow(redirect: string, parent: string): string {
  return redirect.startsWith('/') ? redirect.slice(1) : below(parent, redirect);
}

/** Both have one character for each byte. */
export const isBelow = (path: string, directory: string): boolean =>
  path === directory || path.startsWith(`${directory}/`);

/** Returns the path of an entry below a directory, with one character for each byte. */
function pathInside(path: Path, directory: Path): string | undefined {
  if (!isAtOrBelow(path, directory)) return undefined;
  const root = Buffer.from(toBytes(directory)).length;
  return Buffer.from(toBytes(path)).toString('latin1', root === 1 ? 1 : root + 1);
}

const toMilliseconds = ({ seconds, nanoseconds }: Time): number => seconds * 1e3 + nanoseconds / 1e6;

/** Returns the newest ctime in the upper, in ms. */
export function* newestChange({ descriptor, path }: Root): Task<number> {
  const walker = new Walker('', { at: descriptor, atPath: path });
  let latest = 0;
  try {
    while (yield* walker.more()) while (walker.advance()) latest = Math.max(latest, toMilliseconds(walker.ctime));
  } finally {
    walker.close();
  }
  return latest;
}

/** True if a mount shows each of the attributes, and under the same name. */
function hasOnlyShown(attributes: Attributes, space: MarkSpace): boolean {
  for (const name of attributes.keys()) if (shownName(name, space) !== name) return false;
  return true;
}

const upperInWay = (upper: Path, dir: Path): OverlayError =>
  new OverlayError({
    errno: e.EINVAL,
    reason: 'layers-overlap',
    what: `${quotePath(upper)}, which lies inside ${quotePath(dir)}, has an entry that would take its own place there`,
    hint: 'move the upper out of the directory',
    path: pathString(upper),
  });

const linksWereMoved = (root: Path, path: Path): OverlayError =>
  new OverlayError({
    errno: e.EBUSY,
    reason: 'layers-incomplete',
    what: `an earlier merge by move has moved other hard links of ${quotePath(joinPath(root, path))}, and a copy would be a file of its own`,
    hint: 'merge by move again',
    path: pathString(root),
  });

const stagingInUpper = (root: Path): OverlayError =>
  new OverlayError({
    errno: e.EEXIST,
    reason: 'path-exists',
    what: `${quotePath(root)} has an entry ${STAGING}; the merge needs that name in the other directory`,
    hint: 'rename or remove it; if an earlier merge left it, merge into that directory again first',
    path: pathString(root),
  });

const redirectToNowhere = (dir: Path, path: string, type: number): OverlayError =>
  new OverlayError({
    errno: e.ENOENT,
    reason: 'path-missing',
    what: `a redirect in the upper leads to ${quotePath(toBytePath(path))}, which is no ${type === k.S_IFDIR ? 'directory' : 'file'} in ${quotePath(dir)}`,
    hint: 'merge into the lower layer of the overlay or into a copy of it',
    path: pathString(dir),
  });

const changedSince = (root: Path, path: string): OverlayError =>
  new OverlayError({
    errno: e.EEXIST,
    reason: 'layer-changed',
    what: `${quotePath(joinPath(root, toBytePath(path)))} changed after the call that this one resumes, which would lose it`,
    hint: 'move what is new out of the upper, call again, and merge it then by itself',
    path: pathString(root),
  });

function conflictError(dir: Path, found: readonly { readonly conflict: Conflict }[]): OverlayError {
  const conflicts = found.map(({ conflict }) => conflict);
  const [first] = conflicts as [Conflict, ...Conflict[]];
  const more = conflicts.length === 1 ? '' : ` and ${conflicts.length - 1} more`;
  return new OverlayError({
    errno: e.EEXIST,
    reason: 'layer-conflict',
    what: `others have changed ${quotePath(first.path)}${more} in ${quotePath(dir)} since the baseline; nothing was merged`,
    path: pathString(dir),
    conflicts,
  });
}
