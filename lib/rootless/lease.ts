/** Mounts without privilege: the namespaces that hold them, and what the kernel supports there. */
import { describeErrno, EPERM } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { kernelFeatures, kernelFeaturesSync, questions, wereAllAsked } from '../features/probe.js';
import type { KernelFeatures } from '../features/record.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { ask as askKernel, run, runSync, type Task } from '../kernel/task.js';
import { addNamespaces, type Ids, type Namespaces, ownIds, ownsProcFiles } from '../namespaces/user-namespace.js';
import { makeHeldNamespace } from './held-namespace.js';
import { explainRefusal, forbiddenBy, type Refusal, readNamespaceSettings } from './refusal.js';
import { makeSubIdNamespace } from './sub-ids.js';

/** Namespaces for one plan. */
export interface Lease {
  readonly namespaces: Namespaces;
  /** Ends the lease. The caller calls this after the plan has been performed. */
  end(): void;
}

interface Kept {
  readonly user: number;
  leases: number;
  timer: NodeJS.Timeout | undefined;
}

const IDLE_MILLISECONDS = 10_000;

/** The kept namespaces, keyed by whether they map the user's subordinate ids. */
const kept = new Map<boolean, Kept>();

/** The user for which this process can map ids itself. The library checks again when the user has changed. */
let mapper: number | undefined;

function canMapIds({ uid }: Ids): boolean {
  if (mapper !== uid && ownsProcFiles()) mapper = uid;
  return mapper === uid;
}

/** Returns the user namespace for a lease: one that the plan will make, or one that exists already. */
function* userNamespace(hasSubIds: boolean): Task<Ids | { readonly user: number }> {
  if (hasSubIds) return { user: yield* makeSubIdNamespace() };
  const ids = ownIds();
  const held = canMapIds(ids) ? undefined : yield* makeHeldNamespace(ids);
  // If this failed, the plan fails to make its own namespace too, and that failure is explained.
  return held === undefined ? ids : { user: held };
}

const isMade = (namespaces: Namespaces): namespaces is { user: number } => 'user' in namespaces;

/**
 * Makes a user namespace that outlives the child process which makes it, held by a file descriptor. Returns undefined
 * if that fails. It keeps no mount namespace, which would hold copies of all mounts and keep overlays alive that others
 * unmount.
 */
function* keep(namespaces: Ids | { readonly user: number }): Task<Kept | undefined> {
  if (isMade(namespaces)) return { user: namespaces.user, leases: 0, timer: undefined };
  const plan = new Plan();
  addNamespaces(plan, namespaces);
  const opening = [k.AT_FDCWD, '/proc/self/ns/user', k.O_CLOEXEC, 0] as const;
  const user = plan.stepOf(plan.add(calls.openat2, opening, { keep: true, output: 0 }));
  const outputs = yield* askKernel(plan);
  if (outputs instanceof StepFailure) return undefined;
  return { user: outputs.result(user), leases: 0, timer: undefined };
}

const letGo = ({ user }: { readonly user: number }): void => close({ descriptor: user });

function letGoLater(of: Kept, hasSubIds: boolean): void {
  of.timer = setTimeout(() => {
    kept.delete(hasSubIds);
    letGo(of);
  }, IDLE_MILLISECONDS);
  of.timer.unref();
}

function leaseKept(current: Kept, hasSubIds: boolean): Lease {
  clearTimeout(current.timer);
  current.leases++;
  return {
    namespaces: current,
    end() {
      current.leases--;
      if (current.leases === 0) letGoLater(current, hasSubIds);
    },
  };
}

/**
 * Returns the namespaces for a plan: new ones of its own, or the kept ones.
 *
 * @throws {OverlayError} `reason` is `'sub-ids-missing'`, `'sub-ids-refused'`, `'rootless-forbidden'`, or names the
 * resource that ran out
 */
export function* lease(mode: boolean | 'keep' | 'auto', hasSubIds: boolean): Task<Lease> {
  const known = mode === 'keep' ? kept.get(hasSubIds) : undefined;
  if (known !== undefined) return leaseKept(known, hasSubIds);
  const namespaces = yield* userNamespace(hasSubIds);
  const own = { namespaces, end: isMade(namespaces) ? () => letGo(namespaces) : () => {} };
  if (mode !== 'keep') return own;
  const made = yield* keep(namespaces);
  // If this failed, the plan fails to make its own namespaces too, and that failure is explained.
  if (made === undefined) return own;
  const other = kept.get(hasSubIds);
  if (other === undefined) kept.set(hasSubIds, made);
  // A concurrent call has kept its namespaces first.
  else letGo(made);
  return leaseKept(other ?? made, hasSubIds);
}

