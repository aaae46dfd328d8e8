/** Mount namespaces that no process is in: their mounts, and what keeps them. */

import { readdirSync, readlinkSync } from 'node:fs';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue } from '../kernel/dialogue.js';
import { OWN_MOUNT_NAMESPACE } from '../kernel/namespaces.js';
import { DATA_OUTPUT, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { collect } from '../kernel/slices.js';
import { type Path, pathString } from '../paths.js';
import { inodeOf, type Namespace, pathIn } from './namespaces.js';
import type { RawMount } from './raw-mount.js';
import { attempt, type Patience } from './search.js';
import { mountRecords, WHOLE_MOUNT } from './statmount.js';
import { listRaw } from './table.js';

/** What keeps a namespace: a thread of a process, a descriptor of a process, or a file that it is bound to. */
export interface Keeper {
  readonly inode: number;
  /** Where this process finds the namespace. */
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
  /** None where what keeps it cannot be seen: a descriptor under way in a socket, or of a process of others. */
  readonly keepers: readonly Keeper[];
}

/**
 * By ioctl_nsfs(2), which goes through the namespaces (6.12). Undefined where there is no such way, or it is closed:
 * it takes CAP_SYS_ADMIN in their user namespaces; on later kernels of a process that is in the first pid namespace
 * and has it in the first user namespace.
 */
function* askKernel(known: ReadonlySet<number>): Dialogue<Kept[] | undefined> {
  const plan = new Plan();
  const own = plan.add(calls.openat2, [k.AT_FDCWD, OWN_MOUNT_NAMESPACE, k.O_CLOEXEC, 0]);
  const inodes = new Uint8Array(BigUint64Array.from(known, BigInt).buffer);
  const args = [own, WHOLE_MOUNT, inodes];
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

/** What keeps namespaces other than the known ones, as far as it can be seen. */
function* findKeepers(
  pids: readonly number[],
  namespaces: readonly Namespace[],
  known: ReadonlySet<number>,
  patience: Patience,
): Dialogue<Keeper[]> {
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

/** Where the kernel does not list namespaces: those of the keepers, one after the other. */
function* readTables(keepers: readonly Keeper[], patience: Patience): Dialogue<Kept[]> {
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
      // gone by now, or not to be joined
    }
  }
  return [...found.values()];
}

/** The mounts that are wanted, in the namespaces that are not those of processes. */
export function* findKept(
  pids: readonly number[],
  namespaces: readonly Namespace[],
  isWanted: (mount: RawMount) => boolean,
  patience: Patience,
): Dialogue<KeptMount[]> {
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
