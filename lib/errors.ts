/** The errors that the library throws: OverlayError, and Node's own argument errors. */
import { inspect } from 'node:util';
import { describeErrno, ENFILE, ENOENT, ENOSYS, isOutOfDescriptors } from './errnos.js';
import type { Holders } from './holder.js';
import { type Reason, todoOf } from './reasons.js';
import { deepStack, startAtCaller } from './stack.js';
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

/**
 * The part that a path or name plays in a call, in the words of its options: an error of several layers tells by it which
 * one is meant.
 */
export type Role =
  | 'lowerdir'
  | 'upperdir'
  | 'workdir'
  | 'datadir'
  | 'target'
  | 'source'
  | 'namespace'
  | 'program'
  | 'snapshot'
  | 'store'
  | 'image'
  | 'blob'
  | 'platform'
  | 'user';

export interface ErrorFields {
  reason: Reason;
  role?: Role | undefined;
  /** One sentence that says what is wrong, without the full stop. */
  what: Text;
  /** One sentence that says what to do, without the full stop. Default: that of the reason. */
  hint?: Text | undefined;
  path?: string | undefined;
}

export interface OverlayErrorFields extends ErrorFields {
  /** A positive number. */
  errno: number;
  syscall?: string | undefined;
  dest?: string | undefined;
  kernel?: readonly string[] | undefined;
  holders?: Holders | undefined;
  conflicts?: readonly Conflict[] | undefined;
  /** A sentence about what the call made and could not take back. */
  leftover?: string | undefined;
}

/** The fields of an error that no errno describes. */
export interface CodedFields<C extends string> extends ErrorFields {
  readonly code: C;
}

/** The parts of an error's message, for interfaces that spell options in another way. */
export interface ErrorTexts {
  /** The message without the hint, as it stands. */
  readonly message: Text;
  /** A sentence without its full stop. */
  readonly hint?: Text;
  /** The sentence that says what is wrong, without the code and the full stop. */
  readonly what?: Text;
}

const texts = new WeakMap<object, ErrorTexts>();

/** Returns the texts of an error of this library. */
export const textsOf = (error: object): ErrorTexts | undefined => texts.get(error);

/** Remembers the parts of an error's message. */
export function withTexts<E extends object>(error: E, given: ErrorTexts): E {
  texts.set(error, given);
  return error;
}

type Explained = Pick<ErrorFields, 'reason' | 'what' | 'hint'>;
let explainDenial: (errno: number) => Explained | undefined = () => undefined;

/**
 * Sets the function that recognizes an errno as the answer of a seccomp filter. A filter's errno says nothing about the
 * request, so its explanation takes the place of any other, for every error of the library.
 */
export function explainDenials(explain: typeof explainDenial): void {
  explainDenial = explain;
}

/** All copies of this package in a program, and all realms, mark their errors by it. */
const MARK = Symbol.for('overlayfs.error');

/** The fields of an error that JSON.stringify writes: all that it has of its own, without the stack and the cause. */
function fieldsOf(error: Error): Record<string, unknown> {
  const { name, message } = error;
  const fields = Object.entries(error).map(([key, value]) => [key, Buffer.isBuffer(value) ? value.toString() : value]);
  return { name, message, ...Object.fromEntries(fields) };
}

/**
 * A call that failed. It has the shape of Node's own system errors, with the reason in words. The errors of snapshots,
 * images and programs are subclasses.
 */
export class OverlayError extends Error {
  /** The errno's name, `'EBUSY'`. Errors that no errno describes have a code of their own, `'ERR_SNAPSHOT_CLOSED'`. */
  readonly code: string;
  /** The errno, negative as in node:fs; absent if none describes the error. */
  declare readonly errno?: number;
  /** The system call that failed; absent if the library refuses before the kernel does. */
  declare readonly syscall?: string;
  /** The path that the error is about. */
  declare readonly path?: string;
  /** The second path, for a call with two paths. */
  declare readonly dest?: string;
  /** The reason, as a word from a set that may grow in a minor release. */
  readonly reason: Reason;
  /** The option or part of the call that the reason is about: of several layers, which one. */
  declare readonly role?: Role;
  /** The remedy, in one sentence. */
  readonly hint: string;
  /** The kernel's messages about it, a line each; absent if there are none. */
  declare readonly kernel?: readonly string[];
  /** The holders of a mount that an unmount found busy, as far as a search of half a second finds them. */
  declare readonly holders?: Holders;
  /** The conflicts of a merge, all of them. */
  declare readonly conflicts?: readonly Conflict[];

  /** Only the library makes these errors. @internal */
  constructor(given: OverlayErrorFields | CodedFields<string>, options?: ErrorOptions) {
    const isOfKernel = 'errno' in given;
    const isNamed = given.reason === 'seccomp-denied' || !isOfKernel;
    const fields = isNamed ? given : { ...given, ...explainDenial(given.errno) };
    const hint = fields.hint ?? todoOf(fields.reason);
    const code = 'errno' in fields ? describeErrno(fields.errno)[0] : fields.code;
    const problem: Text = 'errno' in fields ? text`${code}: ${fields.what}.` : sentence(fields.what);
    const left = 'errno' in fields && fields.leftover !== undefined ? ` ${sentence(fields.leftover)}` : '';
    const restore = deepStack();
    super(`${render(problem)} ${sentence(hint)}${left}`, options);
    startAtCaller(this, restore());
    withTexts(this, { message: text`${problem}${left}`, hint, what: fields.what });
    this.code = code;
    this.reason = fields.reason;
    this.hint = sentence(hint);
    if (fields.role !== undefined) this.role = fields.role;
    if (fields.path !== undefined) this.path = fields.path;
    if (!('errno' in fields)) return;
    this.errno = -fields.errno;
    if (fields.syscall !== undefined) this.syscall = fields.syscall;
    if (fields.dest !== undefined) this.dest = fields.dest;
    if (fields.kernel !== undefined && fields.kernel.length > 0) this.kernel = fields.kernel;
    if (fields.holders !== undefined) this.holders = fields.holders;
    if (fields.conflicts !== undefined) this.conflicts = fields.conflicts;
  }

