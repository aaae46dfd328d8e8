/** Mount namespaces that no process is in: finds their mounts and their keepers. */
import { readdirSync, readlinkSync } from 'node:fs';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { DATA_OUTPUT, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { collect } from '../kernel/slices.js';
import { ask, type Task } from '../kernel/task.js';
import type { RawMount } from '../mount-table/raw-mount.js';
import { mountRecords, WHOLE_MOUNT } from '../mount-table/statmount.js';
import { listRaw } from '../mount-table/table.js';
import { OWN_MOUNT_NAMESPACE } from '../namespaces/user-namespace.js';
import { type Path, pathString } from '../paths.js';
import { inodeOf, type Namespace, pathIn } from './namespaces.js';
import { attempt, type Patience } from './patience.js';

/**
 * The keeper of a namespace: a thread of a process, a file descriptor of a process, or a file that the namespace is
 * bound to.
 */
export interface Keeper {
  readonly inode: number;
  /** The path by which this process reaches the namespace. */
  readonly file: Path;
  readonly pid?: number;
  readonly descriptor?: number;
  readonly boundAt?: string;
}

interface Kept {
  readonly inode: number;
  readonly mounts: readonly RawMount[];
}

/** A mount in such a namespace. */
export interface KeptMount {
  readonly inode: number;
  readonly mount: RawMount;
  /**
   * Empty when the keeper cannot be seen: a file descriptor in transit through a socket, or of a process of another
   * user.
   */
  readonly keepers: readonly Keeper[];
}

/**
 * Asks the kernel for the namespaces by ioctl_nsfs(2), which iterates over them (6.12). Returns undefined when the
 * kernel has no such call or denies it. The call needs CAP_SYS_ADMIN in the user namespaces that own them. On later
 * kernels, the process must be in the first pid namespace and have CAP_SYS_ADMIN in the first user namespace.
 */
function* askKernel(known: ReadonlySet<number>): Task<Kept[] | undefined> {
  const plan = new Plan();
  const own = plan.add(calls.openat2, [k.AT_FDCWD, OWN_MOUNT_NAMESPACE, k.O_CLOEXEC, 0]);
  const inodes = new Uint8Array(BigUint64Array.from(known, BigInt).buffer);
  const args = [own, WHOLE_MOUNT, inodes] as const;
  const step = plan.stepOf(plan.add(calls.namespace_tables, args, { output: DATA_OUTPUT }));
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) return undefined;
  const data = outcome.data(step);
  const found: Kept[] = [];
  for (let at = 0; at < data.length; ) {
    const [inode, size] = [data.readUInt32LE(at), data.readUInt32LE(at + 4)];
    at += 8;
    const records = mountRecords(data.subarray(at, at + size));
    found.push({ inode, mounts: yield* collect(records, (mount) => mount) });
    at += Math.ceil(size / 8) * 8;
  }
  return found;
}

const toBuffer = (bytes: string): Buffer => Buffer.from(bytes, 'latin1');

const toInode = (name: string | undefined): number => Number(/^mnt:\[(\d+)\]$/.exec(name ?? '')?.[1]);

/** Finds the keepers of namespaces other than the known ones, as far as this process can see them. */
function* findKeepers(
  pids: readonly number[],
  namespaces: readonly Namespace[],
  known: ReadonlySet<number>,
  patience: Patience,
): Task<Keeper[]> {
  const keepers: Keeper[] = [];
  const add = (keeper: Keeper): void => {
    if (!Number.isNaN(keeper.inode) && !known.has(keeper.inode)) keepers.push(keeper);
  };
  for (const namespace of namespaces) {
    for (const { type, root, target } of namespace.table) {
      if (type !== 'nsfs') continue;
      add({
        inode: toInode(root),
        file: pathIn(namespace, toBuffer(target)),
        boundAt: pathString(toBuffer(target)),
      });
    }
  }
  for (const pid of pids) {
    if (patience.isLate()) break;
    for (const name of attempt(() => readdirSync(`/proc/${pid}/fd`)) ?? []) {
      const file = `/proc/${pid}/fd/${name}`;
      add({ inode: toInode(attempt(() => readlinkSync(file))), file, pid, descriptor: Number(name) });
    }
    const threads = attempt(() => readdirSync(`/proc/${pid}/task`)) ?? [];
    for (const thread of threads.length > 1 ? threads : []) {
      add({ inode: inodeOf(`${pid}/task/${thread}`, 'mnt') ?? NaN, file: `/proc/${pid}/task/${thread}/ns/mnt`, pid });
    }
    yield* patience.pause();
  }
  return keepers;
}

/** Reads the namespaces of the keepers one by one, on kernels that do not list namespaces. */
function* readTables(keepers: readonly Keeper[], patience: Patience): Task<Kept[]> {
  const found = new Map<number, Kept>();
  for (const { inode, file } of keepers) {
    if (found.has(inode)) continue;
    if (patience.isLate()) break;
    try {
      found.set(inode, {
        inode,
        mounts: yield* listRaw({ namespace: file, select: ({ type }) => type === 'overlay' }),
      });
    } catch {
      // The namespace has ended, or this process may not join it.
    }
  }
  return [...found.values()];
}

/** Returns the wanted mounts in namespaces that no process is in. */
export function* findKept(
  pids: readonly number[],
  namespaces: readonly Namespace[],
  isWanted: (mount: RawMount) => boolean,
  patience: Patience,
): Task<KeptMount[]> {
  const inodes = [inodeOf('thread-self', 'mnt'), ...namespaces.map(({ inode }) => inode)];
  const known = new Set(inodes.filter((inode) => inode !== undefined));
  const told = yield* askKernel(known);
  let keepers = told === undefined ? yield* findKeepers(pids, namespaces, known, patience) : undefined;
  const kept = told ?? (yield* readTables(keepers ?? [], patience));
  const found: { inode: number; mount: RawMount }[] = [];
  for (const { inode, mounts } of kept) {
    found.push(...(yield* collect(mounts, (mount) => (isWanted(mount) ? { inode, mount } : undefined))));
  }
  if (found.length === 0) return [];
  keepers ??= yield* findKeepers(pids, namespaces, known, patience);
  return found.map(({ inode, mount }) => ({
    inode,
    mount,
    keepers: (keepers ?? []).filter((keeper) => keeper.inode === inode),
  }));
}
