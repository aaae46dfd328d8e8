/** An error in a command line, as opposed to a failure. */
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

/** Returns the error for an unknown word; the hint names the nearest known word, or all of them. */
export function unknownWord(what: string, given: string, known: readonly string[]): UsageError {
  const nearest = nearestName(given, known);
  return new UsageError(
    `${what} '${given}'`,
    nearest === undefined ? `One of: ${known.join(', ')}.` : `Did you mean ${nearest}?`,
  );
}
