/** The plan of a plain mount, made from a template: most mounts are such, and a loop makes nothing else. */
import { Template } from '../kernel/template.js';
import { goesByDescriptors, type Path } from '../paths.js';
import type { KernelFeatures } from './features.js';
import type { CheckedOptions } from './options.js';
import { type MountPlan, plan } from './plan.js';

interface Known {
  readonly features: KernelFeatures;
  readonly planned: MountPlan;
  /** Undefined where the kernel is told a path twice, or as part of a longer text. */
  readonly template: Template | undefined;
}

let known: Known | undefined;

/** Two lower layers or a long one can go another way, and so can a path that has to be escaped. */
const isPlain = (path: Path | undefined): path is string =>
  typeof path === 'string' && path.length <= 80 && !/[\\:,]|\/$/.test(path) && !goesByDescriptors(path);

/** No path of a caller, which is absolute. */
const marks = ['lower', 'upper', 'work', 'target'] as const;

/** The plan of a mount of one lower layer with upper and work on a target, and no option; undefined for any other. */
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
