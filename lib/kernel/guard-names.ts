/** The names of the guards, with what the addon and an error have for them. */
import * as e from '../errnos.js';
import { addon } from '../native.js';

/**
 * The guards that the executor checks, with the errno of an error that reports one. native/guards.cc says what each
 * looks at.
 */
const checked = {
  'target-is-mount-point': e.EBUSY,
  'target-is-symlink': e.ELOOP,
  'target-is-reserved': e.EBUSY,
  'target-was-replaced': e.ESTALE,
  'mount-is-another': e.EINVAL,
  'mounts-are-unknown': e.EAGAIN,
  'directory-is-removed': e.ENOENT,
  'directory-is-in-use': e.EBUSY,
  'layers-overlap': e.ELOOP,
  'upperdir-is-immutable': e.EPERM,
  'superblock-is-read-only': e.EROFS,
  'file-system-is-overlay': e.EPERM,
  'file-system-is-no-overlay': e.EINVAL,
} as const;

export type CheckedGuard = keyof typeof checked;

/** The other guards are system calls that change nothing. Their failure has the errno of the call. */
export type GuardName = CheckedGuard | 'upperdir-is-not-writable' | 'upperdir-has-no-xattrs';

let numbers: Readonly<Record<CheckedGuard, number>> | undefined;

/** Returns the number of the guard in the addon. */
export function numberOf(guard: CheckedGuard): number {
  if (numbers === undefined) {
    const native = addon().guards;
    const entries = Object.keys(checked).map((name) => [name, native[name.replaceAll('-', '_')]]);
    numbers = Object.fromEntries(entries) as Record<CheckedGuard, number>;
  }
  return numbers[guard];
}

/** Returns the guard with this number in the addon. */
export function guardOf(number: number): CheckedGuard | undefined {
  return (Object.keys(checked) as CheckedGuard[]).find((name) => numberOf(name) === number);
}

/** Returns the errno of an error that reports the guard; 0 for a guard that is a system call. */
export const errnoOf = (guard: GuardName): number => (guard in checked ? checked[guard as CheckedGuard] : 0);
