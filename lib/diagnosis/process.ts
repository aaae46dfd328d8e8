/** Rules about the process: its permissions and its remaining resources. */
import * as e from '../errnos.js';
import type { KernelFeatures } from '../features/record.js';
import { calls } from '../kernel/calls.js';
import type { StepFailure } from '../kernel/perform.js';
import { outOfNamespaces } from '../namespaces/mount-namespace.js';
import { pathString, quotePath } from '../paths.js';
import { todoOf } from '../reasons.js';
import { explainRefusal, forbiddenBy } from '../rootless/refusal.js';
import { either, option, text } from '../text.js';
import { explainErrno } from '../verdicts.js';
import {
  CAP_DAC_OVERRIDE,
  CAP_SYS_ADMIN,
  type Cause,
  hasCapability,
  isCreation,
  nameOf,
  pathField,
  place,
  type Rule,
  type Scene,
} from './rule.js';

const outOfDescriptors: Rule = {
  when: ({ errno }) => e.isOutOfDescriptors(errno),
  find({ options, failure }) {
    const subject = failure?.step?.options.subject;
    const purpose = subject === undefined ? 'make the mount' : `open ${nameOf(subject, options)}`;
    const path = subject?.path ?? options.target;
    return { ...explainErrno(failure?.errno ?? e.EMFILE, { purpose }), ...pathField(path) };
  },
};

const outOfMemory: Rule = {
  when: ({ errno }) => errno === e.ENOMEM,
  find: ({ options }) => ({
    reason: 'out-of-memory',
    what: `the kernel, or the control group of the process, has no memory for the mount${place(options)}`,
  }),
};

/** The limit of namespaces is reached: a detached mount comes with an anonymous mount namespace. */
const noNamespaceLeft: Rule = {
  when: ({ step, errno, plan }) =>
    errno === e.ENOSPC &&
    (step?.call === calls.fsmount ||
      step?.call === calls.open_tree ||
      (step?.call === calls.unshare && !plan.isInChild)),
  find: () => outOfNamespaces,
};

const asksForPrivilege = ({ step }: StepFailure): boolean =>
  step?.call === calls.fsopen || step?.call === calls.mount || step?.call === calls.move_mount;
const isRefusal = (failure: StepFailure): boolean => failure.errno === e.EPERM && asksForPrivilege(failure);

const lacksCapability = ({ facts: { process } }: Scene): boolean => !hasCapability(process, CAP_SYS_ADMIN);

const noPrivilege: Rule = {
  when: (failure) => isRefusal(failure) || (failure.errno === e.EACCES && asksForPrivilege(failure)),
  find(scene) {
    const { options, facts, failure } = scene;
    // Before a mount, a rootless one lacks nothing.
    if (!lacksCapability(scene) || (failure === undefined && options.rootless !== false)) return undefined;
    const where = facts.process.isInUserNamespace ? 'its user namespace' : 'the initial user namespace';
    return {
      errno: e.EPERM,
      reason: 'no-privilege',
      what: `this process may not mount${place(options)}: it lacks CAP_SYS_ADMIN in ${where}`,
      hint: either(
        todoOf('no-privilege'),
        text`mount without a target by ${option('rootless', true)}, which needs neither`,
        text`use ${{ command: 'run' }}, which needs neither`,
      ),
    };
  },
  foresees: true,
};

/** The process may not make the namespaces of a rootless mount. */
const rootlessForbidden: Rule = {
  when: ({ plan }) => plan.isInChild,
  find({ facts: { namespaces }, failure }) {
    const refusal = namespaces && failure && explainRefusal(failure, namespaces);
    return refusal && forbiddenBy(refusal);
  },
};

const confined: Rule = {
  when: (failure) => (failure.errno === e.EACCES || failure.errno === e.EPERM) && asksForPrivilege(failure),
  find({ options, facts: { process }, failure }) {
    if (process.label === undefined || (failure?.errno === e.EPERM && process.hasSeccompFilter)) return undefined;
    return {
      reason: 'lsm-denied',
      what: `a security module does not let this process mount${place(options)}: the process runs as '${process.label}'`,
    };
  },
};

const filtered: Rule = {
  when: (failure) => isRefusal(failure) || (failure.errno === e.ENOSYS && asksForPrivilege(failure)),
  find({ options, facts: { process }, failure }) {
    if (!process.hasSeccompFilter) return undefined;
    const call = failure?.step?.call.name ?? 'mount';
    return {
      reason: 'seccomp-denied',
      what: `this process may not mount${place(options)}: it has CAP_SYS_ADMIN, but its seccomp filter refuses ${call}(2)`,
    };
  },
};

/** The filter refuses the very call that has failed, whatever else its errno may mean. */
const filteredForSure: Rule = {
  when: ({ errno }) => errno === e.EPERM || errno === e.ENOSYS || errno === e.EACCES,
  find({ options, facts: { process } }) {
    const call = process.filteredCall;
    return call === undefined
      ? undefined
      : {
          reason: 'seccomp-denied',
          what: `this process may not mount${place(options)}: it has CAP_SYS_ADMIN, but its seccomp filter refuses ${call}(2)`,
          hint: `allow ${call}(2) in the profile of the container or service`,
        };
  },
};

