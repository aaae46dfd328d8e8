/** Rules about single paths: their file types, and whether they can be reached. */
import * as e from '../errnos.js';
import { type Call, calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import type { StepFailure } from '../kernel/perform.js';
import { goesByDescriptors, isAtOrBelow, type Path, pathString, quotePath } from '../paths.js';
import type { Reason } from '../reasons.js';
import { explainErrno, reservedTarget } from '../verdicts.js';
import type { PathFacts } from './facts.js';
import {
  type Cause,
  cameOutReadOnly,
  findSubject,
  isCreation,
  isLayer,
  isReadOnly,
  isUpper,
  nameOf,
  outOfRoom,
  pathField,
  place,
  type Rule,
  type Scene,
  show,
} from './rule.js';

const roleNames = {
  lowerdir: 'lower',
  datadir: 'lower',
  upperdir: 'upper',
  workdir: 'work',
  target: 'target',
  source: 'path',
  path: 'path',
  namespace: 'path',
} as const;

function judge({ options }: Scene, { subject, found, isSymlink }: PathFacts, errno: number): Cause | undefined {
  const role = roleNames[subject.role];
  const name = nameOf(subject, options);
  const path = pathString(subject.path);
  if (subject.role === 'target' && isSymlink) {
    return { reason: 'target-symlink', what: `${name} is a symbolic link`, path };
  }
  if (errno === e.ENOENT && isRemoved(found)) {
    return {
      errno,
      reason: role === 'work' ? 'work-removed' : (`${role}-missing` as Reason),
      what: `${name} has been removed, and only a descriptor still leads to it`,
      hint: 'create the directory again, and name it by its path',
      path,
    };
  }
  if (errno === e.ENOENT) {
    const reason = `${role}-missing` as Reason;
    if (!isSymlink) return { errno, reason, what: `${name} does not exist`, path };
    return {
      errno,
      reason,
      what: `${name} does not exist: it is a symbolic link to a missing path`,
      // Nothing can be made in place of the link.
      hint: 'create the directory that the link points to, or remove the link',
      path,
    };
  }
  if (errno === e.ENOTDIR && found.errno === 0 && found.type !== k.S_IFDIR) {
    return { errno, reason: `${role}-not-directory` as Reason, what: `${name} is not a directory`, path };
  }
  const cause = e.unreachable[errno];
  if (cause === undefined) return undefined;
  return { errno, reason: 'path-inaccessible', what: `${name} cannot be reached: ${cause}`, path };
}

const isRemoved = ({ errno, links }: PathFacts['found']): boolean => errno === 0 && links === 0;

function errnoOf({ found, subject }: PathFacts): number {
  const { errno, type } = found;
  if (errno !== 0) return errno;
  // For other paths a link count of 0 means nothing: some file systems keep no count.
  if (isRemoved(found) && goesByDescriptors(subject.path)) return e.ENOENT;
  return type === k.S_IFDIR || type === 0 ? 0 : e.ENOTDIR;
}

const looking: readonly (Call | undefined)[] = [calls.openat2, calls.open_tree, calls.statx, calls.fsconfig];

/** The step that failed was about one path. */
const pathOfStep: Rule = {
  when: ({ step, guard }) => looking.includes(step?.call) || guard === 'directory-is-removed',
  find(scene) {
    const culprit = findSubject(scene);
    if (culprit === undefined || scene.failure === undefined) return undefined;
    const errno = scene.failure.shownErrno;
    // fsconfig(2) answers EINVAL for any fault of a layer that is passed by its path.
    return judge(scene, culprit, errno === e.EINVAL ? errnoOf(culprit) : errno);
  },
};

/** One call takes all paths and has failed: reports the first faulty path. */
const oneOfAll: Rule = {
  when: ({ step }) => step?.call === calls.mount,
  find(scene) {
    const { paths } = scene.facts;
    const culprit = paths.find((path) => errnoOf(path) !== 0 || (path.subject.role === 'target' && path.isSymlink));
    return culprit && judge(scene, culprit, errnoOf(culprit));
  },
};

/** Returns a verdict for each faulty path before a mount. A path that `create` makes may be missing. */
export function judgePaths(scene: Scene): Cause[] {
  const { create, stack } = scene.options;
  return scene.facts.paths.flatMap((path): Cause[] => {
    const { role } = path.subject;
    const errno = errnoOf(path);
    if (create && errno === e.ENOENT && !path.isSymlink && role !== 'lowerdir' && role !== 'datadir') return [];
    if (role === 'target' && errno === 0 && path.found.isMountRoot && !stack) {
      return [{ errno: e.EBUSY, ...mountedAlready(scene) }];
    }
    const isWrong = errno !== 0 || (role === 'target' && path.isSymlink);
    const verdict = isWrong ? judge(scene, path, errno) : undefined;
    return verdict === undefined ? [] : [{ errno: errno === 0 ? e.ENOTDIR : errno, ...verdict }];
  });
}

export const isAboutPath = (reason: Reason): boolean =>
  reason === 'path-inaccessible' || reason === 'target-symlink' || /-(missing|not-directory)$/.test(reason);

/** A missing directory could not be made. */
const notCreated: Rule = {
  when: ({ step }) => step?.call === calls.mkdirat,
  find(scene) {
    const { facts, failure } = scene;
    const errno = failure?.errno ?? 0;
    const path = failure?.step?.args[1] as Path;
    const missing = facts.paths.find(({ isMissing, subject }) => isMissing && isAtOrBelow(subject.path, path));
    const full = errno === e.ENOSPC && missing !== undefined ? outOfRoom(missing, scene) : undefined;
    if (full !== undefined) return full;
    if (errno === e.EROFS && missing !== undefined && isUpper(missing)) {
      return isReadOnly(nameOf(missing.subject, scene.options), missing);
    }
    const name = `the directory ${quotePath(path)}`;
    const purpose = `create ${name}`;
    const verdict: Cause =
      errno === e.EACCES || errno === e.EPERM
        ? { reason: 'permission-denied', what: `this process may not ${purpose}` }
        : explainErrno(errno, { name, purpose });
    return verdict.reason === 'unexplained' ? undefined : { ...verdict, path: pathString(path) };
  },
};

const targetMounted: Rule = {
  when: ({ guard }) => guard === 'target-is-mount-point',
  find: mountedAlready,
};

function mountedAlready({ options }: Scene): Cause {
  return {
    reason: 'target-mounted',
    what: `the target ${show(options.target)} is already a mount point`,
    ...pathField(options.target),
  };
}

const targetReserved: Rule = {
  when: ({ guard }) => guard === 'target-is-reserved',
  find: ({ options }) => ({ ...reservedTarget(options.target as Path), ...pathField(options.target) }),
};

const attaches = ({ step, errno }: StepFailure): boolean =>
  (step?.call === calls.move_mount || step?.call === calls.mount) && errno === e.EINVAL;

/** The target is outside the mount namespace of the process; the kernel attaches mounts only inside it. */
const targetForeign: Rule = {
  when: attaches,
  find({ options, facts }) {
    const target = facts.paths.find(({ subject }) => subject.role === 'target');
    if (target === undefined || target.found.errno !== 0 || facts.mountCount === 0 || target.mount !== undefined) {
      return undefined;
    }
    return {
      reason: 'target-foreign',
      what: `the target ${show(options.target)} is on a mount of another mount namespace, or on a mount that is not attached`,
      ...pathField(options.target),
    };
  },
  foresees: true,
};

/** A layer is not on a mount of this namespace, as the kernel requires. */
export const layerForeign: Rule = {
  when: (failure) => failure.errno === e.EINVAL,
  find({ options, facts }) {
    if (facts.mountCount === 0) return undefined;
    const foreign = facts.paths.find((path) => isLayer(path) && path.found.errno === 0 && path.mount === undefined);
    if (foreign === undefined || foreign.found.type === 0) return undefined;
    return {
      reason: 'layer-foreign',
      what: `${nameOf(foreign.subject, options)} is on a mount of another mount namespace, or on a mount that is not attached`,
      path: pathString(foreign.subject.path),
    };
  },
};

/** Another program has removed a layer, or what the kernel had made in the workdir, while the kernel mounted. */
const removedMeanwhile: Rule = {
  when: (failure) => cameOutReadOnly(failure) || (isCreation(failure) && failure.errno === e.ENOENT),
  find(scene) {
    const { facts, options, failure } = scene;
    // With `create`, the library has removed what it had made.
    const gone = facts.paths.find((path) => isLayer(path) && path.found.errno === e.ENOENT);
    if (gone !== undefined && !options.create) return judge(scene, gone, e.ENOENT);
    const isWork = !options.create && facts.work.attempt === e.ENOENT;
    if (!isWork && failure?.errno !== e.ENOENT) return undefined;
    return {
      errno: e.ENOENT,
      reason: 'layer-changed',
      what: `another program removed a layer, or what the kernel makes in the workdir, during the mount${place(options)}`,
      hint: 'let nothing change the layers and the workdir meanwhile, and mount again',
    };
  },
};

const targetGone: Rule = {
  when: ({ step, errno }) => step?.call === calls.move_mount && errno === e.ENOENT,
  find: ({ options }) => ({
    reason: 'target-missing',
    what: `the target ${show(options.target)} was removed during the mount`,
    ...pathField(options.target),
  }),
};

export const pathRules: readonly Rule[] = [
  pathOfStep,
  oneOfAll,
  notCreated,
  targetMounted,
  targetReserved,
  targetGone,
  targetForeign,
  removedMeanwhile,
];
