/** Errors as the command line shows them, and their exit codes. */
import { type Conflict, OverlayError } from '../errors.js';
import type { Holder } from '../holder.js';
import { phrase } from './phrase.js';
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

/** The name of the program that speaks, and its wording. */
export interface Voice {
  readonly program: string;
  readonly say: (text: string) => string;
}

const ownVoice: Voice = { program: 'overlayfs', say: phrase };

/** The library's arguments that are operands of the command line. */
const operand = /^The argument "(target|path)s?(?:\[\d+\])?"/;

/** Rephrases the library's message about an argument, up to the value that was received. */
function phraseArgument(message: string, say: Voice['say']): string {
  const at = message.indexOf(' Received ');
  const told = at < 0 ? message : message.slice(0, at);
  const said = say(told.replace(operand, (_, name: string) => name.toUpperCase()));
  return (at < 0 ? said : said + message.slice(at)).replace(/^The argument ([^"\s]+)/, '$1');
}

export function toShown(thrown: unknown, { say }: Voice = ownVoice): ShownError {
  if (!(thrown instanceof Error)) return { message: String(thrown) };
  const error = thrown as AnyError;
  const { code, reason, hint, syscall, path, dest, kernel, holders, conflicts } = error;
  // The hint has a line of its own.
  const message = hint === undefined ? error.message : error.message.replace(` ${hint}`, '');
  const isOwnWording = error instanceof UsageError || (error instanceof OverlayError && path !== undefined);
  return {
    ...(code !== undefined && { code }),
    ...(reason !== undefined && { reason }),
    message: isOwnWording ? message : phraseArgument(message, say),
    ...(hint !== undefined && { hint: say(hint) }),
    ...(syscall !== undefined && { syscall }),
    ...(path !== undefined && { path }),
    ...(dest !== undefined && { dest }),
    ...(kernel !== undefined && { kernel }),
    ...(holders !== undefined && { holders: [...holders] }),
    ...(conflicts !== undefined && { conflicts }),
  };
}

/** Returns the error's text for standard error. */
export function errorText(thrown: unknown, voice: Voice = ownVoice): string {
  const { reason, message, hint, kernel = [], conflicts = [] } = toShown(thrown, voice);
  const lines = [`${voice.program}: ${message}`];
  if (reason !== undefined) lines.push(`  reason: ${reason}`);
  if (hint !== undefined) lines.push(`  hint: ${hint}`);
  for (const { path, ours, theirs } of conflicts) lines.push(`  conflict: ${path} (${ours}; by others ${theirs})`);
  for (const line of kernel) lines.push(`  kernel: ${line}`);
  return `${lines.join('\n')}\n`;
}
