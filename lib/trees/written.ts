/** Explains why a tree could not be written, and what was done by then. */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import type { Task } from '../kernel/task.js';
import type { Stage } from '../native.js';
import { joinPath, type Path, pathString, quotePath } from '../paths.js';
import { either, option, type Text, text } from '../text.js';
import { explainErrno, type Verdict } from '../verdicts.js';
import { findDenial } from './denial.js';
import { toBytePath } from './encodings.js';
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

interface Circumstances {
  /** The path below `dir`, one character for each byte, if it is not that of the operation. */
  readonly path?: string;
  /** The work that was done by then. */
  readonly leftover?: string;
  /** The byte at which the entry begins, if it is from an archive. */
  readonly offset?: number;
  /** The root of the entries that are moved. */
  readonly other?: Path;
}

/** `dir` is the root of the failed path. */
export function* explainWrite(failure: WriteFailure, dir: Path, circumstances: Circumstances): Task<OverlayError> {
  const { errno, stage, kind, source } = failure;
  const { leftover, offset, other } = circumstances;
  const inside = circumstances.path === undefined ? failure.path : toBytePath(circumstances.path);
  const path = inside.length === 0 ? dir : joinPath(dir, inside);
  const syscall =
    stage === 'create' ? (makers[kind] ?? 'open') : stage === 'sync' && kind !== 'sync' ? 'fsync' : syscalls[stage];
  const name = quotePath(path);
  const isOfArchive = offset !== undefined;
  const moved =
    source === undefined || other === undefined ? [] : [joinPath(other, toBytePath(source.toString('latin1')))];
  const found =
    (isRefusal(errno) ? yield* findDenial([path, ...moved]) : undefined) ??
    explainStage(failure, name, isOfArchive) ??
    rules[errno]?.(name) ??
    explainErrno(errno, { name, purpose: `write ${name}`, syscall });
  const what = isOfArchive ? `${found.what}, of the entry at byte ${offset} of the archive` : found.what;
  return new OverlayError({ errno, syscall, path: pathString(path), ...found, what, leftover }, { cause: failure });
}

type Rule = (name: string) => Verdict;

const isRefusal = (errno: number): boolean => errno === e.EPERM || errno === e.EACCES;
const isDenial = (errno: number): boolean => isRefusal(errno) || errno === e.EOPNOTSUPP;

/** The failures of single stages. */
function explainStage({ errno, stage, kind, attribute }: WriteFailure, name: string, isOfArchive: boolean) {
  if (errno === e.EMLINK && kind === 'link') {
    const what = `the file system allows no more links to the file that ${name} is a link to`;
    return { reason: 'permission-denied', what, hint: 'use another file system' } satisfies Verdict;
  }
  if (stage === 'xattr' && (errno === e.EINVAL || errno === e.E2BIG || errno === e.ERANGE)) {
    const what = `the kernel does not take the value of ${attributeText(attribute)} of ${name}`;
    const hint = isOfArchive
      ? 'make the archive anew, without it or with another value'
      : 'remove it, or correct its value';
    return { reason: 'xattr-denied', what, hint } satisfies Verdict;
  }
  if (stage === 'xattr' && errno === e.ENOSPC) {
    const what = `no room is left for ${attributeText(attribute)} of ${name}: the file system is full, or holds no larger attributes`;
    return { reason: 'out-of-space', what, hint: 'make room, or use another file system' } satisfies Verdict;
  }
  // The writer enters no other mount. ext4 and xfs rename and link no file into a directory of another project.
  if (errno === e.EXDEV && (stage === 'place' || (stage === 'create' && kind === 'link'))) {
    const what = `the file system moves nothing to ${name}: that directory has another project id`;
    return {
      reason: 'permission-denied',
      what,
      hint: 'give all directories one project id: chattr -p',
    } satisfies Verdict;
  }
  if (!isDenial(errno) && !(isOfArchive && stage === 'owner')) return undefined;
  const denied = (what: string, hint: Text): Verdict => ({ reason: 'permission-denied', what, hint });
  if (stage === 'xattr') {
    const hint = denial(attribute, isOfArchive);
    return {
      reason: 'xattr-denied',
      what: `${attributeText(attribute)} of ${name} cannot be set`,
      hint,
    } satisfies Verdict;
  }
  if (stage === 'owner') {
    const ofArchive = either(
      text`pass ${option('owners', 'ignore')}`,
      'run as root, in a user namespace that has these ids',
    );
    return denied(`the owner of ${name} cannot be set`, isOfArchive ? ofArchive : 'run as root');
  }
  if (!isOfArchive) return undefined;
  if (kind === 'whiteout' && errno === e.EPERM) {
    const what = `no whiteout can be made at ${name}: the directory is in a mounted overlay, or this process may make no device nodes`;
    return denied(what, either('use a directory of a layer', text`pass ${option('layout', 'plain')}`, 'run as root'));
  }
  if (kind !== 'node') return undefined;
  return denied(
    `this process may not make the device ${name}`,
    either(text`pass ${option('devices', 'skip')}`, 'run as root in the initial user namespace'),
  );
}

const attributeText = (name: string | undefined): string =>
  name === undefined ? 'the attributes' : `the attribute ${name}`;

function denial(attribute: string | undefined, isOfArchive: boolean): Text {
  if (attribute?.startsWith('security.')) return 'run as root: security.* needs CAP_SYS_ADMIN or CAP_SETFCAP';
  if (attribute !== undefined && !attribute.startsWith('trusted.')) {
    return 'use a file system that has such attributes, or run as the owner or as root';
  }
  const need = 'trusted.* needs CAP_SYS_ADMIN in the initial user namespace';
  return isOfArchive ? either(`run as root: ${need}`, text`pass ${option('userxattr', true)}`) : `run as root: ${need}`;
}

const denied: Rule = (name) => ({ reason: 'permission-denied', what: `this process may not write ${name}` });

const full =
  (why: string): Rule =>
  (name) => ({
    reason: 'out-of-space',
    what: `no room is left to write ${name}: ${why}`,
    hint: 'make room, then call it again',
  });

const mountInside: Rule = (name) => ({
  reason: 'mount-inside',
  what: `something is mounted at, above or inside ${name}`,
  hint: 'unmount it, then call it again',
});

const changed: Rule = (name) => ({
  reason: 'layer-changed',
  what: `another program changed ${name}, or a directory on the way, while it was written`,
  hint: 'let nothing change it, then call it again',
});

/** The errnos that mean something of their own for a tree that is written. */
const rules: Readonly<Record<number, Rule>> = {
  [e.ENOSPC]: full('the file system is full'),
  [e.EDQUOT]: full('the quota is used up'),
  [e.EBUSY]: mountInside,
  [e.EXDEV]: mountInside,
  [e.ESTALE]: (name) => ({
    reason: 'layer-changed',
    what: `the file to be written to ${name} changed while it was copied`,
    hint: 'let nothing write to it, then call it again',
  }),
  [e.ELOOP]: changed,
  [e.ENOTDIR]: changed,
  [e.EISDIR]: changed,
  [e.ENOTEMPTY]: changed,
  [e.EEXIST]: changed,
  [e.ENOENT]: changed,
  [e.EACCES]: denied,
  [e.EPERM]: denied,
  [e.EOPNOTSUPP]: denied,
  [e.EIO]: (name) => ({ reason: 'io-error', what: `an I/O error kept ${name} from being written` }),
};
