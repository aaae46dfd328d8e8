/** The holders of a mount, as results and errors show them. */

/**
 * The way in which a mount is held. A process holds it if its working or root directory is in the mount (`'cwd'`,
 * `'root'`), if it runs a program from it (`'executable'`), if it has a file or directory of it open (`'file'`) or
 * mapped into memory (`'mapping'`), or if it has a socket bound in it (`'socket'`). The kernel holds it if something is
 * mounted inside (`'inside'`), if a file in it backs a loop device (`'loop'`), or if it swaps to one (`'swap'`).
 *
 * All these make the mount busy. The following ones do not, but they keep its file system, and so an upperdir, in use:
 *
 * - `'mount'`: the same file system is mounted elsewhere, usually in a mount namespace that was copied while it was
 *   mounted.
 * - `'namespace'`: it is mounted in a namespace without processes, which a descriptor or a file keeps.
 * - `'layer'`: the file system holds a layer of another overlay.
 */
export type Holding =
  | 'cwd'
  | 'root'
  | 'executable'
  | 'file'
  | 'mapping'
  | 'socket'
  | 'inside'
  | 'loop'
  | 'swap'
  | 'mount'
  | 'namespace'
  | 'layer';

export interface Holder {
  readonly what: Holding;
  /** The process; absent if the kernel itself is the holder. */
  readonly pid?: number;
  /**
   * The command line of the process, with spaces between the arguments. For `'mount'`, that of a process in its
   * namespace; for `'namespace'`, that of the process that keeps it.
   */
  readonly command?: string;
  /**
   * The file or directory that is held, as the holder sees it (after a lazy unmount, from the mount's root on). For
   * `'inside'`, `'mount'`, `'namespace'` and `'layer'` the mount point, for `'loop'` the backing file, for `'swap'` the
   * file.
   */
  readonly path: string;
  /** The descriptor in the process: of the file, or of the namespace. */
  readonly descriptor?: number;
  /** The loop device. */
  readonly device?: string;
  /** For `'namespace'`: the file to which the namespace is bound, if that keeps it. */
  readonly boundAt?: string;
  /** For `'layer'`: the layer that is in the mount. */
  readonly layer?: string;
  /**
   * The mount point of another mount of the same file system, if it is held through that one; empty for a mount without
   * a place, such as a detached clone.
   */
  readonly copy?: string;
  /** The inode number of that mount's namespace (/proc/PID/ns/mnt, `mnt:[…]`), if it is in another one. */
  readonly namespace?: number;
}

/** A list of holders that also tells how much of the machine it covers. */
export interface Holders extends Array<Holder> {
  /** The number of processes that could not be examined: those of other users, unless the caller is root. */
  hidden: number;
  /**
   * True if all others were examined in the given time. False too if a part of the machine cannot be seen: without /proc
   * or /sys, or if a socket or a layer was named by a path that leads nowhere from here.
   */
  complete: boolean;
}
