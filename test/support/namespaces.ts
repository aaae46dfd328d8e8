/** Mount namespaces that a file descriptor holds. */

import { calls } from '../../lib/kernel/calls.js';
import { AT_FDCWD, CLONE_NEWNS, MS_PRIVATE, MS_REC, O_CLOEXEC } from '../../lib/kernel/constants.js';
import { StepFailure } from '../../lib/kernel/perform.js';
import { Plan } from '../../lib/kernel/plan.js';
import { ask, runSync } from '../../lib/kernel/task.js';

/**
 * Makes a copy of this process's mount namespace, in which all mounts are private. Returns its file descriptor, which
 * the caller closes: the mounts end with it.
 */
export function makeNamespace(): number {
  const plan = new Plan();
  plan.isOnOwnThread = true;
  plan.add(calls.unshare, [CLONE_NEWNS]);
  plan.add(calls.mount, [null, '/', null, MS_REC | MS_PRIVATE, null]);
  const args = [AT_FDCWD, '/proc/thread-self/ns/mnt', O_CLOEXEC, 0] as const;
  const step = plan.stepOf(plan.add(calls.openat2, args, { keep: true, output: 0 }));
  const outcome = runSync(ask(plan));
  if (outcome instanceof StepFailure) throw new Error(`The namespace is not made: errno ${outcome.errno}`);
  return outcome.result(step);
}
