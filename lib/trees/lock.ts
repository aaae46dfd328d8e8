/**
 * Locks on layer directories by flock(2), which needs no privilege and holds across processes and namespaces. A lock
 * ends with its process, however that ends.
 */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import type { Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import type { Path } from '../paths.js';

/**
 * Locks a directory. Returns `'taken'` if another process has locked it. Returns undefined if the directory cannot be
 * opened, or if its file system has no locks for directories, such as NFS.
 */
export function* lockDirectory(path: Path, at: Descriptor = k.AT_FDCWD): Task<Held | 'taken' | undefined> {
  const plan = new Plan();
  const flags = k.O_DIRECTORY | k.O_CLOEXEC;
  const directory = plan.add(calls.openat2, [at, path, flags, 0], { keep: true, output: 0 });
  plan.add(calls.flock, [directory, k.LOCK_EX | k.LOCK_NB]);
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return { descriptor: outcome.result(plan.stepOf(directory)) };
  return outcome.errno === e.EAGAIN && outcome.step?.call === calls.flock ? 'taken' : undefined;
}
