/**
 * Rules about the workdir and free space: why the kernel could not make its directory in the workdir, and what it found
 * there.
 */
import * as e from '../errnos.js';
import { calls } from '../kernel/calls.js';
import { joinPath, pathString, quotePath } from '../paths.js';
import { either, option, type Text, text } from '../text.js';
import type { PathFacts } from './facts.js';
import {
  CAP_DAC_OVERRIDE,
  type Cause,
  cameOutReadOnly,
  findRole,
  hasCapability,
  isCreation,
  isReadOnly,
  isUpper,
  nameOf,
  outOfRoom,
  pathField,
  place,
  type Rule,
  type Scene,
} from './rule.js';

/** The consequence for the mount. The message about a mount that was made says itself that it is read-only. */
const consequence: Text = { before: ', so the kernel would mount read-only', after: '' };

const REFUSES_CHANGES: Text = {
  before: 'the kernel would mount, but refuse every change',
  after: 'the kernel refuses every change',
};

/** Makes a rule about the workdir of a mount that came out read-only. */
const ofWork = (judge: (work: PathFacts, name: string, scene: Scene) => Cause | undefined): Rule => ({
  when: cameOutReadOnly,
  find(scene) {
    const work = findRole(scene.facts, 'workdir');
    // Before a mount, a read-only superblock that the caller asks for is not a fault.
    const isAsked = scene.failure === undefined && scene.options.readonlySuperblock;
    if (work === undefined || isAsked) return undefined;
    const verdict = judge(work, nameOf(work.subject, scene.options), scene);
    return verdict && { errno: e.EROFS, path: pathString(work.subject.path), ...verdict };
  },
  foresees: true,
});

/** Limits a rule to failures: its cause is certain only after one. */
const withoutForesight = ({ when, find }: Rule): Rule => ({ when, find });

const removed = ofWork(({ found }, name) =>
  found.errno === 0 && found.links === 0
    ? { reason: 'work-removed', what: text`${name} has been removed, and nothing can be created in it${consequence}` }
    : undefined,
);

const leftover = ofWork((_, name, { facts: { work } }) =>
  work.leftover === undefined
    ? undefined
    : {
        reason: 'work-leftovers',
        what: text`${name} contains ${quotePath(work.leftover)}, which the kernel does not remove${consequence}`,
        hint: `remove ${quotePath(work.leftover)} with its contents, or use an empty workdir`,
        dest: pathString(work.leftover),
      },
);

const mountedInside: Rule = withoutForesight(
  ofWork(({ mount }, name) =>
    mount?.inside === undefined
      ? undefined
      : {
          reason: 'mount-inside',
          what: text`something is mounted in ${name}, at ${quotePath(mount.inside)}${consequence}`,
          dest: pathString(mount.inside),
        },
  ),
);

const idmapped = ofWork(({ mount, found, writeErrno }, name) =>
  mount?.isIdmapped && found.errno === 0 && (writeErrno === e.EOVERFLOW || writeErrno === e.EACCES)
    ? {
        reason: 'work-idmapped',
        what: text`${name} is on an idmapped mount that has no id for the mounting user${consequence}`,
      }
    : undefined,
);

const immutable = ofWork(({ found }, name) =>
  found.isImmutable
    ? {
        reason: 'work-immutable',
        what: text`${name} is immutable or append-only${consequence}`,
      }
    : undefined,
);

/** The kernel cannot remove what an earlier mount has left in the workdir. */
const immutableInside: Rule = withoutForesight(
  ofWork((_, name, { facts: { work } }) =>
    work.immutable === undefined
      ? undefined
      : {
          reason: 'work-immutable',
          what: text`${name} contains ${quotePath(work.immutable)}, which is immutable or append-only${consequence}`,
          hint: `remove the attribute: chattr -ia ${quotePath(work.immutable)}`,
          dest: pathString(work.immutable),
        },
  ),
);

/** Returns a hint if the process lacks CAP_DAC_OVERRIDE: then a change of the mode is not enough. */
const writableHint = ({ facts: { process } }: Scene): string | undefined =>
  hasCapability(process, CAP_DAC_OVERRIDE)
    ? undefined
    : 'give the process CAP_DAC_OVERRIDE, which it needs to use a workdir';

const notWritable = ofWork(({ writeErrno }, name, scene) =>
  writeErrno === e.EACCES || writeErrno === e.EPERM
    ? {
        reason: 'work-not-writable',
        what: text`the mounting user may not write to ${name}${consequence}`,
        hint: writableHint(scene),
      }
    : undefined,
);

