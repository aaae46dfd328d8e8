/** Makes the error for a failure and the facts: the first rule that finds a cause decides. Pure. */
import * as e from '../errnos.js';
import { OverlayError, type Role } from '../errors.js';
import { formatStep, systemCallOf } from '../kernel/format.js';
import type { StepFailure } from '../kernel/perform.js';
import type { CheckedOptions } from '../options/check.js';
import { pathString } from '../paths.js';
import type { Facts } from './facts.js';
import { fileSystemRules, lastFileSystemRules, upperRules } from './file-systems.js';
import type { Wanted } from './gather.js';
import { messageRules } from './kernel-messages.js';
import { layerRules } from './layers.js';
import { mappingRules } from './mapping.js';
import { isAboutPath, judgePaths, pathRules } from './paths.js';
import { lastProcessRules, processRules } from './process.js';
import { type Cause, cameOutReadOnly, isCreation, pathField, place, type Rule, type Scene } from './rule.js';
import { leftoverRules, workRules } from './work.js';

/** The rules in their order. The first one that applies decides; certain causes come before likely ones. */
export const rules: readonly Rule[] = [
  ...processRules,
  ...mappingRules,
  ...pathRules,
  ...workRules,
  ...messageRules,
  ...upperRules,
  ...layerRules,
  ...fileSystemRules,
  ...leftoverRules,
  ...lastFileSystemRules,
  ...lastProcessRules,
];

/** Returns the facts to gather after a failure: only those that the rules for such a failure use. */
export function wantedAfter(failure: StepFailure): Wanted {
  const { errno, guard } = failure;
  const isCreating = isCreation(failure);
  const isOdd = isCreating && (errno === e.EINVAL || errno === e.ENOTDIR);
  return {
    parents: errno === e.ELOOP || guard === 'layers-overlap' ? 'all' : isOdd ? 'upper' : 'none',
    otherUses: guard === 'directory-is-in-use' ? 'any' : errno === e.EBUSY && isCreating ? 'certain' : 'none',
    work: errno === e.EROFS || cameOutReadOnly(failure) || isOdd,
    attempt: cameOutReadOnly(failure),
    origin: errno === e.ESTALE && isCreating,
    use: errno === e.EBUSY && isCreating,
    failure,
  };
}

function judge(scene: Scene, failure: StepFailure): Cause | undefined {
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
  return isIncomplete ? `${whole}, as far as the file systems answered` : whole;
}

function unexplained({ options, facts }: Scene, { plan, step }: StepFailure): Cause {
  const call = step === undefined ? 'the call' : formatStep(plan, step);
  return {
    reason: 'unexplained',
    what: `the kernel refused the mount${place(options)}: ${call} failed, and no known cause matches; the library examined ${lookedAt(facts)}`,
  };
}

/** Returns the role of the path that a cause is about. */
function roleOf({ paths }: Facts, { path }: Cause): Role | undefined {
  const role = paths.find(({ subject }) => pathString(subject.path) === path)?.subject.role;
  return role === 'path' ? undefined : role;
}

/** Returns the error for a failed mount. */
export function explainMount(options: CheckedOptions, failure: StepFailure, facts: Facts): OverlayError {
  const scene: Scene = { options, facts, failure };
  const verdict = judge(scene, failure) ?? unexplained(scene, failure);
  const { step, guard, undoErrno } = failure;
  return new OverlayError({
    errno: failure.shownErrno,
    ...pathField(options.target),
    ...verdict,
    role: roleOf(facts, verdict),
    // A guard is the library's own, and no system call that the kernel has refused.
    syscall: step === undefined || guard !== undefined ? undefined : systemCallOf(step),
    kernel: failure.kernel,
    leftover: undoErrno === 0 ? undefined : `some of its effects could not be undone (errno ${undoErrno})`,
  });
}

/** The facts to gather for a diagnosis before a mount. */
export const WANTED_BEFOREHAND: Wanted = {
  parents: 'all',
  otherUses: 'certain',
  work: true,
  attempt: false,
  origin: false,
  use: false,
};

/** A look at the paths alone needs nothing more. */
export const PATHS_ONLY: Wanted = {
  parents: 'none',
  otherUses: 'none',
  work: false,
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
  return [...first.values()].map(
    (verdict) => new OverlayError({ errno: e.EINVAL, role: roleOf(facts, verdict), ...verdict }),
  );
}
