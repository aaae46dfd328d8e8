/** Bind mounts: show a file or a tree at a second place, with open_tree(2) and move_mount(2). */
import { checkBoolean, checkSignal, checkWord, toOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { abortError, OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import { formatStep, systemCallOf } from '../kernel/format.js';
import { addGuard } from '../kernel/guards.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Step } from '../kernel/plan.js';
import { addStat, readMountId, readMountIds, readStat, STATX_OUTPUT } from '../kernel/stat.js';
import { ask, run, runSync, type Task } from '../kernel/task.js';
import {
  addJoin,
  checkNamespace,
  explainJoin,
  type Namespace,
  outOfNamespaces,
  toTarget,
} from '../namespaces/mount-namespace.js';
import {
  type AccessTimes,
  type AttributeSet,
  attributeBits,
  checkAttributes,
  mountAttributes,
  type Propagation,
  propagationBits,
  propagations,
} from '../options/attributes.js';
import { addMapNamespace, addMapping, checkMap, type IdMap, isMapping, type MapSource } from '../options/idmap.js';
import {
  type Path,
  type PathLike,
  pathString,
  quotePath,
  toAbsolute,
  toPath,
  withoutTrailingSlashes,
} from '../paths.js';
import { option, text } from '../text.js';
import { explainErrno, reservedTarget, type Verdict } from '../verdicts.js';
import { Mount } from './mount.js';

/** Options of a bind mount. An attribute that is left out is the same as on the source's mount. */
export interface BindOptions {
  /** Also binds the mounts inside the source (AT_RECURSIVE). Default false. */
  recursive?: boolean;
  /** Forbids writing through this mount. Like the attributes below, it applies to everything that is bound (5.12). */
  readonly?: boolean;
  /** Ignores set-user-ID bits and file capabilities. */
  nosuid?: boolean;
  /** Forbids opening device nodes. */
  nodev?: boolean;
  /** Forbids executing files. */
  noexec?: boolean;
  /** Forbids following symbolic links (5.14). */
  nosymfollow?: boolean;
  /** Does not update the access times of directories. */
  nodiratime?: boolean;
  /** When the kernel updates access times. */
  atime?: AccessTimes;
  /** Shows the files with other owners: a list of ranges of ids, or the descriptor of a user namespace (5.12). */
  idmap?: IdMap;
  /** The propagation type, which decides if mounts inside it appear in other namespaces. */
  propagation?: Propagation;
  /** Allows a target that is a mount point already, and covers that mount. Default false: such a target is an error. */
  stack?: boolean;
  /** The mount namespace of the target. The source is in the caller's namespace. Default: the caller's. */
  namespace?: PathLike | number;
  /** Cancels the bind: a call that has not begun never begins, and a call that has begun is undone. */
  signal?: AbortSignal;
}

const names: ReadonlySet<string> = new Set([
  'recursive',
  ...mountAttributes,
  'atime',
  'idmap',
  'propagation',
  'stack',
  'namespace',
  'signal',
]);

interface Bind extends AttributeSet {
  readonly source: Path;
  /** Undefined for a detached bind. */
  readonly target: Path | undefined;
  readonly recursive: boolean;
  readonly idmap: MapSource | undefined;
  readonly propagation: Propagation | undefined;
  readonly stack: boolean;
  readonly namespace: Namespace | undefined;
  readonly signal: AbortSignal | undefined;
}

function check(source: PathLike, target: PathLike | undefined, options: BindOptions | undefined): Bind {
  const given = toOptions(options, names);
  const namespace = checkNamespace(given.namespace);
  const checked = {
    source: toPath(source, 'source'),
    target: target === undefined ? undefined : withoutTrailingSlashes(toTarget(target, namespace)),
    ...checkAttributes(given),
    recursive: checkBoolean(given.recursive, 'recursive') ?? false,
    idmap: given.idmap === undefined ? undefined : checkMap(given.idmap, 'idmap'),
    propagation: checkWord(given.propagation, 'propagation', propagations),
    stack: checkBoolean(given.stack, 'stack') ?? false,
    namespace,
    signal: checkSignal(given.signal),
  };
  if (checked.signal?.aborted) throw abortError(checked.signal);
  return { ...checked, source: toAbsolute(checked.source) };
}

interface BindPlan {
  readonly plan: Plan;
  readonly tree: Step;
  readonly id: Step;
}

/** The mask of the access time attributes. They are one choice of several, so setting one clears the others. */
const ACCESS_TIMES = 0x70;

function bindPlan(bind: Bind): BindPlan {
  const plan = new Plan();
  const recursive = bind.recursive ? k.AT_RECURSIVE : 0;
  const source = { role: 'source', path: bind.source } as const;
  const clone = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | recursive;
  const tree = plan.add(calls.open_tree, [k.AT_FDCWD, bind.source, clone], {
    subject: source,
    ...(bind.target === undefined && { keep: true, output: 0 }),
  });
  if (bind.idmap !== undefined) addMapping(plan, tree, addMapNamespace(plan, bind.idmap), source, recursive);
  const set = attributeBits(bind);
  if (set !== 0 || bind.atime !== undefined) {
    const clear = bind.atime === undefined ? 0 : ACCESS_TIMES;
    plan.add(calls.mount_setattr, [tree, '', k.AT_EMPTY_PATH | recursive, set, clear, 0], { subject: source });
  }
  const look = plan.add(
    calls.statx,
    [tree, '', k.AT_EMPTY_PATH, k.STATX_MNT_ID_UNIQUE | k.STATX_MNT_ID | k.STATX_INO],
    {
      output: STATX_OUTPUT,
    },
  );
  if (bind.target !== undefined) addAttachment(plan, tree, bind, bind.target);
  if (bind.propagation !== undefined) {
    const bits = propagationBits[bind.propagation];
    plan.add(calls.mount_setattr, [tree, '', k.AT_EMPTY_PATH | recursive, 0, 0, bits], { subject: source });
  }
  return { plan, tree: plan.stepOf(tree), id: plan.stepOf(look) };
}

function addAttachment(plan: Plan, tree: Descriptor, bind: Bind, path: Path): void {
  const target = { role: 'target', path } as const;
  if (bind.namespace !== undefined) addJoin(plan, bind.namespace);
  const at = plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_PATH | k.O_NOFOLLOW | k.O_CLOEXEC, 0], {
    subject: target,
  });
  plan.add(calls.statx, [at, '', k.AT_EMPTY_PATH, k.STATX_TYPE], { subject: target });
  addGuard(plan, 'target-is-symlink', { subject: target });
  if (!bind.stack) plan.add(calls.reserve_target, [at], { subject: target });
  // The last argument tells that the mounts inside the tree go with it when the step is undone.
  const flags = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH;
  plan.add(calls.move_mount, [tree, '', at, '', flags, Number(bind.recursive)], { undo: true, subject: target });
}

