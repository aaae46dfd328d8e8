/** Errors as the command line shows them, and their exit codes. */
import { type Conflict, OverlayError, textsOf } from '../errors.js';
import type { Holder } from '../holder.js';
import { formatBytes } from '../paths.js';
import { printable, render, type Spelling, sentence } from '../text.js';
import { UsageError } from './usage-error.js';

/** The exit code for an answer that is no: findings, conflicts, nothing found. As of grep(1) and diff(1). */
export const NO = 1;
/** The exit code for a failure and for wrong usage. */
export const FAILED = 2;
/** A command that runs a program fails with this one, as env(1) and podman(1) do: the others are the program's. */
export const NOT_RUN = 125;

export interface ShownError {
  readonly code?: string;
  readonly reason?: string;
  readonly message: string;
  readonly hint?: string;
  readonly syscall?: string;
  readonly path?: string;
  readonly dest?: string;
  readonly kernel?: readonly string[];
  readonly holders?: readonly Holder[];
  readonly conflicts?: readonly Conflict[];
}

type AnyError = Error & Partial<Omit<ShownError, 'message'>>;

/**
 * True for arguments that the library refuses, which are the user's: TypeError and RangeError with one of Node's codes.
 */
function isArgumentError({ code }: AnyError): boolean {
  return ['ERR_INVALID_ARG_TYPE', 'ERR_INVALID_ARG_VALUE', 'ERR_OUT_OF_RANGE'].includes(code ?? '');
}

/** True if the command line is wrong, and nothing was done. */
export const isWrongUsage = (error: unknown): boolean =>
  error instanceof UsageError || (error instanceof Error && isArgumentError(error));

export const exitCodeOf = (error: unknown): number =>
  error instanceof OverlayError && error.reason === 'layer-conflict' ? NO : FAILED;

export interface MessageStyle {
  /** The start of each message. */
  readonly program: string;
  readonly spelling: Spelling;
  /** True if the message leaves out the name of the errno. */
  readonly isWithoutCode?: boolean;
}

export function toShown(thrown: unknown, { spelling, isWithoutCode }: MessageStyle): ShownError {
  if (!(thrown instanceof Error)) return { message: String(thrown) };
  const error = thrown as AnyError;
  const { code, reason, syscall, path, dest, kernel, holders, conflicts } = error;
  const texts = textsOf(error);
  // The hint has a line of its own.
  const whole = texts === undefined ? error.message : render(texts.message, spelling);
  const message = isWithoutCode ? whole.replace(`${code}: `, '') : whole;
  // The message about an argument says what would be right.
  const isOneSentence = reason === 'invalid-argument' && isArgumentError(error);
  const hint = texts?.hint !== undefined ? sentence(texts.hint, spelling) : isOneSentence ? undefined : error.hint;
  return {
    ...(code !== undefined && { code }),
    ...(reason !== undefined && { reason }),
    message,
    ...(hint !== undefined && { hint }),
    ...(syscall !== undefined && { syscall }),
    ...(path !== undefined && { path }),
    ...(dest !== undefined && { dest }),
    ...(kernel !== undefined && { kernel }),
    ...(holders !== undefined && { holders: [...holders] }),
    ...(conflicts !== undefined && { conflicts }),
  };
}

export const conflictText = ({ path, ours, theirs }: Conflict): string =>
  `conflict: ${formatBytes(path)} (${ours}; by others ${theirs})`;

/** Returns the error's text for standard error. */
export function errorText(thrown: unknown, style: MessageStyle): string {
  const { reason, message, hint, kernel = [], conflicts = [] } = toShown(thrown, style);
  const lines = [`${style.program}: ${printable(message)}`];
  if (reason !== undefined && reason !== 'invalid-argument') lines.push(`  reason: ${reason}`);
  if (hint !== undefined) lines.push(`  hint: ${printable(hint)}`);
  for (const conflict of conflicts) lines.push(`  ${conflictText(conflict)}`);
  for (const line of kernel) lines.push(`  kernel: ${printable(line)}`);
  return `${lines.join('\n')}\n`;
}
