/** Results as JSON. */

/** A path that is no text comes as `{ "base64": … }`: JSON holds text only. */
function toPlain(value: unknown): unknown {
  if (value instanceof Uint8Array) return { base64: Buffer.from(value).toString('base64') };
  if (Array.isArray(value)) return value.map(toPlain);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, toPlain(inner)]));
}

export function toJson(value: unknown): string {
  return `${JSON.stringify(toPlain(value), null, 2)}\n`;
}
