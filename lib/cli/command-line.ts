/**
 * The arguments as bytes. Node decodes them as UTF-8, which loses bytes that are not UTF-8; the kernel still has them.
 * They are kept as strings of one character a byte (latin1), which node:util can parse and which lose nothing.
 */
import { readFileSync } from 'node:fs';
import { fromBytes, type Path } from '../paths.js';
import { UsageError } from './usage-error.js';

/** A string of one character a byte. */
export type Bytes = string;

const toBytes = (text: string): Bytes => Buffer.from(text).toString('latin1');

/** Decodes the bytes as text; returns undefined if they are not UTF-8. */
export function toText(bytes: Bytes): string | undefined {
  const buffer = Buffer.from(bytes, 'latin1');
  const text = buffer.toString();
  return Buffer.from(text).equals(buffer) ? text : undefined;
}

/** Returns the bytes as a path: a string if a string can hold it. */
export function toPath(bytes: Bytes): Path {
  return fromBytes(Buffer.from(bytes, 'latin1'));
}

function readCommandLine(): Bytes[] {
  try {
    return readFileSync('/proc/self/cmdline', 'latin1').split('\0').slice(0, -1);
  } catch {
    return [];
  }
}

/**
 * Returns the arguments after the program's name. Node's list is enough if decoding has lost nothing. Otherwise returns
 * the end of the kernel's list, which begins with Node's own options. Throws if the two lists do not match there (no
 * /proc, or a process title written over it).
 */
export function argumentsOf(decoded: readonly string[], read: () => Bytes[] = readCommandLine): Bytes[] {
  const plain = decoded.map(toBytes);
  if (!decoded.some((argument) => argument.includes(LOST))) return plain;
  const raw = decoded.length === 0 ? [] : read().slice(-decoded.length);
  const isSame = raw.length === decoded.length && raw.every((bytes, i) => bytes === plain[i] || isLost(decoded[i]));
  if (!isSame) throw new UsageError('an argument is no UTF-8, and /proc/self/cmdline does not tell what it is');
  return raw;
}

const LOST = '\ufffd';
const isLost = (argument: string | undefined): boolean => argument?.includes(LOST) ?? false;
