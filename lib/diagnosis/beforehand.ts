/** Diagnoses a mount before it is made: finds what would stop it. */
import { EINVAL } from '../errnos.js';
import { OverlayError } from '../errors.js';
import type { KernelFeatures } from '../features/record.js';
import type { CheckedOptions } from '../options/check.js';
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

/** Examines everything that the mount would use. Mounts nothing and changes nothing. */
export async function examineBeforehand(options: CheckedOptions, features: KernelFeatures): Promise<Beforehand> {
  const facts = await gatherFacts(options, WANTED_BEFOREHAND);
  const errors = foresee(options, facts);
  const refusal = refusalOfProcess({ options, facts, failure: undefined }, features);
  const isSaid = errors.some(({ reason }) => reason === refusal?.reason);
  return { facts, errors: refusal === undefined || isSaid ? errors : [new OverlayError(refusal), ...errors] };
}

/** Returns the errors of the paths themselves: a path is missing, is not a directory, or cannot be reached. */
export function findBadPathsSync(options: CheckedOptions): readonly OverlayError[] {
  const scene = { options, facts: gatherFactsSync(options, PATHS_ONLY), failure: undefined };
  return judgePaths(scene)
    .filter(({ reason }) => isAboutPath(reason))
    .map((verdict) => new OverlayError({ errno: EINVAL, ...verdict }));
}
