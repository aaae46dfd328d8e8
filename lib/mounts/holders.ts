/** findHolders: who holds a mount. */

import { checkMilliseconds, toOptions } from '../arguments.js';
import type { Holders } from '../holder.js';
import * as k from '../kernel/constants.js';
import { askTolerant, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { addLook, readLook } from '../kernel/look.js';
import { Plan } from '../kernel/plan.js';
import { type PathLike, toAbsolute, toPath, withoutTrailingSlashes } from '../paths.js';
import { Mount, mountedOf } from './mount.js';
import type { Mounted } from './mounted.js';
import { searchHolders } from './search-holders.js';
import { explainTarget } from './target.js';

export interface HoldersOptions {
  /** For how long to search, in milliseconds; what is found by then is returned. Default 1000. */
  timeout?: number;
}

const names: ReadonlySet<string> = new Set(['timeout']);
const TIMEOUT = 1000;

interface Prepared {
  readonly mounted: Mounted;
  /** Of a path it is to be seen whether it is a mount point. */
  readonly isPath: boolean;
  readonly timeout: number;
}

function prepare(mount: Mount | PathLike, options: HoldersOptions | undefined): Prepared {
  const checked = toOptions(options, names);
  const timeout = checkMilliseconds(checked.timeout, 'timeout') ?? TIMEOUT;
  if (mount instanceof Mount) return { mounted: mountedOf(mount), isPath: false, timeout };
  const path = withoutTrailingSlashes(toAbsolute(toPath(mount, 'mount')));
  return { mounted: { path }, isPath: true, timeout };
}

function* find({ mounted, isPath, timeout }: Prepared): Dialogue<Holders> {
  if (isPath) {
    const plan = new Plan();
    const step = addLook(plan, mounted.path, { flags: k.AT_SYMLINK_NOFOLLOW });
    const found = readLook(step, yield* askTolerant(plan));
    if (!found.isMountRoot) throw explainTarget(mounted.path, found);
  }
  return yield* searchHolders(mounted, { scope: 'all', limit: timeout, flags: k.AT_SYMLINK_NOFOLLOW });
}

/**
 * Finds who holds a mount, or its file system: of a `Mount` also after a lazy unmount, when its upperdir may
 * still be in use; of a path, what is mounted there now. Reads /proc (proc(5)) and the mount tables of all
 * namespaces, and asks statx(2) for mount ids (Linux 5.8). Namespaces that no process is in are found by
 * ioctl_nsfs(2) (6.12, in the first pid and user namespace); elsewhere by the descriptors and files that keep them,
 * as far as these can be seen. Not to be seen are descriptors under way in a socket.
 *
 * @returns the holders, in no order that means anything; `hidden` says how many processes this one may not
 * look at, `complete` whether time sufficed for all others
 * @throws {OverlayError} of a path: `reason` is `'not-mounted'`, `'target-missing'`, `'target-symlink'` or
 * `'path-inaccessible'`
 */
export async function findHolders(mount: Mount | PathLike, options?: HoldersOptions): Promise<Holders> {
  return hold(find(prepare(mount, options)));
}

/** `findHolders`, on the calling thread. */
export function findHoldersSync(mount: Mount | PathLike, options?: HoldersOptions): Holders {
  return holdSync(find(prepare(mount, options)));
}
