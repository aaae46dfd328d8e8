/**
 * Makes user namespaces that a program, the launcher, holds until another process has written their maps. The launcher
 * has memory of its own. Its files in /proc therefore belong to the current user of this process, even if this process
 * has changed its user.
 */
import { accessSync, constants } from 'node:fs';
import { launcher } from '../binding.js';
import { calls } from '../kernel/calls.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import { type Ids, ownMap } from '../namespaces/user-namespace.js';
import { explainShortage } from '../verdicts.js';

/** Returns the path of the launcher, or undefined if this process may not execute it. */
export function findHolder(): string | undefined {
  try {
    const path = launcher();
    accessSync(path, constants.X_OK);
    return path;
  } catch {
    return undefined;
  }
}

/** Makes a namespace with the user's own ids. The caller owns the descriptor. Returns undefined if that fails. */
export function* makeHeldNamespace({ uid, gid }: Ids): Task<Descriptor | undefined> {
  const holder = findHolder();
  if (holder === undefined) return undefined;
  const plan = new Plan();
  const made = plan.add(calls.userns_own, [holder, ownMap(uid), ownMap(gid)], { keep: true, output: 0 });
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return outcome.result(plan.stepOf(made));
  const shortage = explainShortage(outcome.errno, 'make a user namespace');
  if (shortage !== undefined) throw shortage;
  return undefined;
}
