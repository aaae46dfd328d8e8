/** The limits of a file system in memory: tmpfs(5). Pure. */
import { toOptions } from '../arguments.js';
import { invalidArgumentType, outOfRange, showValue } from '../errors.js';

/** Hard limits of a tmpfs: a program that exceeds them gets ENOSPC. The kernel's default of both is half of the memory. */
export interface TmpfsLimits {
  /** In bytes, rounded up to pages. */
  readonly size?: number;
  /** The most files, directories and deletions, one each, from 2 on. One or two more than this may fit. */
  readonly inodes?: number;
}

const names: ReadonlySet<string> = new Set<keyof TmpfsLimits>(['size', 'inodes']);

export function checkTmpfsLimits(value: unknown, name: string): TmpfsLimits {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalidArgumentType(name, 'true, false, or limits such as { size: 2 ** 30 }', value);
  }
  const limits = toOptions<TmpfsLimits>(value, names, name);
  for (const [limit, number] of Object.entries(limits)) {
    if (number === undefined) continue;
    if (typeof number !== 'number') throw invalidArgumentType(`${name}.${limit}`, 'a number', number);
    // To tmpfs, 0 means no limit. With fewer inodes, the kernel could not even try what the tmpfs can do.
    const least = limit === 'inodes' ? 2 : 1;
    if (!Number.isSafeInteger(number) || number < least) {
      throw outOfRange(`${name}.${limit}`, `a whole number, ${least} or more`, showValue(number));
    }
  }
  return limits;
}
