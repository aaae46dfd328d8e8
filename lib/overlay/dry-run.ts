/** The effects of a mount as text: the plan, with nothing performed. Pure. */
import { invalidArgumentValue, OverlayError } from '../errors.js';
import { checkConflicts } from '../features/conflicts.js';
import type { KernelFeatures } from '../features/record.js';
import { calls } from '../kernel/calls.js';
import { formatPlan } from '../kernel/format.js';
import { type CheckedOptions, checkOptions, type OverlayOptions } from '../options/check.js';
import type { Path } from '../paths.js';
import { toBytes } from '../paths.js';
import { type MountPlan, plan } from './plan.js';
import { type WayName, ways } from './ways.js';

/**
 * Returns the system calls, one a line. The paths in the options must be absolute. With a way, returns its calls, as on
 * a kernel that has no better way.
 */
export function dryRun(options: OverlayOptions, features: KernelFeatures, way?: WayName): string[] {
  const found = way === undefined ? features : { ...features, ...ways[way].features };
  const checked = checkConflicts(checkOptions(options), found);
  const { plan: planned } = way === 'numbers' ? planByNumbers(checked, found) : plan(checked, found);
  return formatPlan(planned).trimEnd().split('\n');
}

/** Plans as on a machine whose page is too small for these paths. */
function planByNumbers(checked: CheckedOptions, features: KernelFeatures): MountPlan {
  const whole = plan(checked, { ...features, pageSize: Number.POSITIVE_INFINITY });
  const data = whole.plan.steps.find(({ call }) => call === calls.mount)?.args[4] as readonly Path[];
  const pageSize = data.reduce((sum, piece) => sum + toBytes(piece).length, 0);
  try {
    return plan(checked, { ...features, pageSize });
  } catch (error) {
    if (!(error instanceof OverlayError)) throw error;
    throw invalidArgumentValue('way', 'numbers', 'is only for longer paths than these');
  }
}
