/** The entries that a process without root cannot merge: the kernel would refuse a system call in the middle. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import * as k from '../kernel/constants.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { toBytePath } from '../trees/encodings.js';
import type { Records } from '../trees/records.js';
import type { Walker } from '../trees/walk.js';

const OWNER_READS = 0o400;

export class OwnerCheck {
  readonly #upper: Path;
  readonly #dir: Path;
  readonly #uid: number;
  readonly #groups: ReadonlySet<number>;
  readonly #renames: boolean;

  constructor(upper: Path, dir: Path, uid: number, renames: boolean) {
    this.#upper = upper;
    this.#dir = dir;
    this.#uid = uid;
    this.#groups = new Set([process.getegid?.() ?? 0, ...(process.getgroups?.() ?? [])]);
    this.#renames = renames;
  }

  /** Checks an entry of the upper: a copy and each directory get its owner, chown(2), and a copy reads each file. */
  check({ type, mode, uid, gid, path, attributes }: Walker): void {
    if (this.#renames && type !== k.S_IFDIR) return;
    const shown = path === '' ? this.#upper : joinPath(this.#upper, toBytePath(path));
    if (uid !== this.#uid || !this.#groups.has(gid)) {
      throw this.#refused(
        shown,
        `belongs to ${uid}:${gid}, which this process may not give to its copy`,
        'run as root, or in the user namespace in which the overlay was mounted',
      );
    }
    if (type === k.S_IFREG && (mode & OWNER_READS) === 0) {
      throw this.#refused(
        shown,
        'cannot be read, because its mode forbids this to its owner',
        'merge by move, or give the owner the right (chmod u+r)',
      );
    }
    if (attributes.has('security.capability')) {
      throw this.#refused(
        shown,
        'has capabilities, which this process may not give to its copy (setcap(8))',
        'merge by move on one file system, or run as root',
      );
    }
  }

  /** Checks a directory of the target that the upper has too. */
  checkDirectory({ uid }: Records, path: string): void {
    if (uid === this.#uid) return;
    throw this.#refused(
      path === '' ? this.#dir : joinPath(this.#dir, toBytePath(path)),
      `belongs to the user ${uid}, and only its owner may give it the metadata of the upper`,
      'run as that user or as root',
    );
  }

  #refused(path: Path, what: string, hint: string): OverlayError {
    return new OverlayError({
      errno: e.EPERM,
      reason: 'permission-denied',
      what: `${quotePath(path)} ${what}; nothing was merged`,
      hint,
      path: pathString(path),
    });
  }
}
