/**
 * Copies of a mount in programs that this process has started. A program from `spawn` gets a copy of the mount
 * namespace, and so a copy of each mount. On a shared mount, the kernel propagates an unmount to the copies. On other
 * mounts, the copies would keep an overlay alive until the program ends, although no caller asked to show it there.
 */
import { readFileSync } from 'node:fs';
import { listProcesses, type Namespace, readNamespaces } from '../holders/namespaces.js';
import { attempt, Patience } from '../holders/patience.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import type { Mounted } from '../mount-table/identity.js';
import { addJoin } from '../namespaces/mount-namespace.js';
import { isSamePath, type Path } from '../paths.js';

/** How long to look through /proc, in ms. */
const SEARCH = 100;

/** The most parents of a process to follow. */
const MOST_PARENTS = 64;

/**
 * Unmounts the copies of an overlay that programs have inherited at its former place. A program that shows the overlay
 * at a different place keeps it. Returns true when at least one copy was unmounted.
 */
export function* dropInherited({ path, device }: Mounted): Task<boolean> {
  if (device === undefined) return false;
  const shown = `${Math.floor(device / 2 ** 32)}:${device % 2 ** 32}`;
  const patience = new Patience(SEARCH);
  let hasDropped = false;
  for (const namespace of yield* readNamespaces(listProcesses(patience).ids, patience)) {
    const { inode, pid, table } = namespace;
    const [copy, another] = table.filter((row) => row.type === 'overlay' && row.device === shown);
    const isInherited = copy !== undefined && another === undefined && isSamePath(copy.target, path);
    if (inode === undefined || !isInherited || !isDescendant(pid)) continue;
    hasDropped = (yield* unmountIn(namespace, path)) || hasDropped;
  }
  return hasDropped;
}

function* unmountIn({ pid }: Namespace, path: Path): Task<boolean> {
  const plan = new Plan();
  addJoin(plan, `/proc/${pid}/ns/mnt`);
  plan.add(calls.umount2, [path, k.MNT_DETACH | k.UMOUNT_NOFOLLOW]);
  return !((yield* ask(plan)) instanceof StepFailure);
}

function isDescendant(pid: number): boolean {
  let at: number | undefined = pid;
  for (let i = 0; i < MOST_PARENTS && at !== undefined && at > 1; i++) {
    if (at === process.pid) return true;
    at = parentOf(at);
  }
  return false;
}

/** Reads the parent's pid from proc_pid_stat(5), where the command in parentheses can contain any character. */
function parentOf(pid: number): number | undefined {
  const text = attempt(() => readFileSync(`/proc/${pid}/stat`, 'latin1'));
  return text === undefined ? undefined : Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[1]);
}
