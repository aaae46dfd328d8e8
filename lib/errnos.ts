import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';

/** The errnos on which this library bases decisions, as positive numbers. */
export const {
  E2BIG,
  EACCES,
  EAGAIN,
  EBUSY,
  ECANCELED,
  ECHILD,
  EEXIST,
  EINVAL,
  EIO,
  EISDIR,
  ELOOP,
  EMFILE,
  EMLINK,
  ENAMETOOLONG,
  ENFILE,
  ENODATA,
  ENODEV,
  ENOENT,
  ENOMEM,
  ENOSPC,
  ENOSYS,
  ENOTDIR,
  ENOTEMPTY,
  ENOTTY,
  ENXIO,
  EOPNOTSUPP,
  EOVERFLOW,
  EPERM,
  ERANGE,
  EROFS,
  ESTALE,
  EXDEV,
} = constants.errno;
/** Missing in node:os. */
export const EBADF = 9;
export const EFBIG = 27;
export const EUCLEAN = 117;
export const EDQUOT = 122;

// Missing in libuv's list, from which Node makes its map.
const more: Readonly<Record<number, readonly [code: string, text: string]>> = {
  10: ['ECHILD', 'no child processes'],
  15: ['ENOTBLK', 'block device required'],
  116: ['ESTALE', 'stale file handle'],
  117: ['EUCLEAN', 'structure needs cleaning'],
  122: ['EDQUOT', 'disk quota exceeded'],
};

/** The reason why a path cannot be reached, by errno. */
export const unreachable: Readonly<Record<number, string>> = {
  [ENOTDIR]: 'a component of it is not a directory',
  [EACCES]: 'this process may not search a directory on the way',
  [ELOOP]: 'its symbolic links lead in a circle, or are too many',
  [ENAMETOOLONG]: 'it, or a name in it, is too long',
};

/** Returns whether the process or the machine has no descriptor left. */
export const isOutOfDescriptors = (errno: number): boolean => errno === EMFILE || errno === ENFILE;

/** Returns whether the errno reports a temporary shortage, and so says nothing about the request. */
export const isShortage = (errno: number): boolean => isOutOfDescriptors(errno) || errno === EAGAIN || errno === ENOMEM;

/** Returns the name and the text of an errno, a positive number. */
export function describeErrno(errno: number): readonly [code: string, text: string] {
  return getSystemErrorMap().get(-errno) ?? more[errno] ?? [`E${errno}`, `errno ${errno}`];
}
