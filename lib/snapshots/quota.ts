/**
 * Project quotas: the kernel counts what the files of a project take, on xfs and ext4 where that is switched on. Each
 * snapshot is a project of its own, so that its usage needs no walk.
 */

import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import type { SnapshotUsage } from './records.js';

/** The size of struct if_dqblk, and the places of its 64-bit words. */
const QUOTA_OUTPUT = 72;
const word = { space: 2, inodes: 5 } as const;

/** Projects of snapshots begin here: other programs count from 1 on. */
const FIRST_PROJECT = 2 ** 30;
/** The projects of one root. Roots on one file system are told apart by their inodes. */
const PROJECTS = 2 ** 24;
const ROOTS = 2 ** 6;

/** Returns the project of a snapshot. */
export const toProject = (rootInode: bigint, id: number): number =>
  FIRST_PROJECT + Number(rootInode % BigInt(ROOTS)) * PROJECTS + (id % PROJECTS);

function* readQuota(file: Descriptor, project: number): Task<SnapshotUsage | number> {
  const plan = new Plan();
  const args = [file, k.Q_GETPRJQUOTA, project] as const;
  const step = plan.stepOf(plan.add(calls.quotactl_fd, args, { output: QUOTA_OUTPUT, tolerate: 'any' }));
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) return outcome.errno;
  const result = outcome.result(step);
  if (result < 0) return -result;
  return { bytes: outcome.number(step, word.space), inodes: outcome.number(step, word.inodes) };
}

/** Returns true when the file system counts what projects take: quotactl_fd(2), Linux 5.14. */
export function* hasProjectQuota(directory: Descriptor): Task<boolean> {
  const found = yield* readQuota(directory, 0);
  return typeof found !== 'number' || found === e.ENOENT;
}

/** Returns what a project takes; undefined if the file system does not count any more. */
export function* projectUsage(directory: Descriptor, project: number): Task<SnapshotUsage | undefined> {
  const found = yield* readQuota(directory, project);
  if (typeof found !== 'number') return found;
  return found === e.ENOENT ? { bytes: 0, inodes: 0 } : undefined;
}
