/** The mount table, read without the library. */

import { readFileSync } from 'node:fs';

/** Lists the mounts at and below a directory whose name needs no escape, the last one last. */
export function mountsBelow(dir: string): { target: string; line: string }[] {
  return readFileSync('/proc/thread-self/mountinfo', 'latin1')
    .split('\n')
    .map((line) => ({
      line,
      target:
        line.split(' ')[4]?.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8))) ??
        '',
    }))
    .filter(({ target }) => target === dir || target.startsWith(`${dir}/`));
}

/** Escapes as the kernel does in the mount table: these characters become a backslash and three octal digits. */
export function escapeOctal(bytes: Uint8Array, escaped: string): Buffer {
  const written = Array.from(bytes, (byte) => {
    const char = String.fromCharCode(byte);
    return escaped.includes(char) ? `\\${byte.toString(8).padStart(3, '0')}` : char;
  });
  return Buffer.from(written.join(''), 'latin1');
}
