/** Converts paths and names, kept as strings with one character for each byte, to the form that callers get. */

import { checkWord } from '../arguments.js';

/** The form of the paths in results: text, or bytes. Text replaces bytes that are not UTF-8, as in node:fs. */
export type PathEncoding = 'utf8' | 'buffer';

export function toEncoding(encoding: unknown): PathEncoding {
  return (checkWord(encoding, 'encoding', ['utf8', 'buffer']) as PathEncoding | undefined) ?? 'utf8';
}

export const toBytePath = (path: string): Buffer => Buffer.from(path, 'latin1');

/** Decodes a path as UTF-8. `isAscii` says that there is nothing to decode. */
export function toText(path: string, isAscii = false): string {
  return isAscii ? path : toBytePath(path).toString();
}

export function encodePath(path: string, encoding: PathEncoding, isAscii = false): string | Buffer {
  return encoding === 'buffer' ? toBytePath(path) : toText(path, isAscii);
}

/** Joins a directory and a name; the root is the empty string. */
export const below = (directory: string, name: string): string => (directory === '' ? name : `${directory}/${name}`);

/** Compares two paths as a walk orders them: parents first, the names of a directory in byte order. */
export function comparePaths(a: string, b: string): number {
  const least = Math.min(a.length, b.length);
  let i = 0;
  while (i < least && a.charCodeAt(i) === b.charCodeAt(i)) i++;
  if (i === least) return a.length - b.length;
  // A slash ends a component, so it comes before all other bytes.
  if (a[i] === '/') return -1;
  if (b[i] === '/') return 1;
  return a.charCodeAt(i) - b.charCodeAt(i);
}
