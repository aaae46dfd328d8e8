/**
 * Why a mount failed. After a failure, and only then: facts about the paths are gathered in one look, and
 * ordered pure functions over the failure and these facts choose the reason.
 */

import * as e from '../errnos.js';
import { OverlayError, type OverlayErrorFields } from '../errors.js';
import { type Call, calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { formatStep } from '../kernel/format.js';
import { addLook, type Found, readLook } from '../kernel/look.js';
import { type Outputs, StepFailure } from '../kernel/perform.js';
import { Plan, type Step, type Subject } from '../kernel/plan.js';
import { joinPath, type Path, pathString, quotePath, withoutTrailingSlashes } from '../paths.js';
import type { Reason } from '../reasons.js';
import type { CheckedOptions } from './options.js';

/** A path of the mount and what is there. */
export interface PathFacts {
  readonly subject: Subject;
  readonly found: Found;
  /** Whether the path's last component is a symbolic link. */
  readonly isSymlink: boolean;
  readonly isOnOverlay: boolean;
  readonly isReadOnly: boolean;
}

export interface MountFacts {
  /** Target, lowers, upper, work. */
  readonly paths: readonly PathFacts[];
  /** From the directory itself up to the root. */
  readonly upperAncestors: readonly Found[];
  readonly workAncestors: readonly Found[];
  /** Whether the workdir holds the mark of a volatile mount, or of a feature that the kernel does not know. */
  readonly hasIncompatible: boolean;
}

/** As far up as is looked; a look above the root answers the root. */
const MAX_ANCESTORS = 64;

interface Look {
  readonly plan: Plan;
  readonly facts: (outputs: Outputs | StepFailure) => MountFacts;
}

/** The paths of a mount, in the order in which they are opened. */
function subjects({ target, lowerdir, datadir, upperdir, workdir }: CheckedOptions): Subject[] {
  const list: Subject[] = [{ role: 'target', path: target }];
  lowerdir.forEach((path, index) => {
    list.push({ role: 'lowerdir', index, path });
  });
  datadir.forEach((path, index) => {
    list.push({ role: 'datadir', index, path });
  });
  if (upperdir !== undefined) list.push({ role: 'upperdir', path: upperdir });
  if (workdir !== undefined) list.push({ role: 'workdir', path: workdir });
  return list;
}

function addGuard(plan: Plan, path: Path, flags: number, type: number): Step {
  return plan.stepOf(plan.add(calls.statfs, [path, flags, type], { output: 0, tolerate: 'any' }));
}

/** The look that a failure asks for. */
export function lookAfter(options: CheckedOptions): Look {
  const plan = new Plan();
  const mask = k.STATX_INO | k.STATX_MNT_ID;
  const looks = subjects(options).map((subject) => ({
    subject,
    followed: addLook(plan, subject.path, { mask }),
    itself: addLook(plan, withoutTrailingSlashes(subject.path), { flags: k.AT_SYMLINK_NOFOLLOW }),
    onOverlay: addGuard(plan, subject.path, 0, k.OVERLAYFS_SUPER_MAGIC),
    readOnly: addGuard(plan, subject.path, k.ST_RDONLY, 0),
  }));
  const incompatible = options.workdir && addLook(plan, joinPath(options.workdir, 'work/incompat'));
  const ancestors = (path: Path | undefined): Step[] =>
    path === undefined
      ? []
      : Array.from({ length: MAX_ANCESTORS }, (_, level) =>
          addLook(plan, joinPath(path, `.${'/..'.repeat(level)}`), { mask }),
        );
  const upper = ancestors(options.upperdir);
  const work = ancestors(options.workdir);
  return {
    plan,
    facts: (outputs) => ({
      paths: looks.map(({ subject, followed, itself, onOverlay, readOnly }) => ({
        subject,
        found: readLook(followed, outputs),
        isSymlink: readLook(itself, outputs).type === k.S_IFLNK,
        isOnOverlay: !(outputs instanceof StepFailure) && outputs.result(onOverlay) === -e.EPERM,
        isReadOnly: !(outputs instanceof StepFailure) && outputs.result(readOnly) === -e.EROFS,
      })),
      hasIncompatible: incompatible !== undefined && incompatible !== '' && readLook(incompatible, outputs).errno === 0,
      upperAncestors: upper.map((step) => readLook(step, outputs)),
      workAncestors: work.map((step) => readLook(step, outputs)),
    }),
  };
}

interface Case {
  readonly options: CheckedOptions;
  readonly failure: StepFailure;
  readonly facts: MountFacts;
  readonly log: string;
}

type Verdict = Pick<OverlayErrorFields, 'reason' | 'what' | 'hint' | 'path' | 'dest'> & { readonly errno?: number };
type Rule = (found: Case) => Verdict | undefined;

const roleNames = {
  lowerdir: 'lower',
  datadir: 'lower',
  upperdir: 'upper',
  workdir: 'work',
  source: 'path',
  target: 'target',
  path: 'path',
  namespace: 'path',
} as const;

/** `the lowerdir '/a'`, and of several which. */
function nameOf(subject: Subject, options: CheckedOptions): string {
  const which =
    (subject.role === 'lowerdir' && options.lowerdir.length > 1) ||
    (subject.role === 'datadir' && options.datadir.length > 1)
      ? `[${subject.index}]`
      : '';
  return `the ${subject.role}${which} ${quotePath(subject.path)}`;
}

/** The path that the failed step is about; where one step takes all of them, the first that is not right. */
function findCulprit({ failure: { step }, facts }: Case): PathFacts | undefined {
  const subject = step?.options.subject;
  if (subject !== undefined) {
    return facts.paths.find((path) => path.subject.role === subject.role && path.subject.index === subject.index);
  }
  if (step?.call !== calls.mount) return undefined;
  return facts.paths.find(({ found }) => found.errno !== 0 || found.type !== k.S_IFDIR);
}

const outOfDescriptors: Rule = ({ options, failure: { step, errno } }) => {
  if (errno !== e.EMFILE && errno !== e.ENFILE) return undefined;
  const subject = step?.options.subject;
  const purpose = subject === undefined ? step?.call.name : `open ${nameOf(subject, options)}`;
  return {
    reason: 'out-of-descriptors',
    what: `no descriptor is left to ${purpose}`,
    path: pathString(subject?.path ?? options.target),
  };
};

/** A path could not be opened. */
const unreachable: Rule = (failed) => {
  const { options, failure } = failed;
  const { step } = failure;
  const culprit = findCulprit(failed);
  if (
    culprit === undefined ||
    (step?.call !== calls.openat2 && step?.call !== calls.statx && step?.call !== calls.mount)
  ) {
    return undefined;
  }
  const { subject, found, isSymlink } = culprit;
  const errno = step.call === calls.mount ? found.errno || e.ENOTDIR : failure.errno;
  const role = roleNames[subject.role];
  const name = nameOf(subject, options);
  const path = pathString(subject.path);
  if (subject.role === 'target' && isSymlink) {
    return { reason: 'target-symlink', what: `${name} is a symbolic link`, path };
  }
  if (errno === e.ENOENT) {
    const dangling = isSymlink ? ': it is a symbolic link that leads nowhere' : '';
    return { errno, reason: `${role}-missing` as Reason, what: `${name} does not exist${dangling}`, path };
  }
  if (errno === e.ENOTDIR && found.errno === 0 && found.type !== k.S_IFDIR) {
    return { errno, reason: `${role}-not-directory` as Reason, what: `${name} is not a directory`, path };
  }
  const causes: Readonly<Record<number, string>> = {
    [e.ENOTDIR]: 'a component of it is not a directory',
    [e.EACCES]: 'this process may not search a directory on the way',
    [e.ELOOP]: 'its symbolic links lead in a circle, or are too many',
    [e.ENAMETOOLONG]: 'it, or a name in it, is too long',
  };
  const cause = causes[errno];
  if (cause === undefined) return undefined;
  return { errno, reason: 'path-inaccessible', what: `${name} cannot be reached: ${cause}`, path };
};

/** A missing directory could not be made. */
const notCreated: Rule = ({ failure: { step, errno } }) => {
  if (step?.call !== calls.mkdirat) return undefined;
  const path = step.args[1] as Path;
  const reason: Reason =
    errno === e.EROFS ? 'read-only' : errno === e.ENOSPC || errno === e.EDQUOT ? 'out-of-space' : 'permission-denied';
  const known =
    errno === e.EROFS || errno === e.ENOSPC || errno === e.EDQUOT || errno === e.EACCES || errno === e.EPERM;
  return {
    reason: known ? reason : 'path-inaccessible',
    what: `the directory ${quotePath(path)} could not be made`,
    path: pathString(path),
  };
};

const targetMounted: Rule = ({ options, failure: { step, errno } }) => {
  if (step?.call !== calls.statx || errno !== e.EBUSY) return undefined;
  return {
    reason: 'target-mounted',
    what: `the target ${quotePath(options.target)} is a mount point already`,
    path: pathString(options.target),
  };
};

const noPrivilege: Rule = ({ options, failure: { step, errno } }) => {
  if (errno !== e.EPERM || (step?.call !== calls.fsopen && step?.call !== calls.mount)) return undefined;
  return {
    reason: 'no-privilege',
    what: `this process may not mount at ${quotePath(options.target)}: it lacks CAP_SYS_ADMIN in its user namespace`,
  };
};

const noOverlay: Rule = ({ failure: { errno } }) => {
  if (errno !== e.ENODEV) return undefined;
  return { reason: 'overlay-unavailable', what: 'this kernel has no overlay file system' };
};

const readOnlySuperblock: Rule = ({ options, failure: { step, errno } }) => {
  if (
    (step?.call !== calls.fstatfs && step?.call !== calls.statfs) ||
    errno !== e.EROFS ||
    options.workdir === undefined
  )
    return undefined;
  const work = quotePath(options.workdir);
  return {
    reason: 'mounted-read-only',
    what: `the kernel could not make its directory in the workdir ${work}, and would have mounted read-only`,
    hint: `remove what is in ${work}, and make it writable for the mounting user`,
    path: pathString(options.workdir),
  };
};

/** The kernel said something about a layer or an option. */
const saidByKernel: Rule = ({ options, failure: { step }, log }) => {
  const subject = step?.options.subject;
  if (subject !== undefined && /is read-only/.test(log)) {
    return {
      reason: 'upper-read-only',
      what: `${nameOf(subject, options)} is on a read-only file system`,
      path: pathString(subject.path),
    };
  }
  if (subject !== undefined && /not supported/.test(log)) {
    return {
      reason: 'upper-unsupported',
      what: `the file system of ${nameOf(subject, options)} cannot hold this layer`,
      path: pathString(subject.path),
    };
  }
  if (/Unknown parameter|Bad value|Unexpected value/.test(log)) {
    const [key, value] = [step?.args[2], step?.args[3]];
    return {
      reason: 'option-refused',
      what: `this kernel refuses the option ${value === null ? key : `${key}=${value}`}`,
    };
  }
  return undefined;
};

const isSame = (a: Found, b: Found): boolean =>
  a.errno === 0 && b.errno === 0 && a.device === b.device && a.inode === b.inode;

const isCreation = ({ step }: StepFailure): boolean =>
  step?.call === calls.mount || (step?.call === calls.fsconfig && step.args[1] === k.FSCONFIG_CMD_CREATE);

/** upperdir and workdir do not go together. */
const upperAndWork: Rule = ({ options, failure, facts }) => {
  const [upper] = facts.upperAncestors;
  const [work] = facts.workAncestors;
  const { upperdir, workdir } = options;
  if (!isCreation(failure) || failure.errno !== e.EINVAL) return undefined;
  if (upper === undefined || work === undefined || upperdir === undefined || workdir === undefined) return undefined;
  const paths = { path: pathString(workdir), dest: pathString(upperdir) };
  const [u, w] = [`the upperdir ${quotePath(upperdir)}`, `the workdir ${quotePath(workdir)}`];
  if (isSame(upper, work)) return { reason: 'work-inside-upper', what: `${u} and ${w} are one directory`, ...paths };
  if (facts.workAncestors.some((directory) => isSame(directory, upper))) {
    return { reason: 'work-inside-upper', what: `${w} is inside ${u}`, ...paths };
  }
  if (facts.upperAncestors.some((directory) => isSame(directory, work))) {
    return { reason: 'work-inside-upper', what: `${u} is inside ${w}`, ...paths };
  }
  if (upper.device !== work.device) {
    return { reason: 'work-on-other-mount', what: `${w} is on another file system than ${u}`, ...paths };
  }
  if (upper.mountId !== work.mountId) {
    return {
      reason: 'work-on-other-mount',
      what: `${w} is reached through another mount than ${u}, though the file system is the same`,
      ...paths,
    };
  }
  return undefined;
};

/** What the layers are on, and what an earlier mount has left. */
const layersAndLeftovers: Rule = ({ options, failure, facts }) => {
  // 5.10 says EROFS where others say EINVAL.
  if (!isCreation(failure) || (failure.errno !== e.EINVAL && failure.errno !== e.EROFS)) return undefined;
  const isUpper = ({ subject: { role } }: PathFacts) => role === 'upperdir' || role === 'workdir';
  const readOnly = facts.paths.find((path) => isUpper(path) && path.isReadOnly);
  if (readOnly !== undefined) {
    const { subject } = readOnly;
    const what = `${nameOf(subject, options)} is on a read-only file system`;
    return { reason: 'upper-read-only', what, path: pathString(subject.path) };
  }
  const onOverlay = facts.paths.find((path) => isUpper(path) && path.isOnOverlay);
  if (onOverlay !== undefined) {
    const { subject } = onOverlay;
    const what = `the file system of ${nameOf(subject, options)} cannot hold this layer: it is an overlay itself`;
    return { reason: 'upper-unsupported', what, path: pathString(subject.path) };
  }
  if (facts.hasIncompatible && options.workdir !== undefined) {
    const mark = quotePath(joinPath(options.workdir, 'work/incompat'));
    return {
      reason: 'volatile-leftover',
      what: `the upper was mounted volatile, or by a kernel with a feature unknown to this one: ${mark} says so`,
      hint: `if the upper's data is known to be whole (synced since, and no crash between), remove ${mark}; else start with a fresh upperdir and workdir`,
      path: pathString(options.workdir),
    };
  }
  const deep = facts.paths.find((path) => path.subject.role !== 'target' && path.isOnOverlay);
  if (deep !== undefined) {
    const { subject } = deep;
    const what = `${nameOf(subject, options)} is on an overlay, and overlays are stacked no more than two deep`;
    return { reason: 'too-deep', what, path: pathString(subject.path) };
  }
  return undefined;
};

/** What the errno alone says, when it comes from the making of the superblock. */
const byErrno: Rule = ({ options, failure }) => {
  if (!isCreation(failure)) return undefined;
  const { errno } = failure;
  const upper = options.upperdir;
  if (errno === e.ELOOP) {
    return { reason: 'layers-overlap', what: 'two layers are the same directory, or one is inside another' };
  }
  if (errno === e.EBUSY && upper !== undefined) {
    return {
      reason: 'upper-in-use',
      what: `the upperdir ${quotePath(upper)} or its workdir is in use by another overlay`,
      path: pathString(upper),
    };
  }
  if (errno === e.ESTALE && upper !== undefined) {
    return {
      reason: 'stale',
      what: `the index of the upperdir ${quotePath(upper)} was made with other layers`,
      path: pathString(upper),
    };
  }
  if (errno === e.ENOSPC || errno === e.EDQUOT)
    return { reason: 'out-of-space', what: 'no room is left for the mount' };
  return undefined;
};

const rules: readonly Rule[] = [
  outOfDescriptors,
  unreachable,
  notCreated,
  targetMounted,
  noPrivilege,
  noOverlay,
  readOnlySuperblock,
  saidByKernel,
  upperAndWork,
  layersAndLeftovers,
  byErrno,
];

/** The error for a failed mount. Pure. */
export function explainMount(options: CheckedOptions, failure: StepFailure, facts: MountFacts): OverlayError {
  const found: Case = { options, failure, facts, log: failure.kernel.join('\n') };
  let verdict: Verdict | undefined;
  for (const rule of rules) {
    verdict = rule(found);
    if (verdict !== undefined) break;
  }
  const { step, errno, undoErrno } = failure;
  const call = step === undefined ? 'the call' : formatStep(failure.plan, step);
  verdict ??= {
    reason: 'unexplained',
    what: `the kernel refused the mount at ${quotePath(options.target)}: ${call} failed, and nothing known explains it`,
  };
  return new OverlayError({
    errno,
    path: pathString(options.target),
    ...verdict,
    // The errno of a guard is ours, not a call's.
    syscall: step === undefined || guards.has(step.call) ? undefined : syscallOf(step),
    kernel: failure.kernel,
    leftover: undoErrno === 0 ? undefined : `what was made for it could not all be removed (errno ${undoErrno})`,
  });
}

const guards: ReadonlySet<Call> = new Set([calls.statx, calls.statfs, calls.fstatfs]);

function syscallOf(step: Step): string {
  return step.call === calls.mkdirat ? 'mkdir' : step.call === calls.openat2 ? 'open' : step.call.name;
}
