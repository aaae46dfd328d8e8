/** The numbers in headers: octal digits, or base-256 where the first bit of the field is set. */
import type { Moment } from './entry.js';

/** The place of a field in its block. */
export type Field = readonly [at: number, size: number];

const SPACE = 0x20;
const ZERO = 0x30;
const SEVEN = 0x37;

/** Returns the number in a field; undefined if it is no number; ±Infinity if it is beyond 2^53. */
export function readNumber(block: Buffer, [at, size]: Field): number | undefined {
  const end = at + size;
  if (((block[at] as number) & 0x80) !== 0) return readBase256(block, at, end);
  let from = at;
  while (from < end && (block[from] === SPACE || block[from] === 0)) from++;
  let value = 0;
  for (; from < end; from++) {
    const byte = block[from] as number;
    if (byte === SPACE || byte === 0) break;
    if (byte < ZERO || byte > SEVEN) return undefined;
    value = value * 8 + (byte - ZERO);
  }
  return value;
}

/** Two's complement, without the bit that marks the form. */
function readBase256(block: Buffer, at: number, end: number): number {
  const first = (block[at] as number) & 0x7f;
  const isNegative = (first & 0x40) !== 0;
  let value = isNegative ? first - 0x80 : first;
  for (let from = at + 1; from < end; from++) value = value * 256 + (block[from] as number);
  return Number.isSafeInteger(value) ? value : isNegative ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
}

/**
 * Writes octal digits into the block that begins at `start`. A NUL in the block follows. The number has to fit: see
 * `fitsOctal`. Returns the sum of the bytes.
 */
export function writeOctal(bytes: Buffer, start: number, [at, size]: Field, value: number): number {
  const first = start + at;
  const last = first + size - 2;
  let sum = 0;
  // Digits of integers of 32 bits are much faster: eight digits at once.
  let low = (value % 0o100000000) | 0;
  let high = ((value - low) / 0o100000000) | 0;
  for (let i = last; i >= first; i--) {
    if (i === last - 8) [low, high] = [high, 0];
    const digit = ZERO + (low & 7);
    low >>>= 3;
    bytes[i] = digit;
    sum += digit;
  }
  return sum;
}

/** The first number that a field of this size cannot hold. */
const octalLimits: readonly number[] = Array.from({ length: 13 }, (_, size) => 8 ** (size - 1));

export const fitsOctal = (value: number, [, size]: Field): boolean =>
  value >= 0 && value < (octalLimits[size] as number);

/** Returns a decimal number that may be negative and have a fraction; undefined if it is none. */
export function parseMoment(text: string): Moment | undefined {
  const parts = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(text);
  if (parts === null) return undefined;
  const [, sign, whole, fraction = ''] = parts;
  const seconds = Number(whole);
  const nanoseconds = Number(fraction.slice(0, 9).padEnd(9, '0'));
  if (sign === '') return { seconds, nanoseconds };
  return nanoseconds === 0
    ? { seconds: 0 - seconds, nanoseconds }
    : { seconds: -seconds - 1, nanoseconds: 1e9 - nanoseconds };
}

export function formatMoment({ seconds, nanoseconds }: Moment): string {
  const isNegative = seconds < 0 && nanoseconds > 0;
  const whole = isNegative ? seconds + 1 : seconds;
  const rest = isNegative ? 1e9 - nanoseconds : nanoseconds;
  const sign = isNegative && whole === 0 ? '-' : '';
  const fraction = rest === 0 ? '' : `.${String(rest).padStart(9, '0').replace(/0+$/, '')}`;
  return `${sign}${whole}${fraction}`;
}
