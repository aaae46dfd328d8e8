/** Makes the error for a failure and the facts: the first rule that finds a cause decides. Pure. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { type Call, calls } from '../kernel/calls.js';
import { formatStep, systemCallOf } from '../kernel/format.js';
import type { StepFailure } from '../kernel/perform.js';
import type { CheckedOptions } from '../options/check.js';
import type { Facts } from './facts.js';
import { fileSystemRules, lastFileSystemRules, upperRules } from './file-systems.js';
import type { Wanted } from './gather.js';
import { layerRules } from './layers.js';
import { mappingRules } from './mapping.js';
import { isAboutPath, judgePaths, pathRules } from './paths.js';
import { lastProcessRules, processRules } from './process.js';
import { cameOutReadOnly, isCreation, pathField, place, type Rule, type Scene, type Verdict } from './rule.js';
import { saidRules } from './said.js';
import { leftoverRules, workRules } from './work.js';

/** The rules in their order. The first one that applies decides; certain causes come before likely ones. */
export const rules: readonly Rule[] = [
  ...processRules,
  ...mappingRules,
  ...pathRules,
  ...workRules,
  ...saidRules,
  ...upperRules,
  ...layerRules,
  ...fileSystemRules,
  ...leftoverRules,
  ...lastFileSystemRules,
  ...lastProcessRules,
];

/** Returns the facts to gather after a failure: only those that the rules for such a failure use. */
export function wantedAfter(failure: StepFailure): Wanted {
  const { errno } = failure;
  const isCreating = isCreation(failure);
  const isOdd = isCreating && (errno === e.EINVAL || errno === e.ENOTDIR);
  return {
    parents: errno === e.ELOOP ? 'all' : isOdd ? 'upper' : 'none',
    otherUses:
      errno !== e.EBUSY ? 'none' : isCreating ? 'certain' : failure.step?.call === calls.reserve ? 'any' : 'none',
    work: errno === e.EROFS || isOdd,
    attempt: cameOutReadOnly(failure),
    origin: errno === e.ESTALE && isCreating,
    use: errno === e.EBUSY && isCreating,
  };
}

function judge(scene: Scene, failure: StepFailure): Verdict | undefined {
  for (const rule of rules) {
    if (!rule.when(failure)) continue;
    const verdict = rule.find(scene);
    if (verdict !== undefined) return verdict;
  }
  return undefined;
}

/** Names the facts that were examined, for a failure that no rule explains. */
function lookedAt({ paths, mountCount, isIncomplete }: Facts): string {
  const whole = `${paths.length} paths with their file systems, ${mountCount} mounts, the capabilities and filters of the process`;
  return isIncomplete ? `${whole}, as far as the file systems have answered` : whole;
}

function unexplained({ options, facts }: Scene, { plan, step }: StepFailure): Verdict {
  const call = step === undefined ? 'the call' : formatStep(plan, step);
  return {
    reason: 'unexplained',
    what: `the kernel refused the mount${place(options)}: ${call} failed, and nothing known explains it; looked at were ${lookedAt(facts)}`,
  };
}

/** Returns the error for a failed mount. */
export function explainMount(options: CheckedOptions, failure: StepFailure, facts: Facts): OverlayError {
  const scene: Scene = { options, facts, failure };
  const verdict = judge(scene, failure) ?? unexplained(scene, failure);
  const { step, errno, undoErrno } = failure;
  return new OverlayError({
    errno,
    ...pathField(options.target),
    ...verdict,
    // The errno of a guard comes from the library, not from a system call.
    syscall: step === undefined || guards.has(step.call) ? undefined : systemCallOf(step),
    kernel: failure.kernel,
    leftover: undoErrno === 0 ? undefined : `what was made for it could not all be removed (errno ${undoErrno})`,
  });
}

const guards: ReadonlySet<Call> = new Set([
  calls.statx,
  calls.statfs,
  calls.fstatfs,
  calls.reserve,
  calls.reserve_target,
  calls.news,
  calls.getxattr,
  calls.faccessat2,
]);

/** The facts to gather for a diagnosis before a mount. */
export const WANTED_BEFOREHAND: Wanted = {
  parents: 'all',
  otherUses: 'certain',
  work: true,
  attempt: false,
  origin: false,
  use: false,
};

/** Returns the errors that would stop a mount with these options or make it wrong, as far as the facts show them. */
export function foresee(options: CheckedOptions, facts: Facts): OverlayError[] {
  const scene: Scene = { options, facts, failure: undefined };
  const verdicts = rules.filter(({ foresees }) => foresees).flatMap((rule) => rule.find(scene) ?? []);
  const all = [...judgePaths(scene), ...verdicts];
  // A missing path explains the other errors about it.
  const bad = new Set(all.filter(({ reason }) => isAboutPath(reason)).map(({ path }) => path));
  const first = new Map(
    all
      .filter(({ reason, path }) => isAboutPath(reason) || !bad.has(path))
      .map((verdict) => [`${verdict.reason} ${verdict.path}`, verdict]),
  );
  return [...first.values()].map((verdict) => new OverlayError({ errno: e.EINVAL, ...verdict }));
}
