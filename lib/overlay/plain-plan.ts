/** Makes the plan of a plain mount from a template. Most mounts are plain, and a program may make many in a loop. */
import type { KernelFeatures } from '../features/record.js';
import { Template } from '../kernel/template.js';
import type { CheckedOptions } from '../options/check.js';
import { goesByDescriptors, type Path } from '../paths.js';
import { type MountPlan, plan } from './plan.js';

interface Known {
  readonly features: KernelFeatures;
  readonly planned: MountPlan;
  /** Undefined if the plan passes a path to the kernel as part of a longer text. */
  readonly template: Template | undefined;
}

let known: Known | undefined;

/**
 * Returns true if the path always leads to the same steps. A long path, or one that must be escaped, may need a
 * fallback.
 */
const isPlain = (path: Path | undefined): path is string =>
  typeof path === 'string' && path.length <= 80 && !/[\\:,]|\/$/.test(path) && !goesByDescriptors(path);

/** Placeholders for the paths. A caller's path never equals one, because it is absolute. */
const marks = ['lower', 'upper', 'work', 'target'] as const;

/** Returns the plan of a mount with one lowerdir, upperdir, workdir, target and no option; undefined for any other. */
export function planPlain(options: CheckedOptions, features: KernelFeatures): MountPlan | undefined {
  const { isPlain: hasNoOption, lowerdir, upperdir, workdir, target } = options;
  const [lower] = lowerdir;
  if (!hasNoOption || lowerdir.length !== 1) return undefined;
  if (!isPlain(lower) || !isPlain(upperdir) || !isPlain(workdir) || !isPlain(target)) return undefined;
  if (known?.features !== features) {
    const [lowerMark, upperMark, workMark, targetMark] = marks;
    const marked = { ...options, lowerdir: [lowerMark], upperdir: upperMark, workdir: workMark, target: targetMark };
    const planned = plan(marked, features);
    known = { features, planned, template: Template.of(planned.plan, marks) };
  }
  const { planned, template } = known;
  if (template === undefined) return undefined;
  return { ...planned, plan: template.fill([lower, upperdir, workdir, target], () => plan(options, features).plan) };
}
