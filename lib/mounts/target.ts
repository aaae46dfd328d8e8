/** Explains errors in the path of a mount point. */
import * as e from '../errnos.js';
import { OverlayError, type OverlayErrorFields } from '../errors.js';
import { S_IFLNK } from '../kernel/constants.js';
import type { Found } from '../kernel/look.js';
import { type Path, pathString, quotePath } from '../paths.js';

/** Returns the error that explains why a path is not a usable mount point. The look must not follow links. Pure. */
export function explainTarget(path: Path, { errno, type }: Found): OverlayError {
  const shown = quotePath(path);
  const fields = { errno: errno || e.EINVAL, path: pathString(path), ...(errno !== 0 && { syscall: 'statx' }) };
  if (errno === e.ENOENT) {
    return new OverlayError({
      ...fields,
      reason: 'target-missing',
      what: `the target ${shown} does not exist`,
      hint: 'check the path',
    });
  }
  if (errno !== 0) {
    return new OverlayError({ ...fields, reason: 'path-inaccessible', what: `the target ${shown} cannot be reached` });
  }
  if (type === S_IFLNK) {
    const what = `the target ${shown} is a symbolic link`;
    return new OverlayError({ ...fields, reason: 'target-symlink', what });
  }
  return new OverlayError({ ...fields, reason: 'not-mounted', what: `the target ${shown} is not a mount point` });
}

/** Returns the explanation of the guard `target-is-reserved`. Pure. */
export const reservedVerdict = (target: Path): Pick<OverlayErrorFields, 'reason' | 'what' | 'hint'> => ({
  reason: 'mount-busy',
  what: `another call of this process is mounting at the target ${quotePath(target)}`,
  hint: 'await that call first',
});
