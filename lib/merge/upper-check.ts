/** The entries of an upper that this process cannot copy, or move out of it. */
import * as k from '../kernel/constants.js';
import type { Path } from '../paths.js';
import { type MarkSpace, shownName } from '../trees/marks.js';
import type { Attributes } from '../trees/records.js';
import type { Walker } from '../trees/walk.js';
import { type Actor, frozen, inSticky, type Obstacles, type Reason } from './obstacles.js';

const OWNER_READS = 0o400;
const WRITES = 0o2;

interface Settings {
  readonly upper: Path;
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
    const { moves } = this.#settings;
    const isForeign = root.uid !== this.#actor.uid && !this.#actor.isRoot;
    this.#isSticky = moves && isForeign && (root.mode & k.S_ISVTX) !== 0;
    if (moves && root.isFrozen) this.#add(root, frozen(this.#settings.upper, ''));
    if (isMerged) this.#checkCopy(root);
  }

  check(entry: Walker, isWhiteout: boolean): void {
    const { upper, moves, renames } = this.#settings;
    const { type, uid } = entry;
    if (moves && entry.isFrozen) this.#add(entry, frozen(upper, entry.path));
    if (this.#actor.isRoot) return;
    if (this.#isSticky && entry.depth === 1 && uid !== this.#actor.uid) this.#add(entry, inSticky(upper, uid));
    if (isWhiteout) return;
    if (!renames || type === k.S_IFDIR) this.#checkCopy(entry);
    else if (uid !== this.#actor.uid && hasHiddenUserAttribute(entry.attributes, this.#settings.space)) {
      if (this.#actor.isGranted(entry, WRITES)) return;
      this.#add(entry, [
        `belongs to the user ${uid}, and only its owner may remove the attributes of overlayfs from it`,
        'run as that user or as root',
      ]);
    }
  }

  /** A copy and each directory get the owner of the entry, chown(2), and a copy reads each file. */
  #checkCopy(entry: Walker): void {
    if (this.#actor.isRoot) return;
    const { type, mode, uid, gid, attributes } = entry;
    if (uid !== this.#actor.uid || !this.#actor.isIn(gid)) {
      this.#add(entry, [
        `belongs to ${uid}:${gid}, which this process may not give to its copy`,
        'run as root, or in the user namespace in which the overlay was mounted',
      ]);
    } else if (type === k.S_IFREG && (mode & OWNER_READS) === 0) {
      this.#add(entry, [
        'cannot be read, because its mode forbids this to its owner',
        'merge by move, or give the owner the right (chmod u+r)',
      ]);
    } else if (attributes.has('security.capability')) {
      this.#add(entry, [
        'has capabilities, which this process may not give to its copy (setcap(8))',
        'merge by move on one file system, or run as root',
      ]);
    }
  }

  #add({ path }: Walker, reason: Reason): void {
    this.#obstacles.add(this.#settings.upper, path, reason);
  }
}

/** xattr(7): unlike the others, these need the right to write the file. */
export function hasHiddenUserAttribute(attributes: Attributes, space: MarkSpace): boolean {
  for (const name of attributes.keys()) if (name.startsWith('user.') && shownName(name, space) !== name) return true;
  return false;
}
