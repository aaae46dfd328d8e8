/**
 * The entries that a merge may not change, move or remove: the kernel would refuse a system call in the middle. The first
 * walk gathers them, and one error tells the first of them and their number.
 */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { toBytePath } from '../trees/encodings.js';
import type { Records } from '../trees/records.js';

/** An error tells this many. */
const MOST_SHOWN = 3;

interface Obstacle {
  readonly path: Path;
  /** The path in the upper, one character for each byte. */
  readonly place: string;
  readonly what: string;
  readonly hint: string;
}

/** An obstacle in words, and what to do. */
export type Reason = readonly [what: string, hint: string];

export class Obstacles {
  /** By what is shown: an entry may be come upon twice. */
  readonly #found = new Map<string, Obstacle>();

  /** Adds an entry below a root. The merge comes to it where it treats the entry `place` of the upper. */
  add(root: Path, inside: string, [what, hint]: Reason, place = inside): void {
    const path = inside === '' ? root : joinPath(root, toBytePath(inside));
    const shown = quotePath(path);
    if (!this.#found.has(shown)) this.#found.set(shown, { path, place, what: `${shown} ${what}`, hint });
  }

  /** Throws unless there are none, or all of them are where the directory keeps its version. */
  refuse(theirs: ReadonlySet<string>): void {
    const found = [...this.#found.values()].filter(({ place }) => theirs.size === 0 || !isAtOrBelowAny(place, theirs));
    const shown = found.slice(0, MOST_SHOWN);
    const [first] = shown;
    if (first === undefined) return;
    const more = found.length > shown.length ? [`and ${found.length - shown.length} more`] : [];
    const list = [...shown.map(({ what }) => what), ...more].join('; ');
    throw new OverlayError({
      errno: e.EPERM,
      reason: 'permission-denied',
      what: `${found.length === 1 ? '' : `${found.length} entries are in the way: `}${list}; nothing was merged`,
      hint: [...new Set(shown.map(({ hint }) => hint))].join('; '),
      path: pathString(first.path),
    });
  }
}

function isAtOrBelowAny(path: string, places: ReadonlySet<string>): boolean {
  for (let end = path.length; end > 0; end = path.lastIndexOf('/', end - 1)) {
    if (places.has(path.slice(0, end))) return true;
  }
  return false;
}

export const frozen = (root: Path, inside: string): Reason => [
  'is immutable or append-only',
  `remove the attribute: chattr -ia ${quotePath(inside === '' ? root : joinPath(root, toBytePath(inside)))}`,
];

export const inSticky = (root: Path, uid: number): Reason => [
  `belongs to the user ${uid}, and ${quotePath(root)} is sticky`,
  'run as that user or as root',
];

/** The user as whom the process works on files. */
export class Actor {
  readonly uid: number = process.geteuid?.() ?? 0;
  readonly #groups = new Set([process.getegid?.() ?? 0, ...(process.getgroups?.() ?? [])]);

  get isRoot(): boolean {
    return this.uid === 0;
  }

  isIn(gid: number): boolean {
    return this.#groups.has(gid);
  }

  /** True if the mode of an entry of another user has these rights, such as 0o2, for this process. */
  isGranted({ mode, gid }: Records, rights: number): boolean {
    return ((this.isIn(gid) ? mode >> 3 : mode) & rights) === rights;
  }
}
