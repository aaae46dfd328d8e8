/** The checks of a root: its file system has to hold uppers, and decides which options mounts get. */
import { statfsSync } from 'node:fs';
import { foresee, PATHS_ONLY } from '../diagnosis/explain.js';
import { emptyFacts } from '../diagnosis/facts.js';
import { gather } from '../diagnosis/gather.js';
import { kernelFeaturesSync } from '../features/probe.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { statPathSync } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import { checkOptions } from '../options/check.js';
import { Mapper } from '../options/idmap.js';
import { findMarkless } from '../overlay/find-markless.js';
import type { Reason } from '../reasons.js';

/** The reasons for which a directory can hold no upper of any overlay. */
const unsuitable: ReadonlySet<Reason> = new Set(['upper-unsupported', 'upper-read-only', 'layer-unsupported']);

/** Throws if the file system of a directory cannot hold an upper. */
export function* refuseUnsuitable(directory: string): Task<void> {
  const options = checkOptions({ lowerdir: directory, upperdir: directory, workdir: directory });
  const markless = yield* findMarkless(options, directory, kernelFeaturesSync().userNamespace ? 'user' : 'trusted');
  if (markless !== undefined) throw markless;
  const facts = emptyFacts();
  yield* gather(facts, options, PATHS_ONLY);
  const error = foresee(options, facts).find(({ reason }) => unsuitable.has(reason));
  if (error !== undefined) throw error;
}

const has = (options: readonly string[], name: string): boolean =>
  options.some((option) => option === name || option.startsWith(`${name}=`));

/** Returns the options of overlays in this directory: the caller's, and those that containerd adds. */
export function toMountOptions(directory: string, options: readonly string[]): string[] {
  const { userNamespace, options: supported } = kernelFeaturesSync();
  const hasUserMarks = userNamespace && supported.userxattr !== false && statfsSync(directory).type !== k.TMPFS_MAGIC;
  // Deno lets no program read /sys itself, unless it lets it do anything.
  const hasIndex = statPathSync('/sys/module/overlay/parameters/index').errno === 0;
  return [
    ...options,
    ...(hasUserMarks && !has(options, 'userxattr') ? ['userxattr'] : []),
    ...(hasIndex && !has(options, 'index') ? ['index=off'] : []),
  ];
}

/** Returns true when the kernel can show the files of this directory with other owners. */
export function* canRemap(directory: string): Task<boolean> {
  if (kernelFeaturesSync().userNamespace) return false;
  const plan = new Plan();
  const ids = '0 0 1\n';
  new Mapper(plan).add(directory, { uids: ids, gids: ids }, { role: 'path', path: directory });
  return !((yield* ask(plan)) instanceof StepFailure);
}

/** Returns true when a committed snapshot can get a parent. In a user namespace, whiteouts have marks of another kind. */
export const canRebase = (): boolean => !kernelFeaturesSync().userNamespace;
