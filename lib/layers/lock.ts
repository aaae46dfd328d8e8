/**
 * Locks on layer directories: flock(2), which needs no privilege and holds across processes and namespaces. A lock
 * ends with the process that has it, however that ends.
 */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue } from '../kernel/dialogue.js';
import type { Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import type { Path } from '../paths.js';

/**
 * Locks a directory. `'taken'` where another process has locked it; undefined where it cannot be opened, or its file
 * system has no locks for directories, as NFS.
 */
export function* lockDirectory(path: Path, at: Descriptor = k.AT_FDCWD): Dialogue<Held | 'taken' | undefined> {
  const plan = new Plan();
  const flags = k.O_DIRECTORY | k.O_CLOEXEC;
  const directory = plan.add(calls.openat2, [at, path, flags, 0], { keep: true, output: 0 });
  plan.add(calls.flock, [directory, k.LOCK_EX | k.LOCK_NB]);
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return { descriptor: outcome.result(plan.stepOf(directory)) };
  return outcome.errno === e.EAGAIN && outcome.step?.call === calls.flock ? 'taken' : undefined;
}
