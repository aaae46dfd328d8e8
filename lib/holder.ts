/** What holds a mount, as results and errors show it. */

/**
 * How a mount is held. By a process: its working or root directory is in the mount (`'cwd'`, `'root'`), it runs
 * a program from it (`'executable'`), has a file or directory of it open (`'file'`) or mapped into memory
 * (`'mapping'`), or a socket bound in it (`'socket'`). By the kernel: something is mounted inside (`'inside'`);
 * a file in it backs a loop device (`'loop'`).
 *
 * These make it busy. What follows does not, but keeps its file system, and so an upperdir, in use: the
 * same file system is mounted elsewhere (`'mount'`), mostly in a mount namespace that was copied while it was
 * mounted; so it is in a namespace that no process is in, which a descriptor or a file keeps (`'namespace'`); or it
 * holds a layer of another overlay (`'layer'`).
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
  | 'mount'
  | 'namespace'
  | 'layer';

export interface Holder {
  readonly what: Holding;
  /** The process; absent where the kernel itself is the holder. */
  readonly pid?: number;
  /**
   * Its command line, with spaces between the arguments; of a `'mount'`, that of a process in its namespace;
   * of a `'namespace'`, that of the process that keeps it.
   */
  readonly command?: string;
  /**
   * What is held: the file or directory, as the holder sees it (after a lazy unmount, from the mount's root on).
   * For `'inside'`, `'mount'`, `'namespace'` and `'layer'` the mount point, for `'loop'` the backing file.
   */
  readonly path: string;
  /** The descriptor in the process: of the file, or of the namespace. */
  readonly descriptor?: number;
  /** The loop device. */
  readonly device?: string;
  /** For `'namespace'`: the file that it is bound to, where that is what keeps it. */
  readonly boundAt?: string;
  /** The layer that is in the mount, for `'layer'`. */
  readonly layer?: string;
  /** Where it is held through another mount of the same file system: that one's mount point. */
  readonly copy?: string;
  /** Where that one is in another mount namespace: the inode number of /proc/PID/ns/mnt, `mnt:[…]`. */
  readonly namespace?: number;
}

/** Holders, and how much of the machine they are the answer for. */
export interface Holders extends Array<Holder> {
  /** How many processes could not be looked at: those of other users, for one who is not root. */
  hidden: number;
  /** Whether all the others were looked at in the time that was given. */
  complete: boolean;
}
