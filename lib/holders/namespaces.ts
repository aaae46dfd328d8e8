/** The mount namespaces of processes, and their mount tables. */
import { readdirSync, readlinkSync } from 'node:fs';
import type { Task } from '../kernel/task.js';
import { MOUNTINFO, type MountinfoLine, readTable } from '../mount-table/mountinfo.js';
import { joinPath, type Path } from '../paths.js';
import { attempt, type Patience } from './patience.js';

export interface Namespace {
  /** The inode number of /proc/PID/ns/mnt; undefined for the caller's own. */
  readonly inode: number | undefined;
  /** A process in the namespace. */
  readonly pid: number;
  readonly table: readonly MountinfoLine[];
}

/** Lists the processes by id: this process first, then the others from the highest id down. */
export function listProcesses(): number[] {
  const names = attempt(() => readdirSync('/proc')) ?? [];
  const others = names.map(Number).filter((pid) => pid > 0 && pid !== process.pid);
  return [process.pid, ...others.sort((a, b) => b - a)];
}

/**
 * Returns the inode number of a process's namespace. The process is written as in /proc: `12`, `12/task/13`,
 * `thread-self`.
 */
export function inodeOf(process: number | string, kind: 'mnt' | 'net'): number | undefined {
  const link = attempt(() => readlinkSync(`/proc/${process}/ns/${kind}`));
  return link === undefined ? undefined : Number(/\d+/.exec(link)?.[0]);
}

/** Returns one process of each namespace of a kind, the caller's own namespace first. */
export function* findNamespaces(
  kind: 'mnt' | 'net',
  pids: readonly number[],
  patience: Patience,
): Task<{ inode: number | undefined; pid: number }[]> {
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

/** Returns the table, or an empty one when the process has ended or may not be inspected. */
function* readTableIfAny(path: string): Task<MountinfoLine[]> {
  try {
    return yield* readTable((line) => line, path);
  } catch {
    return [];
  }
}

/** Returns the caller's own namespace with its table, even when time is over, and as many others as time allows. */
export function* readNamespaces(pids: readonly number[], patience: Patience): Task<Namespace[]> {
  const namespaces: Namespace[] = [];
  for (const { inode, pid } of yield* findNamespaces('mnt', pids, patience)) {
    if (inode !== undefined && patience.isLate()) break;
    const path = inode === undefined ? MOUNTINFO : `/proc/${pid}/mountinfo`;
    namespaces.push({ inode, pid, table: yield* readTableIfAny(path) });
  }
  return namespaces;
}

/** Returns the path by which the caller reaches an absolute path in a namespace. */
export function pathIn({ inode, pid }: Pick<Namespace, 'inode' | 'pid'>, path: Path): Path {
  return inode === undefined
    ? path
    : joinPath(`/proc/${pid}/root`, typeof path === 'string' ? path.slice(1) : path.subarray(1));
}
