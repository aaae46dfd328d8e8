/** findHolders: finds the holders of a mount. */
import { checkMilliseconds, toOptions } from '../arguments.js';
import type { Holders } from '../holder.js';
import { searchHolders } from '../holders/search-mounts.js';
import * as k from '../kernel/constants.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat } from '../kernel/stat.js';
import { askTolerant, run, runSync, type Task } from '../kernel/task.js';
import type { Mounted } from '../mount-table/identity.js';
import { type PathLike, toAbsolute, toPath, withoutTrailingSlashes } from '../paths.js';
import { internalsOf, Mount } from './mount.js';
import { explainTarget } from './target.js';

export interface HoldersOptions {
  /** How long to search, in milliseconds. The holders found by then are returned. Default 1000. */
  timeout?: number;
}

const names: ReadonlySet<string> = new Set(['timeout']);
const TIMEOUT = 1000;

interface Prepared {
  readonly mounted: Mounted;
  /** True when the caller passed a path, which must be a mount point. */
  readonly isPath: boolean;
  readonly timeout: number;
}

function prepare(mount: Mount | PathLike, options: HoldersOptions | undefined): Prepared {
  const checked = toOptions(options, names);
  const timeout = checkMilliseconds(checked.timeout, 'timeout') ?? TIMEOUT;
  if (mount instanceof Mount) return { mounted: internalsOf(mount).mounted, isPath: false, timeout };
  const path = withoutTrailingSlashes(toAbsolute(toPath(mount, 'mount')));
  return { mounted: { path }, isPath: true, timeout };
}

function* find({ mounted, isPath, timeout }: Prepared): Task<Holders> {
  if (isPath) {
    const plan = new Plan();
    const step = addStat(plan, mounted.path, { flags: k.AT_SYMLINK_NOFOLLOW });
    const found = readStat(step, yield* askTolerant(plan));
    if (!found.isMountRoot) throw explainTarget(mounted.path, found);
  }
  return yield* searchHolders(mounted, { scope: 'all', limit: timeout, flags: k.AT_SYMLINK_NOFOLLOW });
}

/**
 * Finds the holders of a mount or of its file system. For a `Mount`, this works after a lazy unmount too, when its
 * upperdir may still be in use. For a path, it finds the holders of the mount that is there now. It reads /proc
 * (proc(5)) and the mount tables of all namespaces, and asks statx(2) for mount ids (Linux 5.8). ioctl_nsfs(2) finds
 * namespaces that no process is in (6.12, in the first pid and user namespace). Elsewhere they are found by the file
 * descriptors and files that keep them, as far as the process can see these. File descriptors in transit through a
 * socket cannot be found.
 *
 * @returns the holders, in no particular order; `hidden` is the number of processes that this process may not inspect;
 * `complete` is true when time sufficed for all others
 * @throws {OverlayError} for a path: `reason` is `'not-mounted'`, `'target-missing'`, `'target-symlink'` or
 * `'path-inaccessible'`
 */
export async function findHolders(mount: Mount | PathLike, options?: HoldersOptions): Promise<Holders> {
  return run(find(prepare(mount, options)));
}

/** The synchronous form of `findHolders`. */
export function findHoldersSync(mount: Mount | PathLike, options?: HoldersOptions): Holders {
  return runSync(find(prepare(mount, options)));
}
