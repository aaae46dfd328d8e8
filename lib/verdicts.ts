/**
 * The explanations that calls share. Most errnos mean the same in each call: the table below explains them. A caller adds
 * only the rules of its own. Pure.
 */
import * as e from './errnos.js';
import { OverlayError, type OverlayErrorFields } from './errors.js';
import { type Path, quotePath } from './paths.js';

export type Verdict = Pick<OverlayErrorFields, 'reason' | 'what' | 'hint'>;

/** A call that has failed, in words. */
export interface Failed {
  /** The path of the call: `the target '/m'`. */
  readonly name?: string;
  /** The purpose of the call, as a clause after "to": `unmount '/m'`. */
  readonly purpose: string;
  readonly syscall?: string | undefined;
  /** The reason for a path that does not exist. */
  readonly missing?: 'path-missing' | 'target-missing';
}

type Explain = (failed: Failed & { readonly name: string }) => Verdict;

const outOfDescriptors =
  (whose: string): Explain =>
  ({ purpose }) => ({ reason: 'out-of-descriptors', what: `no file descriptor is left ${whose} to ${purpose}` });

const cannotReach =
  (errno: number): Explain =>
  ({ name }) => ({ reason: 'path-inaccessible', what: `${name} cannot be reached: ${e.unreachable[errno]}` });

/** Errnos that report a shortage. They say nothing about the request. */
const shortages: Readonly<Record<number, Explain>> = {
  [e.EMFILE]: outOfDescriptors('in the process'),
  [e.ENFILE]: outOfDescriptors('on the machine'),
  [e.EAGAIN]: ({ purpose }) => ({ reason: 'out-of-threads', what: `no process could be started to ${purpose}` }),
  [e.ENOMEM]: ({ purpose }) => ({ reason: 'out-of-memory', what: `the kernel has no memory to ${purpose}` }),
};

const meanings: Readonly<Record<number, Explain>> = {
  ...shortages,
  [e.ENOENT]: ({ name, missing = 'path-missing' }) => ({
    reason: missing,
    what: `${name} does not exist`,
    // The usual hint for a target names an option that only mounts of overlays have.
    hint: 'check the path',
  }),
  [e.ENOTDIR]: cannotReach(e.ENOTDIR),
  [e.EACCES]: cannotReach(e.EACCES),
  [e.ELOOP]: cannotReach(e.ELOOP),
  [e.ENAMETOOLONG]: cannotReach(e.ENAMETOOLONG),
  [e.EROFS]: ({ name }) => ({ reason: 'read-only', what: `the file system of ${name} is read-only` }),
  [e.ENOSPC]: ({ purpose }) => ({ reason: 'out-of-space', what: `no space is left to ${purpose}` }),
  [e.EDQUOT]: ({ purpose }) => ({ reason: 'out-of-space', what: `a quota leaves no space to ${purpose}` }),
  [e.EFBIG]: ({ purpose }) => ({
    reason: 'out-of-space',
    what: `a file would be larger than this process, or the file system, allows, on the attempt to ${purpose}`,
    hint: 'raise the limit of the process (ulimit -f), or use another file system',
  }),
  [e.EMLINK]: ({ name }) => ({
    reason: 'too-many-subdirectories',
    what: `${name} cannot be created: its parent holds as many subdirectories as its file system allows`,
  }),
  [e.EIO]: ({ purpose }) => ({
    reason: 'io-error',
    what: `the file system reports an I/O error on the attempt to ${purpose}`,
  }),
  [e.EUCLEAN]: ({ purpose }) => ({
    reason: 'io-error',
    what: `the file system reports that it is damaged, on the attempt to ${purpose}`,
  }),
  [e.EPERM]: ({ purpose }) => ({ reason: 'no-privilege', what: `this process may not ${purpose}` }),
  [e.ENOSYS]: ({ syscall, purpose }) => ({
    reason: 'option-unsupported',
    what: `this process cannot ${purpose}: this kernel lacks ${syscall === undefined ? 'a system call' : `${syscall}(2)`}, or a seccomp filter refuses it`,
    hint: 'use a newer kernel, or allow the call in the profile of the container or service',
  }),
};

/** Explains an errno as most calls mean it. */
export function explainErrno(errno: number, failed: Failed): Verdict {
  const { name = 'the path', purpose } = failed;
  const verdict = meanings[errno]?.({ ...failed, name });
  return verdict ?? { reason: 'unexplained', what: `the kernel refused to ${purpose}` };
}

/** Explains an error of node:fs. Returns any other error as it is. */
export function explainSystemError(error: unknown, purpose: string, hint?: string): unknown {
  const { errno, syscall, path } = error as NodeJS.ErrnoException;
  if (error instanceof OverlayError || errno === undefined) return error;
  const name = path === undefined ? undefined : quotePath(path);
  const verdict = explainErrno(-errno, { purpose, syscall, ...(name !== undefined && { name }) });
  return new OverlayError({ errno: -errno, syscall, path, ...verdict, ...(hint !== undefined && { hint }) });
}

/** Returns the error for an errno that reports a shortage, else undefined. */
export function explainShortage(errno: number, purpose: string): OverlayError | undefined {
  const verdict = shortages[errno]?.({ purpose, name: '' });
  return verdict && new OverlayError({ errno, ...verdict });
}

/** The verdict for a path at which another mount, or none, has taken the place of the library's own. */
export const replacedMount = (path: Path): Verdict => ({
  reason: 'not-mounted',
  what: `the mount at ${quotePath(path)} is no longer the mount that was made here`,
});

/** The verdict for a detached mount whose file descriptor is closed. */
export const closedMount = (path: Path): Verdict => ({
  reason: 'not-mounted',
  what: `the detached mount ${quotePath(path)} has been unmounted`,
  hint: 'mount it again',
});

/** The explanation of the guard `target-is-reserved`. */
export const reservedTarget = (target: Path): Verdict => ({
  reason: 'mount-busy',
  what: `another call of this process is mounting at the target ${quotePath(target)}`,
  hint: 'await that call first',
});
