import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';

/** The errnos that this library decides by, as positive numbers. */
export const {
  E2BIG,
  EACCES,
  EAGAIN,
  EBUSY,
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
  EOPNOTSUPP,
  EOVERFLOW,
  EPERM,
  ERANGE,
  EROFS,
  ESTALE,
  EXDEV,
} = constants.errno;
/** Not in node:os. */
export const EBADF = 9;
export const EUCLEAN = 117;
export const EDQUOT = 122;

// Not in libuv's list, which Node's map is made from.
const more: Readonly<Record<number, readonly [code: string, text: string]>> = {
  15: ['ENOTBLK', 'block device required'],
  116: ['ESTALE', 'stale file handle'],
  117: ['EUCLEAN', 'structure needs cleaning'],
  122: ['EDQUOT', 'disk quota exceeded'],
};

/** Why a path cannot be reached, by the errno of a look at it. */
export const unreachable: Readonly<Record<number, string>> = {
  [ENOTDIR]: 'a component of it is not a directory',
  [EACCES]: 'this process may not search a directory on the way',
  [ELOOP]: 'its symbolic links lead in a circle, or are too many',
  [ENAMETOOLONG]: 'it, or a name in it, is too long',
};

/** Whether the process or the machine has no descriptor left. */
export const isOutOfDescriptors = (errno: number): boolean => errno === EMFILE || errno === ENFILE;

/** Whether it says that something is lacking for the moment, and nothing about what was asked. */
export const isShortage = (errno: number): boolean => isOutOfDescriptors(errno) || errno === EAGAIN || errno === ENOMEM;

/** The name and the text of an errno, a positive number. */
export function describeErrno(errno: number): readonly [code: string, text: string] {
  return getSystemErrorMap().get(-errno) ?? more[errno] ?? [`E${errno}`, `errno ${errno}`];
}
