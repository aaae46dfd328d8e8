/**
 * User namespaces that a program holds until another process has written their maps: the launcher, which has memory of
 * its own, so that its files in /proc are this process's user's, whatever this process has been before.
 */
import { accessSync, constants } from 'node:fs';
import { launcher } from '../binding.js';
import { explainShortage } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { ask, type Dialogue } from '../kernel/dialogue.js';
import { type Ids, ownMap } from '../kernel/namespaces.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';

/** The program; undefined where this process may not execute it. */
export function findHolder(): string | undefined {
  try {
    const path = launcher();
    accessSync(path, constants.X_OK);
    return path;
  } catch {
    return undefined;
  }
}

/** One with the user's own ids; the descriptor is the caller's. Undefined where it cannot be had. */
export function* makeHeldNamespace({ uid, gid }: Ids): Dialogue<Descriptor | undefined> {
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
