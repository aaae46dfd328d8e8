/** Why an operation of a writer has failed, in words. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import type { Reason } from '../reasons.js';
import { option, type Text, text } from '../text.js';
import { explainShortage } from '../verdicts.js';
import type { WriteFailure } from './write.js';

/** The system call of each operation; of the others, the stage tells it. */
const makers: Readonly<Record<string, string>> = {
  directory: 'mkdirat',
  file: 'openat',
  link: 'linkat',
  symlink: 'symlinkat',
  node: 'mknodat',
  whiteout: 'mknodat',
  remove: 'unlinkat',
};
const setters: Readonly<Record<string, string>> = {
  parent: 'openat2',
  data: 'pwrite64',
  owner: 'fchownat',
  xattr: 'lsetxattr',
  mode: 'fchmodat2',
  times: 'utimensat',
  remove: 'unlinkat',
  sync: 'syncfs',
};

/** The error for an entry of an archive, which begins at this byte, that could not be written below a directory. */
export function explainWrite(failure: WriteFailure, directory: Path, { offset }: { offset: number }): OverlayError {
  const { errno, stage, kind, attribute } = failure;
  const path = failure.path.length === 0 ? directory : joinPath(directory, failure.path);
  const shown = quotePath(path);
  const from = `, of the entry at byte ${offset} of the archive`;
  const fields = (reason: Reason, what: string, hint?: Text): OverlayError =>
    new OverlayError({
      errno,
      syscall: setters[stage] ?? makers[kind],
      path: pathString(path),
      reason,
      what: what + from,
      hint,
    });
  switch (errno) {
    case e.ENOSPC:
    case e.EDQUOT:
      return fields('out-of-space', `no space is left to write ${shown}`);
    case e.EROFS:
      return fields('read-only', `the file system of ${shown} is read-only`);
    case e.ENAMETOOLONG:
      return fields(
        'path-inaccessible',
        `the path ${shown} is too long`,
        'apply the layer to a directory on another file system',
      );
    case e.EXDEV:
      return fields('mount-inside', `something is mounted at or above ${shown}`);
    case e.EIO:
      return fields('io-error', `an I/O error kept ${shown} from being written`);
    case e.EMLINK:
      return fields('permission-denied', `the file system allows no more links to ${shown}`, 'use another file system');
    default:
  }
  if (stage === 'xattr') {
    return fields(
      'xattr-denied',
      `the attribute ${attribute} of ${shown} could not be set`,
      errno === e.EPERM && attribute?.startsWith('trusted.')
        ? text`trusted.* needs CAP_SYS_ADMIN in the initial user namespace: pass ${option('userxattr', true)} to use user.*`
        : 'use a file system that keeps such attributes, or run as root',
    );
  }
  if (stage === 'owner') {
    return fields(
      'permission-denied',
      `the owner of ${shown} could not be set`,
      text`pass ${option('owners', 'ignore')}, or maps to ids that this process may use`,
    );
  }
  if (kind === 'node' && (errno === e.EPERM || errno === e.EACCES)) {
    return fields(
      'permission-denied',
      `this process may not make the device ${shown}`,
      text`pass ${option('devices', 'skip')}`,
    );
  }
  if (errno === e.EACCES || errno === e.EPERM) {
    return fields('permission-denied', `this process may not write ${shown}`);
  }
  // The archive was checked before, so another program must have been there.
  if ([e.ENOENT, e.ENOTDIR, e.ELOOP, e.EEXIST, e.ESTALE, e.EISDIR, e.ENOTEMPTY].includes(errno)) {
    return fields('layer-changed', `another program changed ${shown} or what leads to it while it was written`);
  }
  return explainShortage(errno, `write ${shown}`) ?? fields('unexplained', `${shown} could not be written`);
}
