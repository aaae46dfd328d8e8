/** Errors as the command line shows them, and their exit codes. */
import { type Conflict, textsOf } from '../errors.js';
import type { Holder } from '../holder.js';
import { formatBytes } from '../paths.js';
import { render, type Spelling, sentence } from '../text.js';
import { inFlags } from './spelling.js';
import { UsageError } from './usage-error.js';

export const FAILED = 1;
export const WRONG_USAGE = 2;

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

export function exitCodeOf(error: unknown): number {
  return error instanceof UsageError || (error instanceof Error && isArgumentError(error)) ? WRONG_USAGE : FAILED;
}

export interface MessageStyle {
  /** The start of each message. */
  readonly program: string;
  readonly spelling: Spelling;
  /** True if the message leaves out the name of the errno. */
  readonly isWithoutCode?: boolean;
}

const ownStyle: MessageStyle = { program: 'overlayfs', spelling: inFlags };

export function toShown(thrown: unknown, { spelling, isWithoutCode }: MessageStyle = ownStyle): ShownError {
  if (!(thrown instanceof Error)) return { message: String(thrown) };
  const error = thrown as AnyError;
  const { code, reason, syscall, path, dest, kernel, holders, conflicts } = error;
  const texts = textsOf(error);
  // The hint has a line of its own.
  const whole = texts === undefined ? error.message : render(texts.message, spelling);
  const message = isWithoutCode ? whole.replace(`${code}: `, '') : whole;
  const hint = texts?.hint === undefined ? error.hint : sentence(texts.hint, spelling);
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
export function errorText(thrown: unknown, style: MessageStyle = ownStyle): string {
  const { reason, message, hint, kernel = [], conflicts = [] } = toShown(thrown, style);
  const lines = [`${style.program}: ${message}`];
  if (reason !== undefined) lines.push(`  reason: ${reason}`);
  if (hint !== undefined) lines.push(`  hint: ${hint}`);
  for (const conflict of conflicts) lines.push(`  ${conflictText(conflict)}`);
  for (const line of kernel) lines.push(`  kernel: ${line}`);
  return `${lines.join('\n')}\n`;
}
