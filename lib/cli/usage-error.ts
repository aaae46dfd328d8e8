/** What is wrong with a command line, as opposed to what failed. */
import { nearestName } from '../arguments.js';

export class UsageError extends Error {
  readonly code = 'ERR_USAGE';
  readonly hint: string | undefined;

  constructor(message: string, hint?: string) {
    super(message);
    this.hint = hint;
  }

  override get name(): string {
    return 'UsageError';
  }
}

/** A word that is none of the known ones; the nearest of these is the hint, or all of them. */
export function unknownWord(what: string, given: string, known: readonly string[]): UsageError {
  const nearest = nearestName(given, known);
  return new UsageError(
    `${what} '${given}'`,
    nearest === undefined ? `One of: ${known.join(', ')}.` : `Did you mean ${nearest}?`,
  );
}
