/** Results as JSON. */
import { fromBytes } from '../paths.js';
import { printableJson } from '../text.js';

/**
 * Converts a value for JSON. JSON holds text only, so a path that is not text becomes `{ "base64": … }`. A number that may
 * be too large for other readers becomes text.
 */
export function toPlain(value: unknown): unknown {
  if (typeof value === 'bigint') return String(value);
  if (value instanceof Uint8Array) {
    const bytes = Buffer.from(value);
    const text = fromBytes(bytes);
    return typeof text === 'string' ? text : { base64: bytes.toString('base64') };
  }
  if (Array.isArray(value)) return value.map(toPlain);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, toPlain(inner)]));
}

/** Returns a value as one line of JSON. */
export const toJsonLine = (value: unknown): string => printableJson(JSON.stringify(toPlain(value)));

export function toJson(value: unknown): string {
  return `${printableJson(JSON.stringify(toPlain(value), null, 2))}\n`;
}
