/**
 * Hard links of an upper that was mounted with `index`. The kernel shows a file that it copied up under all names that the
 * file has below, but the upper has only those that were used. The index in the workdir knows the others.
 */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import type { Descriptor } from '../kernel/plan.js';
import type { Task } from '../kernel/task.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { toBytePath } from '../trees/encodings.js';
import type { Marks } from '../trees/marks.js';
import { examine, Walker } from '../trees/walk.js';

interface IndexedFile {
  /** In the upper. */
  readonly path: string;
  /** The name in the directory that it covers. */
  readonly covered: string | undefined;
  /** Names in the overlay that the upper has not shown yet. */
  missing: number;
}

/** One inode of the directory with several names. */
interface Names {
  hidden?: string;
  shown?: string;
}

/** Finds files of which the upper changes some names in a directory, and the overlay all. */
export class SplitLinks {
  readonly #root: Path;
  readonly #dir: Descriptor;
  /** By path in the directory: does the upper hide what is there, or show it elsewhere? */
  readonly #notes = new Map<string, 'hidden' | 'shown'>();
  /** By path in the directory: the path at which the overlay shows it, for directories that were renamed. */
  readonly #renamed = new Map<string, string>();
  /** By inode of the upper. */
  readonly #files = new Map<bigint, IndexedFile>();
  /** By depth: do the upper's directories show what the directory has? */
  readonly #covers: boolean[] = [true];

  constructor(root: Path, dir: Descriptor) {
    this.#root = root;
    this.#dir = dir;
  }

  /** Adds an entry of the upper. `place` is its path in the directory, and `redirected` where its redirect leads. */
  add(entry: Walker, marks: Marks, place: string, redirected: string | undefined): void {
    const isRedirected = redirected !== undefined;
    const isDirectory = entry.type === k.S_IFDIR;
    const parentCovers = this.#covers[entry.depth - 1] === true;
    const covers = isDirectory && marks.opaque !== 'y' && (isRedirected || parentCovers);
    if (isDirectory) this.#covers[entry.depth] = covers;
    if (covers && isRedirected) {
      this.#notes.set(redirected, 'shown');
      this.#renamed.set(redirected, entry.path);
    }
    if (parentCovers && (!covers || isRedirected)) this.#hide(place);
    if (isDirectory || marks.links === undefined) return;
    const file = this.#files.get(entry.inode);
    if (file !== undefined) file.missing--;
    else {
      const covered = parentCovers ? place : undefined;
      this.#files.set(entry.inode, { path: entry.path, covered, missing: marks.links(entry.links) - 1 });
    }
  }

  #hide(place: string): void {
    if (!this.#notes.has(place)) this.#notes.set(place, 'hidden');
  }

  /** Throws where a name of a file is hidden and another one is not, or where names are missing. */
  *check(): Task<void> {
    if (this.#notes.size === 0) return;
    const split = [...(yield* this.#findNames()).values()].filter(({ hidden, shown }) => hidden && shown);
    const [first] = split;
    if (first !== undefined) throw this.#splitError(first as Required<Names>, split.length - 1);
    const incomplete = [...this.#files.values()].filter(({ missing }) => missing > 0);
    if (incomplete.length === 0) return;
    const there = yield* examine(
      this.#dir,
      incomplete.map(({ covered, path }) => covered ?? path),
    );
    for (const file of incomplete) {
      there.advance();
      // The other names of a file with several are outside the directory.
      if (file.covered === undefined || there.mode === 0 || there.links === 1) throw this.#lostError(file.path);
    }
  }

  *#findNames(): Task<Map<bigint, Names>> {
    const found = new Map<bigint, Names>();
    const above: ('hidden' | 'shown' | undefined)[] = [];
    const walker = new Walker('', { at: this.#dir, atPath: this.#root });
    try {
      while (yield* walker.more()) {
        while (walker.advance()) {
          if (walker.error !== 0) throw walker.failure();
          if (walker.depth === 0) continue;
          const note = this.#notes.get(walker.path) ?? above[walker.depth - 1];
          if (walker.type === k.S_IFDIR) above[walker.depth] = note;
          else if (walker.links > 1) {
            const names = found.get(walker.inode) ?? {};
            names[note ?? 'shown'] ??= walker.path;
            found.set(walker.inode, names);
          }
        }
      }
    } finally {
      walker.close();
    }
    return found;
  }

  /** Returns the path in the overlay of what the directory has at a path. */
  #shownAt(path: string): string {
    for (let end = path.length; end > 0; end = path.lastIndexOf('/', end - 1)) {
      const place = this.#renamed.get(path.slice(0, end));
      if (place !== undefined) return place + path.slice(end);
    }
    return path;
  }

  #splitError({ hidden, shown }: Required<Names>, more: number): OverlayError {
    const [changed, other] = [hidden, this.#shownAt(shown)].map((path) => quotePath(toBytePath(path)));
    const others = more === 0 ? '' : ` (and ${more} more such ${more === 1 ? 'file' : 'files'})`;
    return new OverlayError({
      errno: e.EINVAL,
      reason: 'layers-incomplete',
      what: `the upper was mounted with index and changes ${changed}, but not its hard link ${other}${others}; only the index in the workdir knows the content that the overlay shows there. Nothing was merged`,
      hint: `mount the overlay again with index and the same workdir, and set the mode of each such link to what it is (chmod --reference=FILE FILE): this brings it into the upper`,
      path: pathString(joinPath(this.#root, toBytePath(shown))),
    });
  }

  #lostError(path: string): OverlayError {
    const shown = quotePath(toBytePath(path));
    return new OverlayError({
      errno: e.EINVAL,
      reason: 'layers-incomplete',
      what: `the overlay has more hard links to ${shown} than the upper, and ${quotePath(this.#root)} does not tell which they are. Nothing was merged`,
      hint: 'merge into the lower layer of the overlay, or a copy that keeps hard links (cp -a); or mount the overlay and copy what it shows',
      path: pathString(joinPath(this.#root, toBytePath(path))),
    });
  }
}
