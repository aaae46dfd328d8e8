/** Paths from standard input. */
import type { Path } from '../paths.js';
import { toPath } from './command-line.js';

/** Splits the bytes at the separators; a separator at the end ends the last piece. */
export function splitPaths(bytes: Uint8Array, separator: '\n' | '\0'): Path[] {
  const pieces = Buffer.from(bytes).toString('latin1').split(separator);
  if (pieces.at(-1) === '') pieces.pop();
  return pieces.map(toPath);
}

export async function readPaths(separator: '\n' | '\0'): Promise<Path[]> {
  const chunks: Buffer[] = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  return splitPaths(Buffer.concat(chunks), separator);
}
