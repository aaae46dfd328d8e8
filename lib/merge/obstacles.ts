/**
 * The entries that a merge may not change, move or remove: the kernel would refuse a system call in the middle. The first
 * walk gathers them, and one error tells the first of them and their number.
 */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { toBytePath } from '../trees/encodings.js';

/** An error tells this many. */
const MOST_SHOWN = 3;

/** An obstacle in words, and what to do. */
export interface Obstacle {
  readonly what: string;
  readonly hint: string;
  /** Default: `'permission-denied'`. */
  readonly reason?: 'mount-inside' | 'read-only';
}

interface Found extends Obstacle {
  readonly path: Path;
  readonly place: string | undefined;
}

const errnoOf = { 'permission-denied': e.EPERM, 'mount-inside': e.EXDEV, 'read-only': e.EROFS } as const;

export class Obstacles {
  /** By what is shown: an entry may be come upon twice. */
  readonly #found = new Map<string, Found>();

  /**
   * Adds an entry below a root. The merge comes to it where it treats the entry `place` of the upper, one character for
   * each byte; undefined: also where the directory keeps its version.
   */
  add(root: Path, inside: string, obstacle: Obstacle, place?: string): void {
    const path = inside === '' ? root : joinPath(root, toBytePath(inside));
    const shown = quotePath(path);
    if (!this.#found.has(shown))
      this.#found.set(shown, { ...obstacle, path, place, what: `${shown} ${obstacle.what}` });
  }

  /** Throws unless there are none, or all of them are where the directory keeps its version. */
  refuse(theirs: ReadonlySet<string>, isResumed: boolean): void {
    const found = [...this.#found.values()].filter(
      ({ place }) => place === undefined || !isAtOrBelowAny(place, theirs),
    );
    const shown = found.slice(0, MOST_SHOWN);
    const [first] = shown;
    if (first === undefined) return;
    const more = found.length > shown.length ? [`and ${found.length - shown.length} more`] : [];
    const list = [...shown.map(({ what }) => what), ...more].join('; ');
    const { path, reason = 'permission-denied' } = first;
    throw new OverlayError({
      errno: errnoOf[reason],
      reason,
      what: `${found.length === 1 ? '' : `${found.length} entries are in the way: `}${list}; nothing ${isResumed ? 'more ' : ''}was merged`,
      hint: [...new Set(shown.map(({ hint }) => hint))].join('; '),
      path: pathString(path),
    });
  }
}

function isAtOrBelowAny(path: string, places: ReadonlySet<string>): boolean {
  for (let end = path.length; end > 0; end = path.lastIndexOf('/', end - 1)) {
    if (places.has(path.slice(0, end))) return true;
  }
  return false;
}

export const FROZEN: Obstacle = {
  what: 'is immutable or append-only',
  hint: 'remove the attribute: chattr -ia',
};

const AS_OWNER = 'run as that user or as root';

export const inSticky = (root: Path, uid: number): Obstacle => ({
  what: `belongs to the user ${uid}, and ${quotePath(root)} is sticky`,
  hint: AS_OWNER,
});

export const keepsMetadata = (uid: number): Obstacle => ({
  what: `belongs to the user ${uid}, and only its owner may give it the metadata of the upper`,
  hint: AS_OWNER,
});

export const keepsMarks = (uid: number): Obstacle => ({
  what: `belongs to the user ${uid}, who lets this process remove no attribute of overlayfs from it`,
  hint: AS_OWNER,
});

/** `errno` is what the kernel answers to a question about a directory. */
export const cannotBeWritten = (uid: number, errno: number): Obstacle =>
  errno === e.EROFS
    ? { what: 'is on a read-only file system', hint: 'use a writable file system', reason: 'read-only' }
    : { what: `belongs to the user ${uid}, and this process may change nothing in it`, hint: AS_OWNER };

export const cannotBeRead = (uid: number): Obstacle => ({
  what: `belongs to the user ${uid}, and this process may not see whether it is empty`,
  hint: `${AS_OWNER}, or remove it if it is empty`,
});

export const IS_MOUNT: Obstacle = {
  what: 'is a mount point',
  hint: 'unmount it, then call it again',
  reason: 'mount-inside',
};
