/**
 * Locks on layer directories by flock(2), which needs no privilege and holds across processes and namespaces. A lock
 * ends with its process, however that ends.
 */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close, type Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import type { Path } from '../paths.js';

/**
 * Locks a directory. Returns `'taken'` if another process has locked it, or the failure if the directory cannot be
 * opened, or if its file system has no locks for directories, such as NFS.
 */
export function* tryLock(path: Path, at: Descriptor = k.AT_FDCWD): Task<Held | 'taken' | StepFailure> {
  const plan = new Plan();
  const flags = k.O_DIRECTORY | k.O_CLOEXEC;
  const directory = plan.add(calls.openat2, [at, path, flags, 0], { keep: true, output: 0 });
  plan.add(calls.flock, [directory, k.LOCK_EX | k.LOCK_NB]);
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return { descriptor: outcome.result(plan.stepOf(directory)) };
  return outcome.errno === e.EAGAIN && outcome.step?.call === calls.flock ? 'taken' : outcome;
}

/** The same where the work is done without a lock too: undefined for a failure. */
export function* lockDirectory(path: Path, at?: Descriptor): Task<Held | 'taken' | undefined> {
  const lock = yield* tryLock(path, at);
  return lock instanceof StepFailure ? undefined : lock;
}

/**
 * Ends a lock. Closing alone does not, as long as a child process that another thread has just forked holds a copy of the
 * descriptor.
 */
export function* unlock(lock: Held): Task<void> {
  const plan = new Plan();
  plan.add(calls.flock, [lock.descriptor, k.LOCK_UN]);
  yield* ask(plan);
  close(lock);
}