/** Returns true when one of source and target is a directory and the other is not. */
function* areUnlike(bind: Bind): Task<boolean> {
  const plan = new Plan();
  const source = addStat(plan, bind.source);
  if (bind.namespace !== undefined) addJoin(plan, bind.namespace);
  if (bind.target === undefined) return false;
  const target = addStat(plan, bind.target, { flags: k.AT_SYMLINK_NOFOLLOW });
  const outcome = yield* ask(plan);
  const isDirectory = (step: Step) => readStat(step, outcome).type === k.S_IFDIR;
  return !(outcome instanceof StepFailure) && isDirectory(source) !== isDirectory(target);
}

/** The rules of a bind. The others are those of any call. */
function findVerdict(bind: Bind, failure: StepFailure, name: string, differ: boolean): Verdict | undefined {
  const { errno, step, guard } = failure;
  if (guard === 'target-is-mount-point') {
    return { reason: 'target-mounted', what: `${name} is already a mount point` };
  }
  if (guard === 'target-is-reserved') return reservedTarget(bind.target ?? bind.source);
  if (guard === 'target-is-symlink') return { reason: 'target-symlink', what: `${name} is a symbolic link` };
  if (step?.call === calls.open_tree && errno === e.EINVAL) {
    return {
      reason: 'source-unbindable',
      what: text`${name} cannot be bound: its mount is unbindable, belongs to another namespace, or hides a directory that only ${option('recursive')} would show`,
    };
  }
  if (step?.call === calls.move_mount && differ) {
    return {
      reason: 'target-mismatch',
      what: `one of the source ${quotePath(bind.source)} and ${name} is a directory, and the other is not`,
    };
  }
  if (step?.call === calls.open_tree && errno === e.ENOSPC) return outOfNamespaces;
  if (step?.call === calls.userns || (step?.call === calls.mount_setattr && isMapping(step.args))) {
    return findMappingVerdict(name, step.call === calls.userns, errno);
  }
  if (errno === e.EPERM) {
    return { reason: 'no-privilege', what: 'this process may not bind: it lacks CAP_SYS_ADMIN in its user namespace' };
  }
  return undefined;
}

