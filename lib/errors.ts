/** The errors that the library throws: OverlayError, and Node's own argument errors. */
import { inspect } from 'node:util';
import { describeErrno, EAGAIN, ENFILE, ENOENT, ENOMEM, isOutOfDescriptors } from './errnos.js';
import type { Holders } from './holder.js';
import { type Reason, todoOf } from './reasons.js';

/** A path that both sides of a merge have changed. */
export interface Conflict {
  /** Below the directory; text, in which bytes that are not UTF-8 are replaced. */
  readonly path: string;
  /** The change that the upper has: the path is deleted, or has other contents or attributes. */
  readonly ours: 'deleted' | 'changed';
  /** The change that others made in the directory since the baseline. */
  readonly theirs: 'removed' | 'changed';
}

export interface OverlayErrorFields {
  /** A positive number. */
  errno: number;
  reason: Reason;
  /** One sentence that says what is wrong, without the full stop. */
  what: string;
  /** One sentence that says what to do. Default: that of the reason. */
  hint?: string | undefined;
  syscall?: string | undefined;
  path?: string | undefined;
  dest?: string | undefined;
  kernel?: readonly string[] | undefined;
  holders?: Holders | undefined;
  conflicts?: readonly Conflict[] | undefined;
  /** A sentence about what the call made and could not take back. */
  leftover?: string | undefined;
}

const sentence = (text: string): string => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

/**
 * A mount, an unmount or a whiteout that failed. It has the shape of Node's own system errors, with the reason in
 * words.
 */
export class OverlayError extends Error {
  /** The errno's name: `'EBUSY'`. */
  readonly code: string;
  /** The errno, negative as in node:fs. */
  readonly errno: number;
  /** The system call that failed; absent if the library refuses before the kernel does. */
  declare readonly syscall?: string;
  /** The path that the error is about. */
  declare readonly path?: string;
  /** The second path, for a call with two paths. */
  declare readonly dest?: string;
  /** The reason, as a word from a closed set. */
  readonly reason: Reason;
  /** The remedy, in one sentence. */
  readonly hint: string;
  /** The kernel's messages about it, a line each; usually empty. */
  readonly kernel: readonly string[];
  /** The holders of a mount that an unmount found busy, as far as a search of half a second finds them. */
  declare readonly holders?: Holders;
  /** The conflicts of a merge, all of them. */
  declare readonly conflicts?: readonly Conflict[];

  constructor(fields: OverlayErrorFields, options?: ErrorOptions) {
    const [code] = describeErrno(fields.errno);
    const hint = fields.hint ?? todoOf(fields.reason);
    const left = fields.leftover === undefined ? '' : ` ${sentence(fields.leftover)}`;
    super(`${code}: ${fields.what}. ${sentence(hint)}${left}`, options);
    this.code = code;
    this.errno = -fields.errno;
    if (fields.syscall !== undefined) this.syscall = fields.syscall;
    if (fields.path !== undefined) this.path = fields.path;
    if (fields.dest !== undefined) this.dest = fields.dest;
    this.reason = fields.reason;
    this.hint = sentence(hint);
    this.kernel = fields.kernel ?? [];
    if (fields.holders !== undefined) this.holders = fields.holders;
    if (fields.conflicts !== undefined) this.conflicts = fields.conflicts;
  }

  override get name(): string {
    return 'OverlayError';
  }
}

/** Returns the error for a file of /proc that does not exist. */
export function missingProc(file: string): OverlayError {
  const what = `there is no ${file}: /proc is not mounted`;
  return new OverlayError({ errno: ENOENT, reason: 'proc-missing', what, path: file });
}

/** Returns an error if the errno reports a mere limit, else undefined. `purpose` is what failed: "open it". */
export function explainShortage(errno: number, purpose: string): OverlayError | undefined {
  if (isOutOfDescriptors(errno)) {
    const whose = errno === ENFILE ? 'on the machine' : 'in the process';
    const what = `no descriptor is left ${whose} to ${purpose}`;
    return new OverlayError({ errno, reason: 'out-of-descriptors', what });
  }
  if (errno === EAGAIN) {
    return new OverlayError({ errno, reason: 'out-of-threads', what: `no process could be started to ${purpose}` });
  }
  if (errno === ENOMEM) {
    return new OverlayError({ errno, reason: 'out-of-memory', what: `the kernel has no memory to ${purpose}` });
  }
  return undefined;
}

/**
 * The error for a part of this library that could not be loaded. The hint is spelt out here: reasons.ts, which has the
 * usual one, is in that part.
 */
export function explainUnloaded(error: unknown): unknown {
  const { errno = 0, path } = error as NodeJS.ErrnoException;
  if (!isOutOfDescriptors(-errno)) return error;
  const whose = -errno === ENFILE ? 'on the machine' : 'in the process';
  return new OverlayError(
    {
      errno: -errno,
      reason: 'out-of-descriptors',
      what: `no descriptor is left ${whose} to load a part of this library`,
      hint: 'raise the limit (ulimit -n) or do less at once',
      syscall: 'open',
      path,
    },
    { cause: error },
  );
}

/** A caller's value in a message, in one line. */
export function showValue(value: unknown): string {
  // Only `compact: true` keeps a long list out of columns; a stack still has lines of its own.
  const layout = { depth: 0, compact: true, breakLength: Number.POSITIVE_INFINITY, maxStringLength: 120 };
  const text = inspect(value, layout).replace(/\s*\n\s*/g, ' ');
  return text.length > 160 ? `${text.slice(0, 157)}...` : text;
}

function withCode<E extends Error>(error: E, code: string): E & { code: string } {
  return Object.assign(error, { code });
}

/** `expected` completes "must be …". */
export function invalidArgumentType(name: string, expected: string, value: unknown): TypeError {
  return withCode(
    new TypeError(`The argument "${name}" must be ${expected}. Received ${showValue(value)}`),
    'ERR_INVALID_ARG_TYPE',
  );
}

/** `problem` begins with its verb: "must be one of …". */
export function invalidArgumentValue(name: string, value: unknown, problem: string): TypeError {
  return withCode(
    new TypeError(`The argument "${name}" ${problem}. Received ${showValue(value)}`),
    'ERR_INVALID_ARG_VALUE',
  );
}

/** Returns the error for options that cannot be combined, or for one that lacks another. */
export function conflictingOptions(what: string, hint: string): TypeError & { reason: Reason; hint: string } {
  const error = withCode(new TypeError(`${sentence(what)} ${sentence(hint)}`), 'ERR_INVALID_ARG_VALUE');
  return Object.assign(error, { reason: 'conflicting-options' as const, hint: sentence(hint) });
}

export function outOfRange(name: string, expected: string, received: string): RangeError {
  return withCode(
    new RangeError(`The argument "${name}" must be ${expected}. Received ${received}`),
    'ERR_OUT_OF_RANGE',
  );
}

/** Returns the error that Node throws for a function that a platform lacks. */
export function platformError(): TypeError {
  return withCode(
    new TypeError(
      `overlayfs works on Linux only: OverlayFS is a file system of the Linux kernel. This is ${process.platform}`,
    ),
    'ERR_FEATURE_UNAVAILABLE_ON_PLATFORM',
  );
}

/** Returns the error with which node:fs rejects when its signal aborts. */
export function abortError(signal: AbortSignal, undoErrno = 0): Error {
  const left = undoErrno === 0 ? '' : `; what it had done could not be taken back (${describeErrno(undoErrno)[0]})`;
  const error = withCode(new Error(`The operation was aborted${left}`, { cause: signal.reason }), 'ABORT_ERR');
  error.name = 'AbortError';
  return error;
}
