/** Selects the mount namespace that a call works in. */
import { existsSync } from 'node:fs';
import { isDescriptor } from '../arguments.js';
import * as e from '../errnos.js';
import { invalidArgumentType, invalidArgumentValue, missingProc, OverlayError } from '../errors.js';
import { type Call, calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import type { StepFailure } from '../kernel/perform.js';
import type { Descriptor, Plan } from '../kernel/plan.js';
import { isAbsolute, type Path, pathString, quotePath, toAbsolute, toPath } from '../paths.js';
import { option, text } from '../text.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import { OWN_MOUNT_NAMESPACE } from './user-namespace.js';

/** A namespace in the form that plans use. */
export type Namespace = Path | number;

/**
 * Checks the option and returns it in the form that plans use; undefined, for the calling thread's namespace, when left
 * out.
 */
export function checkNamespace(value: unknown, name = 'namespace'): Namespace | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'number') return toAbsolute(toPath(value, name));
  if (isDescriptor(value)) return value;
  throw invalidArgumentType(name, 'a file descriptor, or the path of a mount namespace', value);
}

/** Returns a target in the form that plans use. In another namespace, the caller's working directory has no meaning. */
export function toTarget(value: unknown, namespace: Namespace | undefined): Path {
  const path = toPath(value, 'target');
  if (namespace === undefined) return toAbsolute(path);
  if (isAbsolute(path)) return path;
  throw invalidArgumentValue('target', value, text`must be an absolute path when ${option('namespace')} is given`);
}

const subjectOf = (namespace: Namespace) =>
  ({ role: 'namespace', path: typeof namespace === 'number' ? `${namespace}` : namespace }) as const;

/**
 * Adds a step that opens the namespace. The file descriptor ends with the plan, or belongs to the caller when `isKept`
 * is set.
 */
export function addOpen(plan: Plan, namespace: Namespace, isKept: boolean): Descriptor {
  const path = typeof namespace === 'number' ? `/proc/thread-self/fd/${namespace}` : namespace;
  const options = { subject: subjectOf(namespace), ...(isKept && { keep: true, output: 0 }) };
  // A path that is not a namespace may be a FIFO, and opening it would block.
  return plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_CLOEXEC | k.O_NONBLOCK, 0], options);
}

/**
 * Makes the following steps work in another namespace: its root becomes their root, and they change its mounts. Threads
 * share their root and working directory, so the plan gets a thread of its own, which ends with it. File descriptors
 * stay valid.
 *
 * @returns the file descriptor by which the plan joins the namespace; it belongs to the caller when `isKept` is set
 */
export function addJoin(plan: Plan, namespace: Namespace, isKept = false): Descriptor {
  plan.isOnOwnThread = true;
  const isOpen = typeof namespace === 'number' && !isKept;
  const descriptor: Descriptor = isOpen ? namespace : addOpen(plan, namespace, isKept);
  plan.add(calls.unshare, [k.CLONE_FS]);
  plan.add(calls.setns, [descriptor, k.CLONE_NEWNS], { undo: true, subject: subjectOf(namespace) });
  return descriptor;
}

/**
 * The explanation of an error at the limit on namespaces. A detached mount is in a namespace of its own, so it counts
 * too.
 */
export const outOfNamespaces = {
  reason: 'out-of-namespaces',
  what: 'the limit of mount namespaces in /proc/sys/user/max_mnt_namespaces is reached; each detached mount has a mount namespace of its own',
} as const;

const joining: ReadonlySet<Call> = new Set([calls.openat2, calls.setns]);

/** Returns true when the file is missing because /proc is not mounted. */
const isInMissingProc = (path: string): boolean =>
  (path.startsWith('/proc/') || /^\d+$/.test(path)) && !existsSync(OWN_MOUNT_NAMESPACE);

/** Explains a namespace that is not found. Process 1 always exists: /proc that lacks it has the mount option `hidepid`. */
const missing = (path: string, shown: string): Verdict =>
  /^\/proc\/\d/.test(path) && !existsSync('/proc/1')
    ? {
        reason: 'namespace-missing',
        what: `${shown} does not exist, or /proc hides its process from this user (hidepid)`,
        hint: 'name the namespace of a running process of this user, run as root, or mount /proc without hidepid',
      }
    : { reason: 'namespace-missing', what: `${shown} does not exist` };

/** Returns the error when the failed step is the one that joins a namespace. */
export function explainJoin({ step, errno }: StepFailure): OverlayError | undefined {
  const subject = step?.options.subject;
  if (step === undefined || subject?.role !== 'namespace' || !joining.has(step.call)) return undefined;
  const path = pathString(subject.path);
  if (errno === e.ENOENT && isInMissingProc(path))
    return missingProc(path.startsWith('/') ? path : '/proc/thread-self/fd');
  const shown = /^\d+$/.test(path) ? `the namespace of descriptor ${path}` : `the namespace ${quotePath(subject.path)}`;
  const filtered = explainFiltered({ step, errno });
  const verdict: Verdict =
    filtered !== undefined
      ? filtered
      : errno === e.EPERM || errno === e.EACCES
        ? { reason: 'namespace-denied', what: `this process may not join ${shown}` }
        : errno === e.EINVAL || errno === e.EBADF
          ? { reason: 'namespace-missing', what: `${shown} is not a mount namespace` }
          : e.isOutOfDescriptors(errno)
            ? explainErrno(errno, { purpose: `open ${shown}` })
            : missing(path, shown);
  return new OverlayError({ errno, syscall: step.call === calls.setns ? 'setns' : 'open', path, ...verdict });
}