/** The rules of a bind that shows other owners. */
function findMappingVerdict(name: string, isNamespace: boolean, errno: number): Verdict {
  if (errno === e.EPERM || errno === e.EACCES) {
    return { reason: 'no-privilege', what: `this process may not map the owners of ${name}` };
  }
  if (isNamespace) return { reason: 'idmap-refused', what: text`the kernel refuses the ranges of ${option('idmap')}` };
  return { reason: 'idmap-unsupported', what: `the kernel cannot map the owners of ${name}` };
}

/** Returns the error that explains a failed bind. Pure. */
function explain(bind: Bind, failure: StepFailure, differ: boolean): OverlayError {
  const { errno, step, guard, undoErrno, plan } = failure;
  const place = bind.target ?? bind.source;
  const { role = 'target', path = place } = step?.options.subject ?? {};
  const name = `the ${role} ${quotePath(path)}`;
  const detail = step === undefined ? '' : `: ${formatStep(plan, step)} failed, and no known cause matches`;
  const missing = role === 'source' ? 'path-missing' : 'target-missing';
  const common = explainErrno(errno, {
    name,
    purpose: `bind at ${quotePath(place)}`,
    syscall: step?.call.name,
    missing,
  });
  return new OverlayError({
    errno: failure.shownErrno,
    path: pathString(path),
    syscall: step === undefined || guard !== undefined ? undefined : systemCallOf(step),
    ...(common.reason === 'unexplained' ? { ...common, what: text`${common.what}${detail}` } : common),
    ...(explainFiltered(failure) ?? findVerdict(bind, failure, name, differ)),
    leftover: undoErrno === 0 ? undefined : `the bind mount could not be unmounted again (errno ${undoErrno})`,
  });
}

/**
 * Binds `source` at no place: the mount is its file descriptor. The options are those of `bind` without the ones about a
 * target.
 */
export function* bindDetached(source: PathLike, options: BindOptions): Task<Mount> {
  const checked = check(source, undefined, options);
  const { plan, tree, id } = bindPlan(checked);
  const outcome = yield* ask(plan, checked.signal);
  if (outcome instanceof StepFailure) throw explain(checked, outcome, false);
  const held = { descriptor: outcome.result(tree) };
  return new Mount({ ...readMountIds(id, outcome), held, path: `/proc/self/fd/${held.descriptor}` });
}

function* bound(source: PathLike, target: PathLike, options: BindOptions | undefined): Task<Mount> {
  // Undefined would be no place, as for bindDetached.
  const checked = check(source, toPath(target, 'target'), options);
  const { target: path, namespace, signal } = checked;
  const { plan, id } = bindPlan(checked);
  const outcome = yield* ask(plan, signal);
  if (!(outcome instanceof StepFailure)) {
    return new Mount({ path: path as Path, id: readMountId(id, outcome), namespace });
  }
  if (outcome.cancelled && signal) throw abortError(signal, outcome.undoErrno);
  throw explainJoin(outcome) ?? explain(checked, outcome, yield* areUnlike(checked));
}

/**
 * Binds `source`, a directory or a file, at `target`: open_tree(2), mount_setattr(2) (5.12), move_mount(2). The same
 * files are then in both places. A symbolic link as the last component is followed in `source`, but not in `target`.
 *
 * @throws {TypeError} `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`: an argument is wrong
 * @throws {OverlayError} `reason` is `'path-missing'`, `'target-missing'`, `'target-mounted'`, `'mount-busy'`, `'target-mismatch'`,
 * `'target-symlink'`, `'source-unbindable'`, `'idmap-unsupported'`, `'idmap-refused'`, `'no-privilege'`, `'namespace-missing'`, `'namespace-denied'`,
 * `'path-inaccessible'`, `'out-of-descriptors'` or `'option-unsupported'`
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function bind(source: PathLike, target: PathLike, options?: BindOptions): Promise<Mount> {
  return run(bound(source, target, options));
}

/** The synchronous form of `bind`. */
export function bindSync(source: PathLike, target: PathLike, options?: BindOptions): Mount {
  return runSync(bound(source, target, options));
}