/** /proc is missing. mount(2) takes the target through /proc/self/fd, and only /proc shows the permissions. */
const procMissing: Rule = {
  when: ({ step, errno }) => step?.call === calls.mount && errno === e.ENOENT,
  find({ options, facts: { mountCount, paths } }) {
    if (mountCount > 0 || paths.length === 0 || paths.some(({ found }) => found.errno !== 0)) return undefined;
    return {
      reason: 'proc-missing',
      what: `the mount${place(options)} needs mount(2), because fsopen(2) is refused or missing, and mount(2) needs /proc, which is not mounted`,
    };
  },
};

/**
 * A security module without a label has refused the mount: the process has everything that the kernel itself requires.
 * A process that may make a file system context may also attach the mount, as far as namespaces are concerned.
 */
const sandboxed: Rule = {
  when: isRefusal,
  find({ options, facts: { process, mountCount }, failure }) {
    const call = failure?.step?.call;
    // Without /proc the library knows nothing about the process.
    if (mountCount === 0) return undefined;
    if (call !== calls.move_mount && process.isInUserNamespace) return undefined;
    return {
      reason: 'lsm-denied',
      what: `a security module does not let this process mount${place(options)}: the process has CAP_SYS_ADMIN, no seccomp filter and no label, and ${call?.name ?? 'mount'}(2) is refused, as in a Landlock sandbox`,
      hint: 'mount before the process is confined: no rule of a Landlock sandbox (landlock(7)) allows mounts',
    };
  },
};

const namespaceForeign: Rule = {
  when: isRefusal,
  find({ options, facts: { process } }) {
    if (!process.isInUserNamespace) return undefined;
    return {
      reason: 'namespace-foreign',
      what: `this process may not mount${place(options)}: its mount namespace does not belong to its user namespace`,
    };
  },
};

const refused: Rule = {
  when: isRefusal,
  find: ({ options }) => ({
    reason: 'no-privilege',
    what: `this process may not mount${place(options)}`,
  }),
};

const NO_OVERLAY = 'this kernel has no overlay file system';

const noOverlay: Rule = {
  when: ({ errno }) => errno === e.ENODEV,
  find: () => ({ reason: 'overlay-unavailable', what: NO_OVERLAY }),
};

/** The kernel makes its files in the workdir as the mounter, in a directory of its own with mode 000. */
const cannotOverride: Rule = {
  when: (failure) => isCreation(failure) && failure.errno === e.EACCES,
  find({ options, facts: { process } }) {
    if (options.workdir === undefined || hasCapability(process, CAP_DAC_OVERRIDE)) return undefined;
    return {
      reason: 'capability-missing',
      what: `this process lacks CAP_DAC_OVERRIDE, which it needs to use the kernel's directory in the workdir ${quotePath(options.workdir)}, whose mode is 000`,
      path: pathString(options.workdir),
    };
  },
};

/** A layer is in a mount that no table shows, such as another rootless mount. */
const layerDetached: Rule = {
  when: (failure) => failure.plan.isInChild && isCreation(failure) && failure.errno === e.EPERM,
  find({ options, facts: { paths, mountCount } }) {
    const layer = paths.find(
      ({ subject, found, mount }) => subject.role !== 'target' && found.errno === 0 && mount === undefined,
    );
    if (layer === undefined || mountCount === 0) return undefined;
    return {
      reason: 'permission-denied',
      what: `${nameOf(layer.subject, options)} is in a detached mount, which may belong to another user namespace, as a rootless mount does`,
      hint: 'name the layers of that mount instead',
      path: pathString(layer.subject.path),
    };
  },
};

const notAllowed: Rule = {
  when: (failure) => isCreation(failure) && (failure.errno === e.EPERM || failure.errno === e.EACCES),
  find({ options, facts: { process } }) {
    const user = process.isInUserNamespace ? ', in a user namespace,' : '';
    const since = process.isInUserNamespace ? '; overlays in user namespaces need Linux 5.11' : '';
    return {
      reason: 'permission-denied',
      what: `this process${user} may not make the mount${place(options)}: a layer, or an option, needs more privilege`,
      hint: `run it with CAP_SYS_ADMIN and CAP_DAC_OVERRIDE in the initial user namespace, or leave out the options that need trusted.* attributes${since}`,
    };
  },
};

export const processRules: readonly Rule[] = [
  filteredForSure,
  outOfDescriptors,
  outOfMemory,
  noNamespaceLeft,
  rootlessForbidden,
  noPrivilege,
  confined,
  filtered,
  sandboxed,
  namespaceForeign,
  refused,
  noOverlay,
  procMissing,
];

/** Rules about refusals that no better rule explains. */
/** A call of which the rules above say nothing. */
const outOfSpace: Rule = {
  when: ({ errno }) => errno === e.ENOSPC || errno === e.EDQUOT,
  find: ({ options, failure }) => ({
    ...explainErrno(failure?.errno ?? e.ENOSPC, { purpose: `make the mount${place(options)}` }),
    ...pathField(options.target),
  }),
};

export const lastProcessRules: readonly Rule[] = [cannotOverride, layerDetached, notAllowed, outOfSpace];

/** Explains why this process cannot mount at all, if the probes have shown that it cannot. */
export function refusalOfProcess(
  scene: Scene,
  { mayMount, overlay }: KernelFeatures,
): (Cause & { readonly errno: number }) | undefined {
  if (overlay === false) return { errno: e.ENODEV, reason: 'overlay-unavailable', what: NO_OVERLAY };
  if (mayMount !== false || scene.options.rootless !== false) return undefined;
  for (const rule of [noPrivilege, filtered, namespaceForeign, confined, refused]) {
    const verdict = rule.find(scene);
    if (verdict !== undefined) return { errno: e.EPERM, ...verdict };
  }
  return undefined;
}
