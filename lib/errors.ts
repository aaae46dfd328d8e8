/** The errors that the library throws: OverlayError, and Node's own argument errors. */
import { inspect } from 'node:util';
import { describeErrno, ENFILE, ENOENT, isOutOfDescriptors } from './errnos.js';
import type { Holders } from './holder.js';
import { type Reason, todoOf } from './reasons.js';
import { argument, render, sentence, type Text, text } from './text.js';

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
  what: Text;
  /** One sentence that says what to do, without the full stop. Default: that of the reason. */
  hint?: Text | undefined;
  syscall?: string | undefined;
  path?: string | undefined;
  dest?: string | undefined;
  kernel?: readonly string[] | undefined;
  holders?: Holders | undefined;
  conflicts?: readonly Conflict[] | undefined;
  /** A sentence about what the call made and could not take back. */
  leftover?: string | undefined;
}

/** The parts of an error's message, for interfaces that spell options in another way. */
export interface ErrorTexts {
  /** The message without the hint, as it stands. */
  readonly message: Text;
  /** A sentence without its full stop. */
  readonly hint?: Text;
}

const texts = new WeakMap<object, ErrorTexts>();

/** Returns the texts of an error of this library. */
export const textsOf = (error: object): ErrorTexts | undefined => texts.get(error);

/** Remembers the parts of an error's message. */
export function withTexts<E extends Error>(error: E, message: Text, hint?: Text): E {
  texts.set(error, hint === undefined ? { message } : { message, hint });
  return error;
}

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
    const problem = text`${code}: ${fields.what}.`;
    super(`${render(problem)} ${sentence(hint)}${left}`, options);
    withTexts(this, text`${problem}${left}`, hint);
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

export interface RemediableFields<C extends string> {
  readonly code: C;
  /** One sentence without the full stop. */
  readonly what: string;
  /** The remedy, in the same form. */
  readonly hint: Text;
  readonly path?: string | undefined;
}

/** An error of one part of the library: its code is the part's own, its message says what is wrong and what to do. */
export abstract class RemediableError<C extends string> extends Error {
  readonly code: C;
  /** The file or directory that the error is about. */
  declare readonly path?: string;
  /** The remedy, in one sentence. */
  readonly hint: string;

  constructor({ code, what, hint, path }: RemediableFields<C>, options?: ErrorOptions) {
    super(`${sentence(what)} ${sentence(hint)}`, options);
    withTexts(this, sentence(what), hint);
    this.code = code;
    this.hint = sentence(hint);
    if (path !== undefined) this.path = path;
  }
}

/** Returns the error for a file of /proc that does not exist. */
export function missingProc(file: string): OverlayError {
  const what = `${file} does not exist: /proc is not mounted`;
  return new OverlayError({ errno: ENOENT, reason: 'proc-missing', what, path: file });
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
      what: `no file descriptor is left ${whose} to load a part of this library`,
      hint: 'raise the limit (ulimit -n), or do less at once',
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

/** The stack of the error begins at the caller of `maker`. */
function argumentError<E extends Error>(
  type: new (message: string) => E,
  message: Text,
  code: string,
  maker: (...args: never[]) => E,
): E {
  const error = withTexts(withCode(new type(render(message)), code), message);
  Error.captureStackTrace(error, maker);
  return error;
}

/** `expected` completes "must be …". */
export function invalidArgumentType(name: string, expected: string, value: unknown): TypeError {
  const message = text`${argument(name)} must be ${expected}. Received ${showValue(value)}`;
  return argumentError(TypeError, message, 'ERR_INVALID_ARG_TYPE', invalidArgumentType);
}

/** `problem` begins with its verb: "must be one of …". */
export function invalidArgumentValue(name: string, value: unknown, problem: Text): TypeError {
  const message = text`${argument(name)} ${problem}. Received ${showValue(value)}`;
  return argumentError(TypeError, message, 'ERR_INVALID_ARG_VALUE', invalidArgumentValue);
}

export function outOfRange(name: string, expected: Text, received: string): RangeError {
  const message = text`${argument(name)} must be ${expected}. Received ${received}`;
  return argumentError(RangeError, message, 'ERR_OUT_OF_RANGE', outOfRange);
}

/** Returns the error for options that cannot be combined, or for one that lacks another. */
export function conflictingOptions(what: Text, hint: Text): TypeError & { reason: Reason; hint: string } {
  const error = withCode(new TypeError(`${sentence(what)} ${sentence(hint)}`), 'ERR_INVALID_ARG_VALUE');
  withTexts(error, text`${what}.`, hint);
  return Object.assign(error, { reason: 'conflicting-options' as const, hint: sentence(hint) });
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
  const left = undoErrno === 0 ? '' : `; its effects could not be undone (${describeErrno(undoErrno)[0]})`;
  const error = withCode(new Error(`The operation was aborted${left}`, { cause: signal.reason }), 'ABORT_ERR');
  error.name = 'AbortError';
  return error;
}
