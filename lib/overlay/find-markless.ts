/** Finds out if the file system of an upperdir cannot keep the marks of overlayfs. */
import { explainMount, wantedAfter } from '../diagnosis/explain.js';
import { emptyFacts } from '../diagnosis/facts.js';
import { gather } from '../diagnosis/gather.js';
import type { OverlayError } from '../errors.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';
import type { CheckedOptions } from '../options/check.js';
import type { Path } from '../paths.js';
import { addXattrGuard } from './plan.js';

/** Returns the error if the upperdir's file system has no extended attributes of this kind. */
export function* findMarkless(
  options: CheckedOptions,
  upperdir: Path,
  kind: 'user' | 'trusted',
): Task<OverlayError | undefined> {
  const guard = new Plan();
  addXattrGuard(guard, upperdir, kind);
  const outcome = yield* ask(guard);
  if (!(outcome instanceof StepFailure)) return undefined;
  const facts = emptyFacts();
  yield* gather(facts, options, wantedAfter(outcome));
  return explainMount(options, outcome, facts);
}
