/**
 * Why a mount failed. After a failure, and only then: facts about the paths are gathered in one look, and
 * ordered pure functions over the failure and these facts choose the reason.
 */
import { OverlayError, type OverlayErrorFields } from '../errors.js';
import * as k from '../kernel/constants.js';
import * as e from '../kernel/errnos.js';
import { formatStep } from '../kernel/format.js';
import { type Outputs, StepFailure, STATX_OUTPUT, statxWord } from '../kernel/perform.js';
import { Plan, type Step, type Subject } from '../kernel/plan.js';
import { type Path, pathString, quotePath } from '../paths.js';
import type { Reason } from '../reasons.js';
import type { CheckedOptions } from './options.js';

/** What a path is found to be. */
export interface PathFacts {
  /** 0, or the errno with which looking failed. */
  readonly errno: number;
  readonly isDirectory: boolean;
  readonly device: bigint;
  readonly inode: bigint;
  readonly mountId: bigint;
}

export interface MountFacts {
  /** The path that the failing step is about, its last component not followed. */
  readonly isSymlink: boolean;
  readonly isDirectory: boolean;
  readonly exists: boolean;
  readonly upper: PathFacts | undefined;
  readonly work: PathFacts | undefined;
  /** From the directory itself up to the root. */
  readonly upperAncestors: readonly PathFacts[];
  readonly workAncestors: readonly PathFacts[];
}

/** Deeper than any path that can be named: each level takes two bytes. A look at the root answers the root. */
const MAX_ANCESTORS = 64;

interface Look {
  readonly plan: Plan;
  readonly facts: (outputs: Outputs | StepFailure) => MountFacts;
}

const nothing: PathFacts = { errno: e.ENOENT, isDirectory: false, device: 0n, inode: 0n, mountId: 0n };

/** The look that a failure asks for. */
export function lookAfter(options: CheckedOptions, failure: StepFailure): Look {
  const plan = new Plan();
  const look = (path: Path, flags: number): Step => {
    const mask = k.STATX_TYPE | k.STATX_INO | k.STATX_MNT_ID;
    const args = [k.AT_FDCWD, path, flags | k.AT_STATX_DONT_SYNC, mask, 0, null, 0];
    return plan.stepOf(plan.add('statx', args, { output: STATX_OUTPUT, tolerate: 'any' }));
  };
  const ancestors = (path: Path | undefined): Step[] => {
    if (path === undefined) return [];
    const steps: Step[] = [];
    for (let level = 0; level < MAX_ANCESTORS; level++) {
      steps.push(look(Buffer.concat([Buffer.from(path), Buffer.from('/..'.repeat(level))]), 0));
    }
    return steps;
  };
  const subject = failure.step?.options.subject;
  const itself = subject && look(subject.path, k.AT_SYMLINK_NOFOLLOW);
  const followed = subject && look(subject.path, 0);
  const upper = ancestors(options.upperdir);
  const work = ancestors(options.workdir);
  return {
    plan,
    facts(outputs) {
      const read = (step: Step | undefined): PathFacts => {
        if (step === undefined || outputs instanceof StepFailure) return nothing;
        const result = outputs.result(step);
        if (result < 0) return { ...nothing, errno: -result };
        return {
          errno: 0,
          isDirectory: (Number(outputs.word(step, statxWord.mode)) & k.S_IFMT) === k.S_IFDIR,
          device: outputs.word(step, statxWord.dev),
          inode: outputs.word(step, statxWord.ino),
          mountId: outputs.word(step, statxWord.mountId),
        };
      };
      const isLink =
        itself !== undefined &&
        !(outputs instanceof StepFailure) &&
        outputs.result(itself) >= 0 &&
        (Number(outputs.word(itself, statxWord.mode)) & k.S_IFMT) === k.S_IFLNK;
      return {
        isSymlink: isLink,
        exists: read(followed).errno === 0,
        isDirectory: read(followed).isDirectory,
        upper: options.upperdir === undefined ? undefined : read(upper[0]),
        work: options.workdir === undefined ? undefined : read(work[0]),
        upperAncestors: upper.map(read),
        workAncestors: work.map(read),
      };
    },
  };
}

interface Case {
  readonly options: CheckedOptions;
  readonly failure: StepFailure;
  readonly facts: MountFacts;
  readonly log: string;
}

type Verdict = Pick<OverlayErrorFields, 'reason' | 'what' | 'hint' | 'path' | 'dest'>;
type Rule = (found: Case) => Verdict | undefined;

const roleNames = { lowerdir: 'lower', upperdir: 'upper', workdir: 'work', target: 'target', path: 'path' } as const;

