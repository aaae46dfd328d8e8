/** Mounts without privilege: the namespaces that they are made in, and what the kernel can do there. */
import { describeErrno, EPERM } from '../errnos.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { close } from '../kernel/held.js';
import { addNamespaces, type Namespaces, ownIds } from '../kernel/namespaces.js';
import { type Outputs, perform, performSync, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import {
  type KernelFeatures,
  features as kernelFeatures,
  featuresSync as kernelFeaturesSync,
  questions,
} from './features.js';
import { explainRefusal, type Refusal, readNamespaceSettings } from './refusal.js';

/** Namespaces for one plan. */
export interface Lease {
  readonly namespaces: Namespaces;
  /** When the plan is performed. */
  end(): void;
}

interface Kept {
  readonly user: number;
  readonly mounts: number;
  leases: number;
  timer: NodeJS.Timeout | undefined;
}

const IDLE_MILLISECONDS = 10_000;
let kept: Kept | undefined;

/** Namespaces that outlive the child which makes them, by descriptor; undefined where they cannot be had. */
function keep(): Kept | undefined {
  const plan = new Plan();
  addNamespaces(plan, ownIds());
  const open = (name: string) =>
    plan.stepOf(plan.add(calls.openat2, [k.AT_FDCWD, `/proc/self/ns/${name}`, k.O_CLOEXEC], { keep: true, output: 0 }));
  const [user, mounts] = [open('user'), open('mnt')];
  const outputs = performSync(plan);
  if (outputs instanceof StepFailure) return undefined;
  return { user: outputs.result(user), mounts: outputs.result(mounts), leases: 0, timer: undefined };
}

/** They hold copies of all mounts that there were: not for longer than they are used. */
function letGoLater(of: Kept): void {
  of.timer = setTimeout(() => {
    if (kept === of) kept = undefined;
    for (const descriptor of [of.user, of.mounts]) close({ descriptor });
  }, IDLE_MILLISECONDS);
  of.timer.unref();
}

/** The namespaces for a plan: its own, or those that are kept. */
export function lease(mode: boolean | 'keep' | 'auto'): Lease {
  const own = { namespaces: ownIds(), end: () => {} };
  if (mode !== 'keep') return own;
  kept ??= keep();
  const current = kept;
  // What forbids them shows, and is explained, when the plan tries to make its own.
  if (current === undefined) return own;
  clearTimeout(current.timer);
  current.leases++;
  return {
    namespaces: current,
    end() {
      current.leases--;
      if (current.leases === 0) letGoLater(current);
    },
  };
}

interface RootlessAnswers {
  /** What the kernel can do in a user namespace. */
  readonly record: KernelFeatures;
  readonly refusal: Refusal | undefined;
}

/** The questions as they are asked in a user namespace, and whether there an overlay may be made. */
function rootlessQuestions(): { plan: Plan; read: (outcome: Outputs | StepFailure) => RootlessAnswers } {
  const plan = new Plan();
  addNamespaces(plan, ownIds());
  const { read } = questions(plan);
  const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC], { tolerate: 'any', output: 0 });
  // Without layers: whoever may make overlays is told what is missing.
  const create = [context, k.FSCONFIG_CMD_CREATE, null, null];
  const made = plan.stepOf(plan.add(calls.fsconfig, create, { tolerate: 'any', output: 0 }));
  const opened = plan.stepOf(context);
  return {
    plan,
    read(outcome) {
      if (!(outcome instanceof StepFailure)) {
        const record = { ...read(outcome), userNamespace: true };
        const step = outcome.result(opened) < 0 ? opened : made;
        const failure = { step, errno: -outcome.result(step), plan };
        return { record, refusal: explainRefusal(failure, readNamespaceSettings()) };
      }
      // Nothing is known then. A mount fails in its turn, and is explained.
      const nothing = { step: -1, errno: EPERM, undoErrno: 0, cancelled: false, log: [] };
      const record = { ...read(new StepFailure(plan, nothing)), userNamespace: true };
      const unknown = { what: `the kernel refuses it (${describeErrno(outcome.errno)[0]})`, hint: 'look at dmesg' };
      return { record, refusal: explainRefusal(outcome, readNamespaceSettings()) ?? unknown };
    },
  };
}

let remembered: RootlessAnswers | undefined;

/** Unless it is forbidden, which can change. */
function remember(answers: RootlessAnswers): RootlessAnswers {
  if (answers.refusal === undefined) remembered = answers;
  return answers;
}

async function ask(): Promise<RootlessAnswers> {
  if (remembered !== undefined) return remembered;
  const { plan, read } = rootlessQuestions();
  return remember(read(await perform(plan)));
}

function askSync(): RootlessAnswers {
  if (remembered !== undefined) return remembered;
  const { plan, read } = rootlessQuestions();
  return remember(read(performSync(plan)));
}

/** What the kernel can do in a user namespace: a given record as it is there, or the kernel's own answers. */
export function rootlessRecord(record?: KernelFeatures): KernelFeatures {
  return record === undefined ? askSync().record : { ...record, userNamespace: true };
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
  return withRootless(await kernelFeatures(), await ask());
}

/** `features`, on the calling thread. */
export function featuresSync(): Features {
  return withRootless(kernelFeaturesSync(), askSync());
}