interface RootlessAnswers {
  /** The kernel's features in a user namespace. */
  readonly record: KernelFeatures;
  readonly refusal: Refusal | undefined;
  /** True if the answers are final. A refusal, or a question that failed for now, can change. */
  readonly isLast: boolean;
}

/** Probes the kernel in a user namespace for its features, and for permission to make an overlay there. */
function* askRootless(): Task<RootlessAnswers> {
  if (remembered !== undefined) return remembered;
  const namespaces = yield* userNamespace(false);
  try {
    return remember(yield* askIn(namespaces));
  } finally {
    if (isMade(namespaces)) letGo(namespaces);
  }
}

function* askIn(namespaces: Namespaces): Task<RootlessAnswers> {
  const plan = new Plan();
  addNamespaces(plan, namespaces);
  const { read } = questions(plan);
  const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC], { tolerate: 'any', output: 0 });
  // Without layers the kernel never makes an overlay: it tells a permitted caller only that they are missing.
  const create = [context, k.FSCONFIG_CMD_CREATE, null, null] as const;
  const made = plan.stepOf(plan.add(calls.fsconfig, create, { tolerate: 'any', output: 0 }));
  const opened = plan.stepOf(context);
  const outcome = yield* askKernel(plan);
  if (!(outcome instanceof StepFailure)) {
    const record = { ...read(outcome), userNamespace: true };
    const step = outcome.result(opened) < 0 ? opened : made;
    const failure = { step, errno: -outcome.result(step), plan };
    const refusal = explainRefusal(failure, readNamespaceSettings());
    return { record, refusal, isLast: refusal === undefined && wereAllAsked(plan, outcome) };
  }
  // The plan failed, so nothing is known. A later mount fails too, and that failure is explained.
  const nothing = { step: -1, errno: EPERM, undoErrno: 0, cancelled: false, log: [] };
  const record = { ...read(new StepFailure(plan, nothing)), userNamespace: true };
  const unknown = {
    what: `the kernel refuses it (${describeErrno(outcome.errno)[0]})`,
    hint: 'read the kernel log (dmesg)',
  };
  return { record, refusal: explainRefusal(outcome, readNamespaceSettings()) ?? unknown, isLast: false };
}

let remembered: RootlessAnswers | undefined;

function remember(answers: RootlessAnswers): RootlessAnswers {
  if (answers.isLast) remembered = answers;
  return answers;
}

/** Returns the kernel's features in a user namespace: from the given record, or else from the kernel's answers. */
export function* findRootlessFeatures(record?: KernelFeatures): Task<KernelFeatures> {
  return record === undefined ? (yield* askRootless()).record : { ...record, userNamespace: true };
}

/**
 * Returns the error that a rootless mount would fail with before it comes to the layers: the machine allows no
 * namespaces, or does not map the user's subordinate ids.
 */
export function* findRootlessRefusal(hasSubIds: boolean): Task<OverlayError | undefined> {
  const { refusal } = yield* askRootless();
  if (refusal !== undefined) return new OverlayError({ errno: EPERM, ...forbiddenBy(refusal) });
  if (!hasSubIds) return undefined;
  try {
    (yield* lease(true, true)).end();
    return undefined;
  } catch (error) {
    if (error instanceof OverlayError) return error;
    throw error;
  }
}

/** The kernel's features, and whether this process can mount without privilege. */
export interface Features extends KernelFeatures {
  /** True if this process can mount with `rootless` here. */
  readonly rootless: boolean;
  /** The reason why it cannot, and what to do about it, in words; undefined if it can. */
  readonly rootlessForbidden: string | undefined;
}

function withRootless(kernel: KernelFeatures, { refusal }: RootlessAnswers): Features {
  const words = refusal && `${refusal.what}: ${refusal.hint}`;
  return { ...kernel, rootless: refusal === undefined, rootlessForbidden: words };
}

/**
 * Returns what this kernel supports for overlays, and what this process may do. The library mounts nothing: it probes
 * for each feature once per process, in a way that leaves nothing behind. It uses fsopen(2), fsconfig(2) and calls with
 * invalid arguments; for `rootless`, a child process that makes a user namespace. An answer is true, false, or
 * `'unknown'` if the process lacks the privilege to ask; then the next call asks again.
 */
export async function features(): Promise<Features> {
  return withRootless(await kernelFeatures(), await run(askRootless()));
}

/** The synchronous form of `features`. */
export function featuresSync(): Features {
  return withRootless(kernelFeaturesSync(), runSync(askRootless()));
}
