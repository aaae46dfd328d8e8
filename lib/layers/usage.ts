/** The space that a directory tree takes. */

import * as e from '../errnos.js';
import * as k from '../kernel/constants.js';
import type { Task } from '../kernel/task.js';
import type { Path } from '../paths.js';
import { Walker } from '../trees/walk.js';

export interface DiskUsage {
  /** The allocated space in bytes. It is less than the size for sparse files and metacopies. */
  bytes: number;
  /** The number of inodes: a file with several hard links counts once. */
  inodes: number;
}

const BLOCK = 512;

/** `isAlone` leaves out files that have several links. */
export function* measure(dir: Path, isAlone = false): Task<DiskUsage> {
  const walker = new Walker(dir, { unsorted: true });
  const linked = new Set<string>();
  let blocks = 0;
  let inodes = 0;
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        // Another program may remove directories meanwhile.
        if (walker.error === e.ENOENT && walker.path !== '') continue;
        if (walker.error !== 0) throw walker.failure();
        if (walker.isOtherMount) continue;
        if (walker.links > 1 && walker.type !== k.S_IFDIR) {
          if (isAlone) continue;
          const inode = `${walker.device}:${walker.inode}`;
          if (linked.has(inode)) continue;
          linked.add(inode);
        }
        blocks += walker.blocks;
        inodes++;
      }
    }
  } finally {
    walker.close();
  }
  return { bytes: blocks * BLOCK, inodes };
}
