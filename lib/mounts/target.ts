/** Explains errors in the path of a mount point. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { S_IFLNK } from '../kernel/constants.js';
import type { StatResult } from '../kernel/stat.js';
import { type Path, pathString, quotePath } from '../paths.js';
import { explainErrno, type Verdict } from '../verdicts.js';

/**
 * Returns the error that explains why a path is not a usable mount point. `found` must not follow links. `unreached`:
 * why the path does not lead to a mount that is there. Pure.
 */
export function explainTarget(path: Path, { errno, type }: StatResult, unreached?: Verdict): OverlayError {
  const name = `the target ${quotePath(path)}`;
  const syscall = errno === 0 ? undefined : 'statx';
  return new OverlayError({
    errno: errno || e.EINVAL,
    path: pathString(path),
    syscall,
    ...(type === S_IFLNK
      ? { reason: 'target-symlink', what: `${name} is a symbolic link` }
      : (unreached ??
        (errno === 0
          ? { reason: 'not-mounted', what: `${name} is not a mount point` }
          : explainErrno(errno, { name, purpose: `look at ${quotePath(path)}`, syscall, missing: 'target-missing' })))),
  });
}
