/** The layout of a header block: ustar (pax(1)) with the extensions of GNU tar and star. */
import { type Field, readNumber } from './numbers.js';

export const BLOCK = 512;

export const fields = {
  name: [0, 100],
  mode: [100, 8],
  uid: [108, 8],
  gid: [116, 8],
  size: [124, 12],
  mtime: [136, 12],
  checksum: [148, 8],
  type: [156, 1],
  linkname: [157, 100],
  magic: [257, 8],
  major: [329, 8],
  minor: [337, 8],
  prefix: [345, 155],
  /** The prefix of star, which keeps times behind it. */
  starPrefix: [345, 131],
  starMagic: [508, 4],
  /** GNU tar's fields: the first parts of a sparse file, whether more blocks of them follow, and the size with holes. */
  sparse: [386, 96],
  isExtended: [482, 1],
  realSize: [483, 12],
} as const satisfies Readonly<Record<string, Field>>;

/** In a block of further parts: whether another one follows. */
export const MORE_PARTS = 504;

export const padded = (size: number): number => Math.ceil(size / BLOCK) * BLOCK;

/** Returns whether the block is a header, by its checksum. */
export function hasChecksum(block: Buffer): boolean {
  const sum = readNumber(block, fields.checksum);
  return sum === checksumOf(block) || sum === signedChecksumOf(block);
}

/** Returns the sum of a header's bytes, its checksum taken as spaces. */
export function checksumOf(block: Buffer): number {
  let sum = 8 * 0x20;
  for (let i = 0; i < 148; i++) sum += block[i] as number;
  for (let i = 156; i < BLOCK; i++) sum += block[i] as number;
  return sum;
}

/** Returns the sum that old programs wrote, which took bytes as signed. */
function signedChecksumOf(block: Buffer): number {
  let sum = 8 * 0x20;
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += ((block[i] as number) << 24) >> 24;
  return sum;
}
