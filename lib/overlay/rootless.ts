/** Mounts without privilege: the namespaces that they are made in, and what the kernel can do there. */
import { describeErrno, EPERM } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask as askKernel, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { close } from '../kernel/held.js';
import { addNamespaces, type Ids, type Namespaces, ownIds, ownsProcFiles } from '../kernel/namespaces.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import {
  type KernelFeatures,
  features as kernelFeatures,
  featuresSync as kernelFeaturesSync,
  questions,
  wereAllAsked,
} from './features.js';
import { makeHeldNamespace } from './held-namespace.js';
import { explainRefusal, type Refusal, readNamespaceSettings } from './refusal.js';
import { makeSubIdNamespace } from './sub-ids.js';

/** Namespaces for one plan. */
export interface Lease {
  readonly namespaces: Namespaces;
  /** When the plan is performed. */
  end(): void;
}

interface Kept {
  readonly user: number;
  leases: number;
  timer: NodeJS.Timeout | undefined;
}

const IDLE_MILLISECONDS = 10_000;

/** By whether the subordinate ids of the user are in them. */
const kept = new Map<boolean, Kept>();

/** The user for which this process can map ids itself; asked again when that has changed. */
let mapper: number | undefined;

function canMapIds({ uid }: Ids): boolean {
  if (mapper !== uid && ownsProcFiles()) mapper = uid;
  return mapper === uid;
}

/** The user namespace that a lease is about: one to be made with the plan, or one that is there already. */
function* userNamespace(hasSubIds: boolean): Dialogue<Ids | { readonly user: number }> {
  if (hasSubIds) return { user: yield* makeSubIdNamespace() };
  const ids = ownIds();
  const held = canMapIds(ids) ? undefined : yield* makeHeldNamespace(ids);
  // What forbids one shows, and is explained, when the plan tries to make its own.
  return held === undefined ? ids : { user: held };
}

const isMade = (namespaces: Namespaces): namespaces is { user: number } => 'user' in namespaces;

/**
 * A user namespace that outlives the child which makes it, by descriptor; undefined where it cannot be had. No mount
 * namespace is kept with it: that would hold copies of all mounts, and keep overlays alive that others unmount.
 */
function* keep(namespaces: Ids | { readonly user: number }): Dialogue<Kept | undefined> {
  if (isMade(namespaces)) return { user: namespaces.user, leases: 0, timer: undefined };
  const plan = new Plan();
  addNamespaces(plan, namespaces);
  const opening = [k.AT_FDCWD, '/proc/self/ns/user', k.O_CLOEXEC, 0];
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
 * The namespaces for a plan: its own, or those that are kept.
 *
 * @throws {OverlayError} `reason` is `'sub-ids-missing'`, `'sub-ids-refused'`, `'rootless-forbidden'`, or that of what is short
 */
export function* lease(mode: boolean | 'keep' | 'auto', hasSubIds: boolean): Dialogue<Lease> {
  const known = mode === 'keep' ? kept.get(hasSubIds) : undefined;
  if (known !== undefined) return leaseKept(known, hasSubIds);
  const namespaces = yield* userNamespace(hasSubIds);
  const own = { namespaces, end: isMade(namespaces) ? () => letGo(namespaces) : () => {} };
  if (mode !== 'keep') return own;
  const made = yield* keep(namespaces);
  // What forbids them shows, and is explained, when the plan tries to make its own.
  if (made === undefined) return own;
  const other = kept.get(hasSubIds);
  if (other === undefined) kept.set(hasSubIds, made);
  // Another call was quicker.
  else letGo(made);
  return leaseKept(other ?? made, hasSubIds);
}

interface RootlessAnswers {
  /** What the kernel can do in a user namespace. */
  readonly record: KernelFeatures;
  readonly refusal: Refusal | undefined;
  /** That it is forbidden, or could not be asked for the moment, can change. */
  readonly isLast: boolean;
}

/** The questions as they are asked in a user namespace, and whether there an overlay may be made. */
function* askRootless(): Dialogue<RootlessAnswers> {
  if (remembered !== undefined) return remembered;
  const namespaces = yield* userNamespace(false);
  try {
    return remember(yield* askIn(namespaces));
  } finally {
    if (isMade(namespaces)) letGo(namespaces);
  }
}

function* askIn(namespaces: Namespaces): Dialogue<RootlessAnswers> {
  const plan = new Plan();
  addNamespaces(plan, namespaces);
  const { read } = questions(plan);
  const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC], { tolerate: 'any', output: 0 });
  // Without layers: whoever may make overlays is told what is missing.
  const create = [context, k.FSCONFIG_CMD_CREATE, null, null];
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
  // Nothing is known then. A mount fails in its turn, and is explained.
  const nothing = { step: -1, errno: EPERM, undoErrno: 0, cancelled: false, log: [] };
  const record = { ...read(new StepFailure(plan, nothing)), userNamespace: true };
  const unknown = { what: `the kernel refuses it (${describeErrno(outcome.errno)[0]})`, hint: 'look at dmesg' };
  return { record, refusal: explainRefusal(outcome, readNamespaceSettings()) ?? unknown, isLast: false };
}

let remembered: RootlessAnswers | undefined;

function remember(answers: RootlessAnswers): RootlessAnswers {
  if (answers.isLast) remembered = answers;
  return answers;
}

/** What the kernel can do in a user namespace: a given record as it is there, or the kernel's own answers. */
export function rootlessRecord(record?: KernelFeatures): KernelFeatures {
  return record === undefined ? holdSync(askRootless()).record : { ...record, userNamespace: true };
}

/** What `features` says about mounts without privilege. */
export interface Features extends KernelFeatures {
  /** Whether this process can mount with `rootless` here. */
  readonly rootless: boolean;
  /** What forbids that, and what to do about it, in words; undefined where nothing does. */
  readonly rootlessForbidden: string | undefined;
}

function withRootless(kernel: KernelFeatures, { refusal }: RootlessAnswers): Features {
  const words = refusal && `${refusal.what}: ${refusal.hint}`;
  return { ...kernel, rootless: refusal === undefined, rootlessForbidden: words };
}

/**
 * What this kernel can do for overlays, and what this process may. Nothing is mounted: each feature is asked
 * for in a way that leaves nothing behind, once for the process (fsopen(2), fsconfig(2) and calls with
 * arguments that cannot be right; for `rootless`, a child process that makes a user namespace). An answer is
 * true, false, or `'unknown'` where the process lacks the privilege to ask; then the next call asks again.
 */
export async function features(): Promise<Features> {
  return withRootless(await kernelFeatures(), await hold(askRootless()));
}

/** `features`, on the calling thread. */
export function featuresSync(): Features {
  return withRootless(kernelFeaturesSync(), holdSync(askRootless()));
}
