/** Diagnoses a mount before it is made: finds what would stop it. */
import { EINVAL } from '../errnos.js';
import { OverlayError } from '../errors.js';
import type { KernelFeatures } from '../features/record.js';
import { run } from '../kernel/task.js';
import type { CheckedOptions } from '../options/check.js';
import { findRootlessRefusal } from '../rootless/lease.js';
import { foresee, PATHS_ONLY, WANTED_BEFOREHAND } from './explain.js';
import type { Facts } from './facts.js';
import { gatherFacts, gatherFactsSync } from './gather-facts.js';
import { isAboutPath, judgePaths } from './paths.js';
import { refusalOfProcess } from './process.js';

export interface Beforehand {
  readonly facts: Facts;
  /** The errors that would stop the mount, or make it differ from what the caller asks for. */
  readonly errors: readonly OverlayError[];
}

/**
 * Examines everything that the mount would use. Mounts nothing and changes nothing. A target in another mount namespace
 * is left out, since its path leads elsewhere here.
 */
export async function examineBeforehand(given: CheckedOptions, features: KernelFeatures): Promise<Beforehand> {
  const options = given.namespace === undefined ? given : { ...given, target: undefined };
  const facts = await gatherFacts(options, WANTED_BEFOREHAND);
  const errors = foresee(options, facts);
  const ofProcess = refusalOfProcess({ options, facts, failure: undefined }, features);
  const isRootless = options.rootless !== false && ofProcess === undefined;
  const ofMachine = isRootless ? await run(findRootlessRefusal(options.subIds)) : undefined;
  const refusal = ofProcess === undefined ? ofMachine : new OverlayError(ofProcess);
  const isSaid = errors.some(({ reason }) => reason === refusal?.reason);
  return { facts, errors: refusal === undefined || isSaid ? errors : [refusal, ...errors] };
}

/** Returns the errors of the paths themselves: a path is missing, is not a directory, or cannot be reached. */
export function findBadPathsSync(options: CheckedOptions): readonly OverlayError[] {
  const scene = { options, facts: gatherFactsSync(options, PATHS_ONLY), failure: undefined };
  return judgePaths(scene)
    .filter(({ reason }) => isAboutPath(reason))
    .map((verdict) => new OverlayError({ errno: EINVAL, ...verdict }));
}
