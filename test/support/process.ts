/** Descriptors and threads of this process. */

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** Lists what the process's open descriptors refer to; undefined for one that was closed meanwhile. */
export const openPaths = (): (string | undefined)[] =>
  readdirSync('/proc/self/fd').map((name) => linkOf(`/proc/self/fd/${name}`));

/**
 * Not counted: the library keeps its inotify descriptor, through which the kernel tells of overlays that have ended, and
 * on Node 20 a closed store keeps its files until its statements are collected.
 */
const uncounted = /^anon_inode:inotify$|\/metadata\.db(-wal|-shm)?$/;

/** Counts the process's open descriptors. */
export const countDescriptors = (): number => openPaths().filter((path) => !uncounted.test(path ?? '')).length;

function linkOf(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined; // the listing's own, for one
  }
}

/** Counts the library's own threads in this process. */
export function countThreads(): number {
  return readdirSync('/proc/self/task').filter((id) => {
    try {
      return readFileSync(`/proc/self/task/${id}/comm`, 'latin1') === 'overlayfs\n';
    } catch {
      return false; // ended meanwhile
    }
  }).length;
}
