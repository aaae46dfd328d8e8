/** Plans of mount(2) as mount(8) itself would call it: what the kernel lets pass, passes. */
import { calls } from '../../kernel/calls.js';
import * as k from '../../kernel/constants.js';
import { Plan } from '../../kernel/plan.js';
import { joinGiven } from '../../mount-strings.js';
import type { Request } from './arguments.js';
import type { Words } from './words.js';

export function mountPlan({ source, target }: Request, { flags, propagation, rest }: Words): Plan {
  const plan = new Plan();
  plan.add(calls.mount, [source, target, 'overlay', flags, joinGiven(rest)], { undo: true });
  if (propagation !== 0) plan.add(calls.mount, [null, target, null, propagation]);
  return plan;
}

/** Of an overlay only: this is a helper for no other. Overlayfs' own options are none that a remount changes. */
export function remountPlan({ target }: Pick<Request, 'target'>, { flags, propagation }: Words): Plan {
  const plan = new Plan();
  plan.add(calls.statfs, [target, 0, 0, k.OVERLAYFS_SUPER_MAGIC]);
  plan.add(calls.mount, [null, target, null, flags | k.MS_REMOUNT]);
  if (propagation !== 0) plan.add(calls.mount, [null, target, null, propagation]);
  return plan;
}