const room = ofWork((work, _, scene) => outOfRoom(work, scene));

/** The library has repeated the kernel's attempt to make a directory, and it failed. */
const attempted: Rule = withoutForesight(
  ofWork((_, name, { facts: { work } }) => {
    const tried = `no directory can be created in ${name}`;
    if (work.attempt === e.EDQUOT) {
      return { reason: 'out-of-space', what: text`${tried}: a quota is used up${consequence}`, hint: QUOTA_HINT };
    }
    if (work.attempt === e.EMLINK) {
      return {
        reason: 'too-many-subdirectories',
        what: text`${tried}: it holds as many subdirectories as its file system allows${consequence}`,
        hint: either('use an empty workdir', text`pass ${option('readonlySuperblock', true)} for a read-only mount`),
      };
    }
    return work.attempt === e.ENOSPC
      ? { reason: 'out-of-space', what: text`${tried}: its file system has no space for it${consequence}` }
      : undefined;
  }),
);

const QUOTA_HINT = 'remove files that count towards the quota, or have it raised';

/** The workdir is on an idmapped mount, and nothing else explains why the kernel could not write to it. */
const perhapsIdmapped: Rule = {
  when: cameOutReadOnly,
  find({ options, facts }) {
    const work = findRole(facts, 'workdir');
    if (!work?.mount?.isIdmapped) return undefined;
    return {
      reason: 'work-idmapped',
      what: text`${nameOf(work.subject, options)} is on an idmapped mount, which does not let the mounting user create a directory there${consequence}`,
      path: pathString(work.subject.path),
    };
  },
};

const directoryNotMade: Rule = {
  when: cameOutReadOnly,
  find({ options, facts }) {
    const { workdir } = options;
    if (workdir === undefined) return undefined;
    const work = quotePath(workdir);
    const { attempt } = facts.work;
    const tried = attempt === undefined ? '' : `, and neither can this process (${e.describeErrno(attempt)[1]})`;
    return {
      reason: 'mounted-read-only',
      what: text`the kernel could not create its directory in the workdir ${work}${tried}${consequence}`,
      hint: `empty ${work}, and make it writable for the mounting user`,
      path: pathString(workdir),
    };
  },
};

const upperUnchangeable: Rule = {
  when: ({ guard }) => guard === 'upperdir-is-immutable',
  find({ options: { upperdir } }) {
    if (upperdir === undefined) return undefined;
    return {
      errno: e.EPERM,
      reason: 'upper-not-writable',
      what: text`the upperdir ${quotePath(upperdir)} is immutable or append-only: ${REFUSES_CHANGES}`,
      hint: 'remove the attribute: chattr -ia',
      path: pathString(upperdir),
    };
  },
};

/** Finds the same fault before a mount. */
const upperFrozen: Rule = {
  when: () => false,
  find(scene) {
    const isFrozen = findRole(scene.facts, 'upperdir')?.found.isImmutable === true;
    return isFrozen && !scene.options.readonlySuperblock ? upperUnchangeable.find(scene) : undefined;
  },
  foresees: true,
};

const upperNotWritable: Rule = {
  when: (failure) =>
    failure.guard === 'upperdir-is-not-writable' || (isCreation(failure) && failure.errno === e.EACCES),
  find(scene) {
    const { options, facts, failure } = scene;
    const upper = findRole(facts, 'upperdir');
    if (upper === undefined) return undefined;
    const errno = failure?.guard === 'upperdir-is-not-writable' ? failure.errno : upper.writeErrno;
    if (failure === undefined && options.readonlySuperblock && errno !== e.EROFS) return undefined;
    if (![e.EACCES, e.EPERM, e.EROFS].includes(errno)) return undefined;
    const name = nameOf(upper.subject, options);
    const path = pathString(upper.subject.path);
    if (errno === e.EROFS) return { errno: e.EINVAL, ...isReadOnly(name, upper) };
    return {
      errno,
      reason: 'upper-not-writable',
      what: text`the mounting user may not write to ${name}: ${REFUSES_CHANGES}`,
      hint: writableHint(scene),
      path,
    };
  },
  foresees: true,
};

