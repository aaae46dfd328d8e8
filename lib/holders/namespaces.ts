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

export interface Processes {
  /** By id: this process first, then the others from the highest id down. */
  readonly ids: readonly number[];
  /** The processes whose first thread has ended, by the thread that the list has in their place. */
  readonly leaders: ReadonlyMap<number, number>;
}

/** Returns a thread that runs in a process whose first thread has ended: /proc shows nothing of that one. */
function otherThreadOf(pid: number): number | undefined {
  const threads = attempt(() => readdirSync(`/proc/${pid}/task`)) ?? [];
  return threads.map(Number).find((thread) => thread !== pid && inodeOf(thread, 'mnt') !== undefined);
}

/**
 * Lists the processes. Without /proc, this is the calling one, and the search is not complete. Nor is it if /proc shows
 * no process 1, which always exists: the mount option `hidepid` hides those of other users, proc(5).
 */
export function listProcesses(patience: Patience): Processes {
  const names = attempt(() => readdirSync('/proc')) ?? [];
  const others = names.map(Number).filter((pid) => pid > 0 && pid !== process.pid);
  if (!names.includes('self') || !names.includes('1')) patience.isPartial = true;
  const leaders = new Map<number, number>();
  const ids = others
    .sort((a, b) => b - a)
    .map((pid) => {
      if (patience.isLate() || inodeOf(pid, 'mnt') !== undefined) return pid;
      const thread = otherThreadOf(pid);
      if (thread !== undefined) leaders.set(thread, pid);
      return thread ?? pid;
    });
  return { ids: [process.pid, ...ids], leaders };
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
