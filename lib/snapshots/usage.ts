/** The space that a directory takes. */
import type { Task } from '../kernel/task.js';
import { Walker } from '../layers/walk.js';
import type { Path } from '../paths.js';
import type { SnapshotUsage } from './records.js';

/** The unit of a file's blocks, stat(2). */
const BLOCK = 512;

/** Counts each file once, however many names it has, and the directory itself. */
export function* usageOf(path: Path): Task<SnapshotUsage> {
  const seen = new Set<string>();
  const walker = new Walker(path, { unsorted: true, followRoot: false });
  let size = 0;
  let inodes = 0;
  try {
    while (yield* walker.more()) {
      while (walker.advance()) {
        if (walker.mode === 0 || walker.isOtherMount) continue;
        if (walker.links > 1 && walker.type !== 0o040000) {
          const id = `${walker.device} ${walker.inode}`;
          if (seen.has(id)) continue;
          seen.add(id);
        }
        size += walker.blocks * BLOCK;
        inodes++;
      }
    }
  } finally {
    walker.close();
  }
  return { size, inodes };
}
