/** The entries of an upper that this process cannot copy, or move out of it. */
import { EROFS } from '../errnos.js';
import * as k from '../kernel/constants.js';
import { type MarkSpace, shownName } from '../trees/marks.js';
import type { Attributes } from '../trees/records.js';
import type { Root } from '../trees/root.js';
import type { Walker } from '../trees/walk.js';
import type { Actor } from './actor.js';
import { cannotBeWritten, FROZEN, inSticky, keepsMarks, type Obstacle, type Obstacles } from './obstacles.js';

const OWNER_READS = 0o400;

interface Settings {
  readonly upper: Root;
  readonly space: MarkSpace;
  readonly moves: boolean;
  /** Files are renamed, not copied. */
  readonly renames: boolean;
}

export class UpperCheck {
  readonly #settings: Settings;
  readonly #actor: Actor;
  readonly #obstacles: Obstacles;
  /** The root lets this process remove only entries of its own. */
  #isSticky = false;

  constructor(settings: Settings, actor: Actor, obstacles: Obstacles) {
    this.#settings = settings;
    this.#actor = actor;
    this.#obstacles = obstacles;
  }

  /** Checks the root. With `isMerged`, the directory gets its metadata. */
  checkRoot(root: Walker, isMerged: boolean): void {
    const { upper, moves } = this.#settings;
    const { uid } = root;
    if (moves) {
      const isForeign = this.#actor.isForeign(root);
      this.#isSticky = isForeign && (root.mode & k.S_ISVTX) !== 0;
      if (root.isFrozen) this.#obstacles.add(upper.path, '', FROZEN);
      const onDenial = (errno: number): void => {
        // The owner can open it up.
        if (isForeign || errno === EROFS) this.#obstacles.add(upper.path, '', cannotBeWritten(uid, errno));
      };
      this.#actor.askLater({ root: upper, path: '', rights: k.W_OK | k.X_OK, onDenial });
    }
    if (isMerged) this.#checkCopy(root);
  }

  check(entry: Walker, isWhiteout: boolean): void {
    const { upper, moves, renames } = this.#settings;
    const { type, uid, path } = entry;
    // A merge by move also removes what it does not merge.
    if (moves && entry.isFrozen) this.#obstacles.add(upper.path, path, FROZEN);
    if (this.#actor.isPrivileged) return;
    if (this.#isSticky && entry.depth === 1 && uid !== this.#actor.uid) {
      this.#obstacles.add(upper.path, path, inSticky(upper.path, uid));
    }
    if (isWhiteout) return;
    if (!renames || type === k.S_IFDIR) this.#checkCopy(entry);
    else if (uid !== this.#actor.uid && hasHiddenUserAttribute(entry.attributes, this.#settings.space)) {
      const onDenial = (): void => this.#obstacles.add(upper.path, path, keepsMarks(uid), path);
      this.#actor.askLater({ root: upper, path, rights: k.W_OK, onDenial });
    }
  }

  /** A copy and each directory get the owner of the entry, chown(2), and a copy reads each file. */
  #checkCopy(entry: Walker): void {
    if (this.#actor.isPrivileged) return;
    const { type, mode, uid, gid, attributes } = entry;
    if (uid !== this.#actor.uid || !this.#actor.isIn(gid)) {
      this.#add(entry, {
        what: `belongs to ${uid}:${gid}, which this process may not give to its copy`,
        hint: 'run as root, or in the user namespace in which the overlay was mounted',
      });
    } else if (type === k.S_IFREG && (mode & OWNER_READS) === 0) {
      this.#add(entry, {
        what: 'cannot be read, because its mode forbids this to its owner',
        hint: 'merge by move, or give the owner the right (chmod u+r)',
      });
    } else if (type === k.S_IFBLK || type === k.S_IFCHR) {
      this.#add(entry, {
        what: 'is a device node, which this process may not make (mknod(2))',
        hint: 'merge by move on one file system, or run as root',
      });
    } else if (attributes.has('security.capability')) {
      this.#add(entry, {
        what: 'has capabilities, which this process may not give to its copy (setcap(8))',
        hint: 'merge by move on one file system, or run as root',
      });
    }
  }

  #add({ path }: Walker, obstacle: Obstacle): void {
    this.#obstacles.add(this.#settings.upper.path, path, obstacle, path);
  }
}

/** xattr(7): unlike the others, these need the right to write the file. */
export function hasHiddenUserAttribute(attributes: Attributes, space: MarkSpace): boolean {
  for (const name of attributes.keys()) if (name.startsWith('user.') && shownName(name, space) !== name) return true;
  return false;
}