/** An earlier mount has left a mark in the workdir. */
const incompatible: Rule = {
  when: (failure) => isCreation(failure) && failure.errno === e.EINVAL,
  find({ options, facts: { work } }) {
    const { workdir } = options;
    const [name] = work.incompatible;
    if (workdir === undefined || name === undefined) return undefined;
    const mark = quotePath(joinPath(workdir, 'work/incompat'));
    const path = pathString(workdir);
    const unknown = work.incompatible.find((feature) => feature !== 'volatile');
    if (unknown !== undefined) {
      return {
        reason: 'feature-unknown',
        what: `a kernel with the feature ${quotePath(unknown)}, which this kernel does not know, has mounted the upperdir: see ${mark}`,
        path,
      };
    }
    return {
      reason: 'volatile-leftover',
      what: `the upperdir was mounted volatile, so its data may not be complete on the disk: see ${mark}`,
      hint: `if you know that the data is complete (synced since, and no crash in between), remove ${mark}; otherwise start with a fresh upperdir and workdir`,
      path,
    };
  },
  foresees: true,
};

/** `index` or `nfsExport` is on, so the kernel reads the existing index, which is not a valid one. */
const strayIndex: Rule = {
  when: (failure) => isCreation(failure) && (failure.errno === e.EINVAL || failure.errno === e.ENOTDIR),
  find({ options, facts: { work } }) {
    const { workdir, overlay } = options;
    const stray = work.strayIndex;
    if (workdir === undefined || stray === undefined) return undefined;
    if (!overlay.some(({ kernel, value }) => (kernel === 'index' || kernel === 'nfs_export') && value === 'on')) {
      return undefined;
    }
    const path = quotePath(stray);
    return {
      reason: 'index-stray',
      what: `the workdir ${quotePath(workdir)} contains ${path}, which is not an index of overlayfs`,
      hint: either(`remove ${path}`, text`leave ${option('index')} and ${option('nfsExport')} out`),
      path: pathString(workdir),
      dest: pathString(stray),
    };
  },
  foresees: true,
};

const noRoom: Rule = {
  when: (failure) => isCreation(failure) && (failure.errno === e.ENOSPC || failure.errno === e.EDQUOT),
  find(scene) {
    const { facts, failure, options } = scene;
    for (const path of facts.paths.filter(isUpper)) {
      const verdict = outOfRoom(path, scene);
      if (verdict !== undefined) return verdict;
    }
    const upper = options.upperdir === undefined ? '' : ` in ${quotePath(options.upperdir)} or its workdir`;
    return {
      reason: 'out-of-space',
      what: `no space is left for the mount${upper}${failure?.errno === e.EDQUOT ? ': a quota is used up' : ''}`,
    };
  },
};

/** A table does not show all mounts: it lacks the first one of a namespace, and those outside of a changed root. */
const UNSHOWN = 64;

const tooManyMounts: Rule = {
  when: ({ step, errno }) => errno === e.ENOSPC && (step?.call === calls.move_mount || step?.call === calls.mount),
  find({ options, facts: { mountCount, mountMax }, failure }) {
    const isAttaching = failure?.step?.call === calls.move_mount;
    if (!isAttaching && (mountMax === 0 || mountCount < mountMax - UNSHOWN)) return undefined;
    return {
      reason: 'too-many-mounts',
      what: `the mount namespace has reached its limit of mounts${place(options)}: it has ${mountCount}, and fs.mount-max is ${mountMax}`,
      ...pathField(options.target),
    };
  },
  foresees: true,
};

const ioError: Rule = {
  when: ({ errno }) => errno === e.EIO || errno === e.EUCLEAN,
  find({ options, failure }) {
    const isVolatile = options.overlay.some(({ name }) => name === 'volatile');
    const subject = failure?.step?.options.subject;
    const where = subject === undefined ? 'of a layer' : `of ${nameOf(subject, options)}`;
    return {
      reason: 'io-error',
      what: `the file system ${where} reports ${failure?.errno === e.EUCLEAN ? 'that it is damaged' : 'an I/O error'}${isVolatile ? ', or the upperdir has an earlier one that was not yet reported' : ''}`,
      ...(isVolatile && {
        hint: 'sync the file system of the upperdir, read the kernel log (dmesg), and try again',
      }),
    };
  },
};

/** The rules in the order in which the kernel would meet the faults: a removed directory is not writable either. */
export const workRules: readonly Rule[] = [
  upperUnchangeable,
  upperFrozen,
  upperNotWritable,
  removed,
  immutable,
  idmapped,
  notWritable,
  room,
  leftover,
  mountedInside,
  immutableInside,
  attempted,
  perhapsIdmapped,
  directoryNotMade,
  tooManyMounts,
  noRoom,
  ioError,
];

export const leftoverRules: readonly Rule[] = [incompatible, strayIndex];
