/** Explains why a tree could not be written, and what was done by then. Pure. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import type { Stage } from '../native.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import type { Reason } from '../reasons.js';
import { explainShortage } from '../verdicts.js';
import type { WriteFailure } from './write.js';

const syscalls: Readonly<Record<Stage, string>> = {
  parent: 'openat2',
  create: 'open',
  data: 'write',
  owner: 'chown',
  xattr: 'setxattr',
  mode: 'chmod',
  times: 'utimensat',
  place: 'rename',
  remove: 'unlink',
  source: 'open',
  sync: 'syncfs',
};

/** The call that fails when the entry itself cannot be made. */
const makers: Readonly<Record<string, string>> = {
  directory: 'mkdir',
  symlink: 'symlink',
  link: 'link',
  node: 'mknod',
  whiteout: 'mknod',
};

/** `dir` is the root of the failed path; `leftover` says what was done. */
export function explainWrite(failure: WriteFailure, dir: Path, leftover: string | undefined): OverlayError {
  const { errno, stage, kind, attribute } = failure;
  const path = failure.path.length === 0 ? dir : joinPath(dir, failure.path);
  const shown = quotePath(path);
  const syscall = stage === 'create' ? (makers[kind] ?? 'open') : syscalls[stage];
  const fields = (reason: Reason, what: string, hint?: string): OverlayError =>
    new OverlayError({ errno, syscall, path: pathString(path), reason, what, hint, leftover }, { cause: failure });
  const again = 'then call it again: it goes on where it ended';
  switch (errno) {
    case e.ENOSPC:
    case e.EDQUOT: {
      const whose = errno === e.EDQUOT ? 'the quota is used up' : 'the file system is full';
      return fields('out-of-space', `no room is left to write ${shown}: ${whose}`, `make room, ${again}`);
    }
    case e.EROFS:
      return fields('read-only', `${shown} cannot be written: its file system is read-only`);
    case e.EBUSY:
    case e.EXDEV:
      return fields('mount-inside', `something is mounted at or inside ${shown}`, `unmount it, ${again}`);
    case e.ESTALE:
      return fields(
        'layer-changed',
        `the file to be written to ${shown} changed while it was copied`,
        `let nothing write to it, ${again}`,
      );
    case e.ELOOP:
    case e.ENOTDIR:
    case e.EEXIST:
    case e.ENOENT:
      return fields('layer-changed', `${shown} changed while it was written`, `let nothing change it, ${again}`);
    case e.EACCES:
    case e.EPERM:
    case e.EOPNOTSUPP:
      if (stage === 'xattr') {
        const which = attribute === undefined ? 'the attributes' : `the attribute ${attribute}`;
        return fields('xattr-denied', `${which} of ${shown} cannot be set`, denial(attribute));
      }
      return fields('permission-denied', `this process may not write ${shown}`);
    default:
      return explainShortage(errno, `write ${shown}`) ?? fields('unexplained', `${shown} could not be written`);
  }
}

const denial = (attribute: string | undefined): string | undefined =>
  attribute === undefined || attribute.startsWith('trusted.')
    ? 'run as root: trusted.* needs CAP_SYS_ADMIN in the initial user namespace'
    : 'use a file system that has such attributes, or run as the owner or as root';
