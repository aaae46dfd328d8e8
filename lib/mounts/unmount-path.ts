/** unmount: unmounts what is at a path, or all that is below it too. */
import { run, runSync, type Task } from '../kernel/task.js';
import type { PathLike } from '../paths.js';
import { checkUnmountOptions, type UnmountOptions, unmountOne } from './unmount.js';
import { unmountBelow } from './unmount-tree.js';

const unmountAt = (target: PathLike, options: UnmountOptions): Task<void> =>
  options.recursive ? unmountBelow(target, options) : unmountOne(target, options);

/**
 * Unmounts the mount at `target`: umount2(2). If several mounts are stacked there, it unmounts the top one. The kernel
 * first writes back the whole file system of an overlay's upperdir, which can take time. The promise waits for it on a
 * thread of the library's own.
 *
 * If no user of a busy mount can be found, the call tries again for up to a tenth of a second. The call follows no
 * symbolic link at the end of the path (UMOUNT_NOFOLLOW).
 *
 * With `recursive`, one native call unmounts many mounts, each only while it is the mount that was seen. The mounts
 * before the one that fails are unmounted. A mount on a directory above hides those that were made before it: they
 * stay, and the call fails with `'mount-covered'` after it has unmounted those that the path leads to.
 *
 * @throws {OverlayError} `reason` is `'not-mounted'`, `'mount-covered'`, `'mount-busy'`, `'target-missing'`,
 * `'target-symlink'`, `'mount-locked'`, `'no-privilege'` or `'path-inaccessible'`. `holders` tells who uses a busy one.
 * @throws {TypeError} `ERR_INVALID_ARG_VALUE`: `recursive` with the root directory, or an option that is no such
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function unmount(target: PathLike, options?: UnmountOptions): Promise<void> {
  return run(unmountAt(target, checkUnmountOptions(options)));
}

/** The synchronous form of `unmount`. */
export function unmountSync(target: PathLike, options?: UnmountOptions): void {
  runSync(unmountAt(target, checkUnmountOptions(options)));
}