  /**
   * True for the errors of this library: this class with its subclasses, and the TypeErrors and RangeErrors for wrong
   * arguments, which have `code`, `reason` and `hint` too. It also knows the errors of another copy of the package, and
   * of another realm (node:vm), for which `instanceof` is false.
   */
  static is(error: unknown): error is OverlayError {
    return typeof error === 'object' && error !== null && MARK in error;
  }

  override get name(): string {
    return 'OverlayError';
  }

  /**
   * Returns what one would log: `name`, `message`, and all fields that the error has. It holds no stack, no cause and
   * nothing that JSON lacks, so `JSON.parse(JSON.stringify(error))` has the same fields.
   */
  toJSON(): Record<string, unknown> {
    return fieldsOf(this);
  }
}

// A static block would name the class `_OverlayError` in a bundle.
Object.defineProperty(OverlayError.prototype, MARK, { value: true });

/** A program that did not end with 0, or wrote more than it may. It has the output up to its end. */
export class ProgramError extends OverlayError {
  declare readonly code: 'ERR_PROGRAM_FAILED' | 'ERR_PROGRAM_OUTPUT';
  declare readonly exitCode: number | null;
  declare readonly signal: NodeJS.Signals | null;
  declare readonly timedOut: boolean;
  declare readonly stdout: string | Buffer;
  declare readonly stderr: string | Buffer;

  override get name(): string {
    return 'ProgramError';
  }
}

/** Returns the error for a file of /proc that does not exist. */
export function missingProc(file: string): OverlayError {
  const what = `${file} does not exist: /proc is not mounted`;
  return new OverlayError({ errno: ENOENT, reason: 'proc-missing', what, path: file });
}

/** Explains an error of node:fs about a file of /proc that exists where /proc is mounted. */
export const explainProc = (error: unknown, file: string): unknown =>
  (error as NodeJS.ErrnoException).code === 'ENOENT' ? missingProc(file) : error;

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

/** The fields that errors of wrong arguments have beside those of Node. */
export interface ArgumentFields {
  readonly code: string;
  readonly reason: Reason;
  readonly hint: string;
}

/** Makes an error of Node's class and code, with the reason and the hint that each error of the library has. */
function argumentError<E extends Error>(
  type: new (message: string) => E,
  code: string,
  reason: 'invalid-argument' | 'conflicting-options',
  [problem, hint]: readonly [problem: Text, hint: Text],
): E & ArgumentFields {
  const isOneSentence = reason === 'invalid-argument';
  const restore = deepStack();
  const error = new type(isOneSentence ? render(problem) : `${sentence(problem)} ${sentence(hint)}`);
  startAtCaller(error, restore());
  withTexts(error, isOneSentence ? { message: problem } : { message: text`${problem}.`, hint });
  Object.defineProperties(error, { [MARK]: { value: true }, toJSON: { value: () => fieldsOf(error) } });
  return Object.assign(error, { code, reason, hint: sentence(hint) });
}

/** `expected` completes "must be …". */
export function invalidArgumentType(name: string, expected: string, value: unknown): TypeError & ArgumentFields {
  const problem = text`${argument(name)} must be ${expected}. Received ${showValue(value)}`;
  return argumentError(TypeError, 'ERR_INVALID_ARG_TYPE', 'invalid-argument', [problem, `pass ${expected}`]);
}

/** `problem` begins with its verb: "must be one of …". */
export function invalidArgumentValue(name: string, value: unknown, problem: Text): TypeError & ArgumentFields {
  const message = text`${argument(name)} ${problem}. Received ${showValue(value)}`;
  const expected = /^must be (.*)/s.exec(render(problem))?.[1];
  const hint = expected === undefined ? `correct the value of \`${name}\`` : `pass ${expected}`;
  return argumentError(TypeError, 'ERR_INVALID_ARG_VALUE', 'invalid-argument', [message, hint]);
}

export function outOfRange(name: string, expected: Text, received: string): RangeError & ArgumentFields {
  const message = text`${argument(name)} must be ${expected}. Received ${received}`;
  return argumentError(RangeError, 'ERR_OUT_OF_RANGE', 'invalid-argument', [message, text`pass ${expected}`]);
}

/** Returns the error for options that cannot be combined, or for one that lacks another. */
export const conflictingOptions = (what: Text, hint: Text): TypeError & ArgumentFields =>
  argumentError(TypeError, 'ERR_INVALID_ARG_VALUE', 'conflicting-options', [what, hint]);

/** Returns the error of each call on another platform than Linux. */
export const platformError = (): OverlayError =>
  new OverlayError({
    errno: ENOSYS,
    reason: 'platform-unsupported',
    what: `overlayfs works on Linux only: OverlayFS is a file system of the Linux kernel, and this is ${process.platform}`,
  });

/** Returns the error with which node:fs rejects when its signal aborts. */
export function abortError(signal: AbortSignal, undoErrno = 0): Error {
  const left = undoErrno === 0 ? '' : `; its effects could not be undone (${describeErrno(undoErrno)[0]})`;
  const error = new Error(`The operation was aborted${left}`, { cause: signal.reason });
  return Object.assign(error, { code: 'ABORT_ERR', name: 'AbortError' });
}
