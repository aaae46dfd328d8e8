/** The mount namespaces that processes are in, and their mount tables. */

import { readdirSync, readlinkSync } from 'node:fs';
import type { Dialogue } from '../kernel/dialogue.js';
import { joinPath, type Path } from '../paths.js';
import { MOUNTINFO, type MountinfoLine, readTable } from './mountinfo.js';
import { attempt, type Patience } from './search.js';

export interface Namespace {
  /** The inode number of /proc/PID/ns/mnt; undefined for the caller's own. */
  readonly inode: number | undefined;
  /** A process that is in it. */
  readonly pid: number;
  readonly table: readonly MountinfoLine[];
}

/** Processes by id: this one first, then the youngest. */
export function listProcesses(): number[] {
  const names = attempt(() => readdirSync('/proc')) ?? [];
  const others = names.map(Number).filter((pid) => pid > 0 && pid !== process.pid);
  return [process.pid, ...others.sort((a, b) => b - a)];
}

/** The number of the namespace of a kind that a process is in: `12`, `12/task/13`, `thread-self`. */
export function inodeOf(process: number | string, kind: 'mnt' | 'net'): number | undefined {
  const link = attempt(() => readlinkSync(`/proc/${process}/ns/${kind}`));
  return link === undefined ? undefined : Number(/\d+/.exec(link)?.[0]);
}

/** One process of each namespace of a kind, the caller's own first. */
export function* findNamespaces(
  kind: 'mnt' | 'net',
  pids: readonly number[],
  patience: Patience,
): Dialogue<{ inode: number | undefined; pid: number }[]> {
  // A thread may be in other namespaces than its process.
  const own = inodeOf('thread-self', kind);
  const found = [{ inode: undefined as number | undefined, pid: process.pid }];
  const seen = new Set([own]);
  for (const pid of pids) {
    if (patience.isLate()) break;
    const inode = inodeOf(pid, kind);
    if (inode !== undefined && !seen.has(inode)) {
      seen.add(inode);
      found.push({ inode, pid });
    }
    yield* patience.pause();
  }
  return found;
}

/** None of a process that has ended, or that may not be looked at. */
function* readTableIfAny(path: string): Dialogue<MountinfoLine[]> {
  try {
    return yield* readTable((line) => line, path);
  } catch {
    return [];
  }
}

/** The caller's own namespace with its table however late it is, and as many others as there is time for. */
export function* readNamespaces(pids: readonly number[], patience: Patience): Dialogue<Namespace[]> {
  const namespaces: Namespace[] = [];
  for (const { inode, pid } of yield* findNamespaces('mnt', pids, patience)) {
    if (inode !== undefined && patience.isLate()) break;
    const path = inode === undefined ? MOUNTINFO : `/proc/${pid}/mountinfo`;
    namespaces.push({ inode, pid, table: yield* readTableIfAny(path) });
  }
  return namespaces;
}

/** An absolute path of a namespace, as the caller can reach it. */
export function pathIn({ inode, pid }: Pick<Namespace, 'inode' | 'pid'>, path: Path): Path {
  return inode === undefined
    ? path
    : joinPath(`/proc/${pid}/root`, typeof path === 'string' ? path.slice(1) : path.subarray(1));
}
