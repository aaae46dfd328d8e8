/** Mount namespaces: selects the one that a call works in, and creates private ones that a file descriptor holds. */
import { existsSync } from 'node:fs';
import { isDescriptor } from '../arguments.js';
import * as e from '../errnos.js';
import { invalidArgumentType, invalidArgumentValue, missingProc, OverlayError } from '../errors.js';
import { type Call, calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { systemCallOf } from '../kernel/format.js';
import { close, closeLater, closeWith, type Held } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan } from '../kernel/plan.js';
import { ask, run, runSync, type Task } from '../kernel/task.js';
import { isAbsolute, type Path, type PathLike, pathString, quotePath, toAbsolute, toPath } from '../paths.js';
import { option, text } from '../text.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import { OWN_MOUNT_NAMESPACE } from './user-namespace.js';

/**
 * A mount namespace: its path (`/proc/PID/ns/mnt`, or a file that it is bound to), a file descriptor of it, or an
 * object from `createNamespace`.
 */
export type NamespaceLike = PathLike | number | MountNamespace;

/** A namespace in the form that plans use. */
export type Namespace = Path | number;

const forgottenText = (descriptor: number): string =>
  `The MountNamespace of descriptor ${descriptor} is closed by garbage collection: close it, or have it disposed of with \`using\``;

/**
 * A separate mount namespace, held only by a file descriptor. Its mounts end with it. Close it, or dispose of it with
 * `using`.
 */
export class MountNamespace {
  readonly #held: Held;

  /** @internal */
  constructor(descriptor: number) {
    this.#held = { descriptor };
    closeWith(this, this.#held, forgottenText);
  }

  /** The file descriptor, for `spawn`'s `stdio` or setns(2); -1 once it is closed. */
  get fd(): number {
    return this.#held.descriptor;
  }

  /** Closes the namespace. Its mounts end, unless a process is in the namespace or something else holds it. */
  close(): void {
    close(this.#held);
  }

  /** Calls `close()` at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Closes the namespace at the end of an `await using` block. It does so on another thread, because ending many mounts
   * takes time.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await closeLater(this.#held);
  }
}

/**
 * Checks the option and returns it in the form that plans use; undefined, for the calling thread's namespace, when left
 * out.
 */
export function checkNamespace(value: unknown, name = 'namespace'): Namespace | undefined {
  if (value === undefined) return undefined;
  const found = value instanceof MountNamespace ? value.fd : value;
  if (typeof found === 'number') {
    if (isDescriptor(found)) return found;
    const expected = value instanceof MountNamespace ? 'a MountNamespace that is not closed' : 'a file descriptor';
    throw invalidArgumentType(name, `${expected}, or the path of a mount namespace`, value);
  }
  return toAbsolute(toPath(found, name));
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

/** Returns the error when the failed step is the one that joins a namespace. */
export function explainJoin({ step, errno }: StepFailure): OverlayError | undefined {
  const subject = step?.options.subject;
  if (step === undefined || subject?.role !== 'namespace' || !joining.has(step.call)) return undefined;
  const path = pathString(subject.path);
  if (errno === e.ENOENT && isInMissingProc(path))
    return missingProc(path.startsWith('/') ? path : '/proc/thread-self/fd');
  const shown = /^\d+$/.test(path) ? `the namespace of descriptor ${path}` : `the namespace ${quotePath(subject.path)}`;
  const verdict: Verdict =
    errno === e.EPERM || errno === e.EACCES
      ? { reason: 'namespace-denied', what: `this process may not join ${shown}` }
      : errno === e.EINVAL || errno === e.EBADF
        ? { reason: 'namespace-missing', what: `${shown} is not a mount namespace` }
        : e.isOutOfDescriptors(errno)
          ? explainErrno(errno, { purpose: `open ${shown}` })
          : { reason: 'namespace-missing', what: `${shown} does not exist` };
  return new OverlayError({ errno, syscall: step.call === calls.setns ? 'setns' : 'open', path, ...verdict });
}

function* creation(): Task<MountNamespace> {
  const plan = new Plan();
  plan.isOnOwnThread = true;
  plan.add(calls.unshare, [k.CLONE_NEWNS]);
  plan.add(calls.mount, [null, '/', null, k.MS_REC | k.MS_PRIVATE, null]);
  const args = [k.AT_FDCWD, OWN_MOUNT_NAMESPACE, k.O_CLOEXEC, 0];
  const made = plan.stepOf(plan.add(calls.openat2, args, { keep: true, output: 0 }));
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return new MountNamespace(outcome.result(made));
  const { errno, step } = outcome;
  if (errno === e.ENOENT) throw missingProc(OWN_MOUNT_NAMESPACE);
  if (errno === e.EINVAL && step?.call === calls.mount) {
    // The namespace could be made, but paths in it would start at a root that the process does not see.
    const what = 'this process is chrooted to a directory that is not a mount point';
    throw new OverlayError({ errno, syscall: 'mount', reason: 'chrooted', what });
  }
  const verdict: Verdict =
    errno === e.EPERM
      ? {
          reason: 'no-privilege',
          what: 'this process may not create a mount namespace: it lacks CAP_SYS_ADMIN in its user namespace',
        }
      : errno === e.ENOSPC
        ? outOfNamespaces
        : explainErrno(errno, { purpose: 'create a mount namespace' });
  throw new OverlayError({ errno, syscall: step && systemCallOf(step), ...verdict });
}

/**
 * Creates a mount namespace as a copy of the calling thread's: unshare(2) with CLONE_NEWNS. All its mounts are private.
 * It is made on a thread that ends with the call. Pass it as `namespace` to mount, bind, unmount and list in it. The
 * time grows with the number of mounts that are copied.
 *
 * @throws {OverlayError} `reason` is `'no-privilege'`, `'out-of-namespaces'`, `'out-of-descriptors'`, `'proc-missing'`
 * or `'chrooted'`
 */
export async function createNamespace(): Promise<MountNamespace> {
  return run(creation());
}

/** The synchronous form of `createNamespace`. */
export function createNamespaceSync(): MountNamespace {
  return runSync(creation());
}
