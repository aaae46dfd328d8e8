/**
 * Copies of a mount in programs that this process has started. A program from `spawn` gets a copy of the mount
 * namespace, and with it of each mount. On a shared mount the kernel carries an unmount over to the copies; elsewhere
 * they would keep an overlay alive until the program ends, though nobody has asked to show it there.
 */
import { readFileSync } from 'node:fs';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue } from '../kernel/dialogue.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { isSamePath, type Path } from '../paths.js';
import { addJoin } from './mount-namespace.js';
import type { Mounted } from './mounted.js';
import { listProcesses, type Namespace, readNamespaces } from './namespaces.js';
import { attempt, Patience } from './search.js';

/** How long to look through /proc, in ms. */
const SEARCH = 100;

/** As far up as parents are followed. */
const MOST_PARENTS = 64;

/**
 * Unmounts the copies of an overlay that programs have inherited at the place where it was. A program that shows the
 * overlay at a place of its own keeps it. Whether there were any that could be unmounted.
 */
export function* dropInherited({ path, device }: Mounted): Dialogue<boolean> {
  if (device === undefined) return false;
  const shown = `${Math.floor(device / 2 ** 32)}:${device % 2 ** 32}`;
  const patience = new Patience(SEARCH);
  let hasDropped = false;
  for (const namespace of yield* readNamespaces(listProcesses(), patience)) {
    const { inode, pid, table } = namespace;
    const [copy, another] = table.filter((row) => row.type === 'overlay' && row.device === shown);
    const isInherited = copy !== undefined && another === undefined && isSamePath(copy.target, path);
    if (inode === undefined || !isInherited || !isDescendant(pid)) continue;
    hasDropped = (yield* unmountIn(namespace, path)) || hasDropped;
  }
  return hasDropped;
}

function* unmountIn({ pid }: Namespace, path: Path): Dialogue<boolean> {
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

/** proc_pid_stat(5): the command in parentheses can hold any character. */
function parentOf(pid: number): number | undefined {
  const text = attempt(() => readFileSync(`/proc/${pid}/stat`, 'latin1'));
  return text === undefined ? undefined : Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[1]);
}