/** `the lowerdir '/a'`, and of several which. */
function nameOf(subject: Subject, options: CheckedOptions): string {
  const which = subject.role === 'lowerdir' && options.lowerdir.length > 1 ? `[${subject.index}]` : '';
  return `the ${subject.role}${which} ${quotePath(subject.path)}`;
}

/** A path could not be opened. */
const unreachable: Rule = ({ options, failure: { step, errno }, facts }) => {
  const subject = step?.options.subject;
  if (step?.call !== 'openat2' || subject === undefined) return undefined;
  const role = roleNames[subject.role];
  const name = nameOf(subject, options);
  const path = pathString(subject.path);
  if (errno === e.EMFILE || errno === e.ENFILE) {
    return { reason: 'out-of-descriptors', what: `no descriptor is left to open ${name}`, path };
  }
  if (subject.role === 'target' && facts.isSymlink) {
    return { reason: 'target-symlink', what: `${name} is a symbolic link`, path };
  }
  if (errno === e.ENOENT) {
    const dangling = facts.isSymlink ? ', but a symbolic link that leads nowhere is there' : '';
    return { reason: `${role}-missing` as Reason, what: `${name} does not exist${dangling}`, path };
  }
  if (errno === e.ENOTDIR && facts.exists && !facts.isDirectory) {
    return { reason: `${role}-not-directory` as Reason, what: `${name} is not a directory`, path };
  }
  const causes: Readonly<Record<number, string>> = {
    [e.ENOTDIR]: 'a component of it is not a directory',
    [e.EACCES]: 'this process may not search a directory on the way',
    [e.ELOOP]: 'its symbolic links lead in a circle, or are too many',
    [e.ENAMETOOLONG]: 'it, or a name in it, is too long',
  };
  const cause = causes[errno];
  if (cause === undefined) return undefined;
  return { reason: 'path-inaccessible', what: `${name} cannot be reached: ${cause}`, path };
};

/** A missing directory could not be made. */
const notCreated: Rule = ({ failure: { step, errno } }) => {
  if (step?.call !== 'mkdirat') return undefined;
  const path = step.args[1] as Path;
  const reason: Reason = errno === e.EROFS ? 'read-only' : errno === e.ENOSPC ? 'out-of-space' : 'permission-denied';
  const known = errno === e.EROFS || errno === e.ENOSPC || errno === e.EACCES || errno === e.EPERM;
  return {
    reason: known ? reason : 'path-inaccessible',
    what: `the directory ${quotePath(path)} could not be made`,
    path: pathString(path),
  };
};

const targetMounted: Rule = ({ options, failure: { step, errno } }) => {
  if (step?.call !== 'statx' || errno !== e.EBUSY) return undefined;
  return {
    reason: 'target-mounted',
    what: `the target ${quotePath(options.target)} is a mount point already`,
    path: pathString(options.target),
  };
};

const noPrivilege: Rule = ({ options, failure: { step, errno } }) => {
  if (errno !== e.EPERM || (step?.call !== 'fsopen' && step?.call !== 'mount')) return undefined;
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
  if (step?.call !== 'fstatfs' || errno !== e.EROFS || options.workdir === undefined) return undefined;
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

const isSame = (a: PathFacts, b: PathFacts): boolean =>
  a.errno === 0 && b.errno === 0 && a.device === b.device && a.inode === b.inode;

const isCreation = ({ step }: StepFailure): boolean =>
  step?.call === 'mount' || (step?.call === 'fsconfig' && step.args[1] === k.FSCONFIG_CMD_CREATE);

/** upperdir and workdir do not go together. */
const upperAndWork: Rule = ({ options, failure, facts }) => {
  const { upper, work } = facts;
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
  if (errno === e.ENOSPC) return { reason: 'out-of-space', what: 'no room is left for the mount' };
  return undefined;
};

const rules: readonly Rule[] = [
  unreachable,
  notCreated,
  targetMounted,
  noPrivilege,
  noOverlay,
  readOnlySuperblock,
  saidByKernel,
  upperAndWork,
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
  const call = step === undefined ? 'starting a thread' : formatStep(step);
  verdict ??= {
    reason: 'unexplained',
    what: `the kernel refused the mount at ${quotePath(options.target)}: ${call} failed, and nothing known explains it`,
  };
  return new OverlayError({
    errno,
    path: pathString(options.target),
    ...verdict,
    // The errno of a guard is ours, not a call's.
    syscall: step === undefined || step.call === 'statx' || step.call === 'fstatfs' ? undefined : syscallOf(step),
    kernel: failure.kernel,
    leftover: undoErrno === 0 ? undefined : `what was made for it could not all be removed (errno ${undoErrno})`,
  });
}

function syscallOf(step: Step): string {
  return step.call === 'mkdirat' ? 'mkdir' : step.call === 'openat2' ? 'open' : step.call;
}
