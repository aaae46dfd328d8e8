/** findHolders: finds the holders of a mount. */
import { checkMilliseconds, toOptions } from '../arguments.js';
import type { Holder } from '../holder.js';
import { searchHolders } from '../holders/search-mounts.js';
import * as k from '../kernel/constants.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat } from '../kernel/stat.js';
import { askTolerant, run, type Task } from '../kernel/task.js';
import type { Mounted } from '../mount-table/identity.js';
import { type PathLike, toAbsolute, toPath, withoutTrailingSlashes } from '../paths.js';
import { explainUnreached } from './covered.js';
import { internalsOf, Mount } from './mount.js';
import { explainTarget } from './target.js';

export interface HoldersOptions {
  /** How long to search, in milliseconds. The holders found by then are returned. Default 1000. */
  timeout?: number;
}

/** The holders of a mount, and how much of the machine the search covers. */
export interface FoundHolders {
  /** In no particular order. */
  readonly holders: readonly Holder[];
  /** The number of processes that this process may not examine: those of other users, unless it is root. */
  readonly hidden: number;
  /**
   * True if all others were examined in time. False too if a part of the machine is out of sight: without /proc or /sys,
   * or if a socket or a layer was named by a path that leads nowhere from here.
   */
  readonly complete: boolean;
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

function* find({ mounted, isPath, timeout }: Prepared): Task<FoundHolders> {
  if (isPath) {
    const plan = new Plan();
    const step = addStat(plan, mounted.path, { flags: k.AT_SYMLINK_NOFOLLOW });
    const found = readStat(step, yield* askTolerant(plan));
    if (!found.isMountRoot) throw explainTarget(mounted.path, found, yield* explainUnreached(mounted));
  }
  const found = yield* searchHolders(mounted, { scope: 'all', limit: timeout, flags: k.AT_SYMLINK_NOFOLLOW });
  return { holders: [...found], hidden: found.hidden, complete: found.complete };
}

/**
 * Finds the holders of a mount or of its file system. For a `Mount`, this works after a lazy unmount too, when its
 * upperdir may still be in use. For a path, it finds the holders of the mount that is there now. It reads /proc
 * (proc(5)) and the mount tables of all namespaces, and asks statx(2) for mount ids (Linux 5.8). ioctl_nsfs(2) finds
 * namespaces that no process is in (6.12, in the first pid and user namespace). Elsewhere they are found by the file
 * descriptors and files that keep them, as far as the process can see these. File descriptors in transit through a
 * socket cannot be found.
 *
 * @throws {OverlayError} for a path: `reason` is `'not-mounted'`, `'mount-covered'`, `'target-missing'`, `'target-symlink'`
 * or `'path-inaccessible'`
 */
export async function findHolders(mount: Mount | PathLike, options?: HoldersOptions): Promise<FoundHolders> {
  return run(find(prepare(mount, options)));
}
