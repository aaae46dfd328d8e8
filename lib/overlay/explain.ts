/** explain: what would stop a mount or make it a wrong one, found without mounting. */
import { type Beforehand, examineBeforehand } from '../diagnosis/beforehand.js';
import { EINVAL } from '../errnos.js';
import { abortError, OverlayError, type Role, textsOf, withTexts } from '../errors.js';
import { findProblems } from '../features/conflicts.js';
import { kernelFeatures } from '../features/probe.js';
import { onAbort } from '../kernel/on-abort.js';
import { run } from '../kernel/task.js';
import { findHalfMarked } from '../layers/half-marked.js';
import type { CheckedOptions, OverlayOptions } from '../options/check.js';
import { pathString, quotePath } from '../paths.js';
import { withResolvers } from '../promises.js';
import type { Reason } from '../reasons.js';
import { sentence } from '../text.js';
import { readOptions, settle } from './mount.js';

/** A thing that would stop a mount or make it a wrong one. */
export interface Finding {
  /** The reason, which the error of `mountOverlay` has too. */
  readonly reason: Reason;
  /** The option that it is about. */
  readonly role?: Role;
  readonly path?: string;
  /** The second path, of a finding about two: the layer that contains the other. */
  readonly dest?: string;
  /** The problem, in one sentence. */
  readonly message: string;
  /** The remedy, in one sentence. */
  readonly hint: string;
}

/** The result of `explain`. */
export interface Explanation {
  /** True if there are no findings. */
  readonly ok: boolean;
  readonly findings: readonly Finding[];
  /** False if a file system did not answer within two seconds: some findings may be missing. */
  readonly complete: boolean;
  /** The target and the layers, in the order in which a mount opens them. */
  readonly paths: readonly {
    readonly role: Role;
    /** The place in the list, of a lowerdir or datadir: 0 is the topmost. */
    readonly index?: number;
    /** Text, in which bytes that are not UTF-8 are replaced. */
    readonly path: string;
    /** False if nothing is there, or it cannot be reached. */
    readonly found: boolean;
    /** The type of its file system, and the mount point of it; absent if the mount table does not show them. */
    readonly fileSystem?: string;
    readonly mount?: string;
  }[];
}

type LookedAt = Explanation['paths'][number];

/** The finding keeps the texts of the error, which the command line spells in its own way. */
function toFinding(error: OverlayError): Finding {
  const { reason, role, path, dest, hint } = error;
  const { what = error.message, hint: remedy = hint } = textsOf(error) ?? {};
  const finding: Finding = {
    reason,
    ...(role !== undefined && { role }),
    ...(path !== undefined && { path }),
    ...(dest !== undefined && { dest }),
    message: sentence(what),
    hint,
  };
  return withTexts(finding, { message: what, hint: remedy });
}

const toLookedAt = ({ subject, found, isMissing, mount }: Beforehand['facts']['paths'][number]): LookedAt => ({
  role: subject.role as Role,
  ...(subject.index !== undefined && { index: subject.index }),
  path: pathString(subject.path),
  found: found.errno === 0 && !isMissing,
  ...(mount && { fileSystem: mount.type, mount: pathString(mount.target) }),
});

/** Finds, among the layers that have a layer below them, those whose hidden files a rootless mount would show. */
async function findUnhidden({ lowerdir, upperdir, signal }: CheckedOptions): Promise<OverlayError[]> {
  const above = lowerdir.map((path, i) => ['lowerdir', `lowerdir[${i}]`, path] as const).slice(0, -1);
  const upper = upperdir === undefined ? [] : [['upperdir', 'upperdir', upperdir] as const];
  const errors: OverlayError[] = [];
  for (const [role, name, path] of [...upper, ...above]) {
    if (signal?.aborted) break;
    const { paths, isComplete } = await run(findHalfMarked(path, true));
    const [first] = paths;
    if (first === undefined) continue;
    const others = paths.length === 1 ? '' : `, and ${isComplete ? '' : 'at least '}${paths.length - 1} more`;
    errors.push(
      new OverlayError({
        errno: EINVAL,
        reason: 'mark-unseen',
        role,
        what: `the ${name} ${quotePath(path)} has directories that are opaque only for mounts by root: ${quotePath(first)}${others}`,
        path: pathString(first),
      }),
    );
  }
  return errors;
}

/** Finds the options that this kernel lacks. Throws if options conflict, as `mountOverlay` does. */
function findLacking(...args: Parameters<typeof findProblems>): OverlayError[] {
  const errors: OverlayError[] = [];
  for (const { error } of findProblems(...args)) {
    if (!(error instanceof OverlayError)) throw error;
    errors.push(error);
  }
  return errors;
}

async function examine(requested: ReturnType<typeof readOptions>): Promise<Explanation> {
  const { checked, features } = await run(settle(requested));
  const lacking = findLacking(checked, features);
  const { facts, errors } = await examineBeforehand(checked, await kernelFeatures());
  const unhidden = checked.rootless === false ? [] : await findUnhidden(checked);
  const findings = [...lacking, ...errors, ...unhidden].map(toFinding);
  return {
    ok: findings.length === 0,
    findings,
    complete: !facts.isIncomplete,
    paths: facts.paths.map(toLookedAt),
  };
}

/**
 * Examines everything that `mountOverlay` would use with these options: the paths, their file systems and mounts, other
 * overlays with the same upperdir, the process and the kernel. It mounts nothing and changes nothing, so it makes no
 * directory in the workdir, does not ask the kernel whether an overlay that no table shows uses the upperdir, and does
 * not compare an index with the layers: the error of the mount tells of such faults. A `target` in another `namespace`
 * is not examined.
 *
 * Called by root for a `rootless` mount, it also finds directories that are opaque only for mounts of root
 * (`'mark-unseen'`).
 *
 * @throws {TypeError} as `mountOverlay`, for wrong or conflicting options
 * @throws {RangeError} as `mountOverlay`
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 *
 * @example
 * const { ok, findings } = await explain({ lowerdir: '/srv/base', upperdir, workdir, target: '/srv/merged' });
 * for (const { reason, message, hint } of findings) console.log(`${reason}: ${message} ${hint}`);
 */
export async function explain(options: OverlayOptions): Promise<Explanation> {
  const requested = readOptions(options);
  const { signal } = requested.asked;
  const examined = examine(requested);
  if (signal === undefined) return examined;
  const { promise: aborted, reject } = withResolvers<never>();
  const forget = onAbort(signal, () => reject(abortError(signal)));
  try {
    return await Promise.race([examined, aborted]);
  } finally {
    forget();
  }
}
