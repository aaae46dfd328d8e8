/** Extended attributes, which Node does not offer: by plans of the library. */

import { calls } from '#lib/kernel/calls.js';
import { performSync, StepFailure } from '#lib/kernel/perform.js';
import { Plan } from '#lib/kernel/plan.js';

/** setxattr(2) */
export function setAttribute(path: string, name: string, value: string | Buffer): void {
  const plan = new Plan();
  plan.add(calls.setxattr, [path, name, value, 0]);
  const outcome = performSync(plan);
  if (outcome instanceof StepFailure) throw new Error(`${name} on ${path}: errno ${outcome.errno}`);
}

/** lgetxattr(2): the value, or undefined when there is none. */
export function getAttribute(path: string, name: string): string | undefined {
  const plan = new Plan();
  const step = plan.stepOf(plan.add(calls.lgetxattr, [path, name, 256], { output: 256, tolerate: 'any' }));
  const outputs = performSync(plan);
  if (outputs instanceof StepFailure || outputs.result(step) < 0) return undefined;
  return outputs.bytes(step, outputs.result(step)).toString('latin1');
}
