import { EINVAL } from '../errnos.js';
import { OverlayError } from '../errors.js';
import { quotePath } from '../paths.js';
import type { Reason } from '../reasons.js';
import { type Text, text } from '../text.js';

/** The longest part of a name that a message shows, in bytes. */
const MOST_SHOWN = 300;

const toBytes = (name: string): Buffer => Buffer.from(name, 'latin1');

/** Quotes the name of an entry for a message. */
export function quoteName(name: string): string {
  if (name.length <= MOST_SHOWN) return quotePath(toBytes(name));
  return `${quotePath(toBytes(name.slice(0, MOST_SHOWN)))} and so on (${name.length} bytes)`;
}

/**
 * Returns the error for an archive that breaks a rule.
 *
 * @param rule completes "the archive is invalid at byte N, in the entry E: …"
 */
export function invalidArchive(
  offset: number,
  name: string | undefined,
  rule: Text,
  reason: Reason = 'archive-invalid',
  hint?: string,
): OverlayError {
  const where = name === undefined ? '' : `, in the entry ${quoteName(name)}`;
  const kind = reason === 'archive-limit' ? 'exceeds a limit' : 'is invalid';
  return new OverlayError({
    errno: EINVAL,
    reason,
    what: text`the archive ${kind} at byte ${offset}${where}: ${rule}`,
    path: name === undefined ? undefined : toBytes(name).toString(),
    hint,
  });
}
