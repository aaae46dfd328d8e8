/** Changes to an existing mount: attach it, clone it, make it read-only, or replace another mount with it. */
import { checkBoolean, toBooleanOptions, toOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, invalidArgumentValue, OverlayError } from '../errors.js';
import type { Holder, Holders } from '../holder.js';
import { holdersText } from '../holders/text.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import { formatStep, systemCallOf } from '../kernel/format.js';
import { addMountGuard } from '../kernel/guards.js';
import { StepFailure } from '../kernel/perform.js';
import { type Descriptor, Plan, type Text } from '../kernel/plan.js';
import { addStat, readMountId, readMountIds, readStat, STATX_OUTPUT, statPathSync } from '../kernel/stat.js';
import { ask, askTolerant, type Task } from '../kernel/task.js';
import { type Mounted, mountIdMask } from '../mount-table/identity.js';
import { listRaw } from '../mount-table/table.js';
import {
  addJoin,
  checkNamespace,
  explainJoin,
  type Namespace,
  outOfNamespaces,
  toTarget,
} from '../namespaces/mount-namespace.js';
import { type Path, type PathLike, pathString, quotePath, withoutTrailingSlashes } from '../paths.js';
import { member, text } from '../text.js';
import { closedMount, explainErrno, replacedMount, reservedTarget, type Verdict } from '../verdicts.js';
import { explainUnreached } from './covered.js';

/** Options for attaching a detached mount. */
export interface AttachOptions {
  /** Allows a target that is already a mount point, and covers that mount. Default false: such a target is an error. */
  stack?: boolean;
  /** The mount namespace of the target, which is then an absolute path in it. Default: the caller's. */
  namespace?: PathLike | number;
}

/** The properties to change. A property that is left out stays as it is. */
export interface RemountOptions {
  /** Forbids or allows writing through this mount (mount_setattr(2), 5.12). */
  readonly?: boolean;
  /** Makes the superblock, and so every mount of it, read-only or writable (fspick(2), 5.2). */
  readonlySuperblock?: boolean;
}

type Id = { readonly id: number };
type Ids = Id & { readonly device: number };

/**
 * Adds a step for the mount's root. Returns the mount's own file descriptor, or else one for its path; the plan then
 * fails unless this very mount is still there.
 */
function addRoot(plan: Plan, { held, path, id, namespace }: Mounted & Id): Descriptor {
  if (held !== undefined) return held.descriptor;
  if (namespace !== undefined) addJoin(plan, namespace);
  const subject = { role: 'target', path } as const;
  const root = plan.add(calls.openat2, [k.AT_FDCWD, path, k.O_PATH | k.O_NOFOLLOW | k.O_CLOEXEC, 0], { subject });
  plan.add(calls.statx, [root, '', k.AT_EMPTY_PATH, mountIdMask(id)], { subject });
  addMountGuard(plan, id, { subject });
  return root;
}

const shownAs = ({ held, path }: Mounted): string =>
  `${held === undefined ? 'the mount at' : 'the detached mount'} ${quotePath(path)}`;

const foreign = (mounted: Mounted): Verdict => ({
  reason: 'no-privilege',
  what: `${shownAs(mounted)} belongs to a user namespace of its own, and this process is not in it`,
  hint: text`use its ${member('path')}, or show it to a program with ${member('spawn')}`,
});

/** Returns the explanation of an error that each of these changes can fail with. */
function commonVerdict(mounted: Mounted, { errno, step, guard, plan }: StepFailure): Verdict {
  const shown = shownAs(mounted);
  if (guard === 'mount-is-another') return replacedMount(mounted.path);
  const filtered = explainFiltered({ step, errno });
  if (filtered !== undefined) return filtered;
  if (errno === e.EBADF) return closedMount(mounted.path);
  // The kernel checks the privilege first, and then that the mount is in the caller's namespace.
  if (mounted.isRootless && (errno === e.EPERM || errno === e.EINVAL)) return foreign(mounted);
  if (errno === e.EPERM)
    return { reason: 'no-privilege', what: 'this process lacks CAP_SYS_ADMIN in its user namespace' };
  if (step?.call === calls.open_tree && errno === e.ENOSPC) return outOfNamespaces;
  const name = `the target ${quotePath(step?.options.subject?.path ?? mounted.path)}`;
  const detail = step === undefined ? '' : `: ${formatStep(plan, step)} failed, and no known cause matches`;
  const purpose = `change ${shown}`;
  const verdict = explainErrno(errno, { name, purpose, syscall: step?.call.name, missing: 'target-missing' });
  return verdict.reason === 'unexplained' ? { ...verdict, what: text`${verdict.what}${detail}` } : verdict;
}

function* toError(
  mounted: Mounted,
  failure: StepFailure,
  own: (failure: StepFailure) => Verdict | undefined = () => undefined,
): Task<OverlayError> {
  const { step, guard, errno, undoErrno } = failure;
  const isLost =
    guard === 'mount-is-another' || (step?.call === calls.openat2 && [e.ENOENT, e.ENOTDIR].includes(errno));
  const unreached = isLost ? yield* explainUnreached(mounted) : undefined;
  return (
    explainJoin(failure) ??
    new OverlayError({
      errno: failure.shownErrno,
      syscall: step === undefined || guard !== undefined ? undefined : systemCallOf(step),
      path: pathString(step?.options.subject?.path ?? mounted.path),
      ...(unreached ?? own(failure) ?? commonVerdict(mounted, failure)),
      leftover: undoErrno === 0 ? undefined : `its effects could not be undone (errno ${undoErrno})`,
    })
  );
}

const attachNames: ReadonlySet<string> = new Set(['stack', 'namespace']);

interface Place {
  readonly path: Path;
  readonly stack: boolean;
  readonly namespace: Namespace | undefined;
}

/** Reads the arguments of a call that attaches a mount. */
export function toPlace(target: PathLike, options: AttachOptions | undefined): Place {
  const given = toOptions(options, attachNames);
  const stack = checkBoolean(given.stack, 'stack') ?? false;
  const namespace = checkNamespace(given.namespace);
  return { path: withoutTrailingSlashes(toTarget(target, namespace)), stack, namespace };
}

/** Attaches a detached mount: move_mount(2). Returns the description of the attached mount. */
export function* attach(mounted: Mounted & Id, { path, stack, namespace }: Place): Task<Mounted & Id> {
  if (mounted.held === undefined) {
    yield* refuseGone(mounted);
    throw invalidArgumentValue('target', path, `cannot take another mount: ${shownAs(mounted)} is already attached`);
  }
  const plan = new Plan();
  if (namespace !== undefined) addJoin(plan, namespace);
  const subject = { role: 'target', path } as const;
  const flags = k.O_PATH | k.O_DIRECTORY | k.O_NOFOLLOW | k.O_CLOEXEC;
  const at = plan.add(calls.openat2, [k.AT_FDCWD, path, flags, 0], { subject });
  if (!stack) plan.add(calls.reserve_target, [at], { subject });
  addMove(plan, mounted.held.descriptor, at, 0, { undo: true, subject });
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return { ...mounted, held: undefined, path, namespace };
  const isLink = outcome.errno === e.ENOTDIR && (yield* isSymbolicLink(path, namespace));
  throw yield* toError(mounted, outcome, ({ step, errno, guard }) => {
    if (step?.call === calls.openat2 && isLink) {
      return { reason: 'target-symlink', what: `the target ${quotePath(path)} is a symbolic link` };
    }
    if (guard === 'target-is-mount-point') {
      return { reason: 'target-mounted', what: `the target ${quotePath(path)} is already a mount point` };
    }
    if (guard === 'target-is-reserved') return reservedTarget(path);
    if (step?.call === calls.openat2 && (errno === e.ENOTDIR || errno === e.ELOOP)) {
      return { reason: 'target-not-directory', what: `the target ${quotePath(path)} is not a directory` };
    }
    return undefined;
  });
}

/** Throws when an attached mount is no longer at its path. */
function* refuseGone(mounted: Mounted & Id): Task<void> {
  const plan = new Plan();
  addRoot(plan, mounted);
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return;
  if (outcome.guard === undefined && ![e.ENOENT, e.ENOTDIR, e.ELOOP].includes(outcome.errno)) return;
  throw yield* toError(mounted, outcome, () => ({
    reason: 'not-mounted',
    what: `${shownAs(mounted)} has been unmounted, or another mount covers it`,
    hint: 'mount it again',
  }));
}

function* isSymbolicLink(path: Path, namespace: Namespace | undefined): Task<boolean> {
  const plan = new Plan();
  if (namespace !== undefined) addJoin(plan, namespace);
  const look = addStat(plan, path, { flags: k.AT_SYMLINK_NOFOLLOW });
  return readStat(look, yield* askTolerant(plan)).type === k.S_IFLNK;
}

function addMove(
  plan: Plan,
  from: Descriptor,
  to: Descriptor,
  more: number,
  options: Parameters<Plan['add']>[2] & object,
): void {
  const flags = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH | more;
  plan.add(calls.move_mount, [from, '', to, '', flags], options);
}

/** Makes a second, detached mount of the same files: open_tree(2). */
export function* clone(mounted: Mounted & Id): Task<Mounted & Ids> {
  // Root could, but the path of the clone would be `/` to realpath(3).
  if (mounted.isRootless && (mounted.held?.descriptor ?? -1) >= 0) {
    throw new OverlayError({ errno: e.EPERM, path: pathString(mounted.path), ...foreign(mounted) });
  }
  const plan = new Plan();
  const root = addRoot(plan, mounted);
  const flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH;
  const tree = plan.add(calls.open_tree, [root, '', flags], { keep: true, output: 0 });
  const mask = k.STATX_MNT_ID_UNIQUE | k.STATX_MNT_ID | k.STATX_INO;
  const look = plan.add(calls.statx, [tree, '', k.AT_EMPTY_PATH, mask], { output: STATX_OUTPUT });
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) {
    throw yield* toError(mounted, outcome, ({ step, errno }) =>
      step?.call === calls.open_tree && errno === e.EINVAL
        ? {
            reason: 'source-unbindable',
            what: `${shownAs(mounted)} cannot be cloned: it is unbindable, or it is detached and the kernel is older than 6.15`,
          }
        : undefined,
    );
  }
  const held = { descriptor: outcome.result(plan.stepOf(tree)) };
  const ids = readMountIds(plan.stepOf(look), outcome);
  return { ...ids, held, path: `/proc/self/fd/${held.descriptor}`, workdir: mounted.workdir };
}

const remountNames: ReadonlySet<string> = new Set(['readonly', 'readonlySuperblock']);

/** Reads the options, and returns what makes a mount, its superblock, or both read-only or writable. */
export function remount(options: RemountOptions | undefined): (mounted: Mounted & Id) => Task<void> {
  const { readonly, readonlySuperblock } = toBooleanOptions(options, remountNames);
  return (mounted) => change(mounted, readonly, readonlySuperblock);
}

function* change(mounted: Mounted & Id, readonly?: boolean, superblock?: boolean): Task<void> {
  const plan = new Plan();
  const root = addRoot(plan, mounted);
  if (superblock !== undefined) {
    const context = plan.add(calls.fspick, [root, '', k.FSPICK_CLOEXEC | k.FSPICK_EMPTY_PATH]);
    plan.add(calls.fsconfig, [context, k.FSCONFIG_SET_FLAG, superblock ? 'ro' : 'rw', null]);
    plan.add(calls.fsconfig, [context, k.FSCONFIG_CMD_RECONFIGURE, null, null]);
  }
  if (readonly !== undefined) {
    const [set, clear] = readonly ? [k.MOUNT_ATTR_RDONLY, 0] : [0, k.MOUNT_ATTR_RDONLY];
    plan.add(calls.mount_setattr, [root, '', k.AT_EMPTY_PATH, set, clear]);
  }
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) return;
  throw yield* toError(mounted, outcome, ({ errno }) => {
    if (errno === e.EBUSY) {
      return {
        reason: 'mount-busy',
        what: `${shownAs(mounted)} cannot become read-only: a file in it is open for writing`,
        hint: text`close the files that are open for writing; ${member('findHolders')} finds the processes`,
      };
    }
    if (errno === e.EROFS) {
      return {
        reason: 'read-only',
        what: `the superblock of ${shownAs(mounted)} cannot become writable: it has no writable upperdir`,
        hint: 'mount again with a writable upperdir and workdir',
      };
    }
    return undefined;
  });
}

/**
 * Throws when a mount has other mounts inside it, because these would be unmounted with it. A mount that covers it is
 * not inside it.
 */
export function* refuseInside(mounted: Mounted & Id): Task<void> {
  const plan = new Plan();
  const root = addRoot(plan, mounted);
  const look = plan.add(calls.statx, [root, '', k.AT_EMPTY_PATH, k.STATX_MNT_ID], { output: STATX_OUTPUT });
  const outcome = yield* ask(plan);
  if (outcome instanceof StepFailure) throw yield* toError(mounted, outcome);
  const own = readMountId(plan.stepOf(look), outcome);
  const table = yield* listRaw({
    namespace: mounted.namespace,
    select: ({ id, parent }) => id === own || parent === own,
  });
  const place = table.find(({ id }) => id === own)?.target;
  const inside = table.filter(({ id, parent, target }) => parent === own && id !== own && target !== place);
  if (inside.length === 0) return;
  const holders = inside.map(({ target }): Holder => {
    return { what: 'inside', path: pathString(Buffer.from(target, 'latin1')) };
  });
  const all: Holders = Object.assign(holders, { hidden: 0, complete: true });
  throw new OverlayError({
    errno: e.EBUSY,
    reason: 'mount-inside',
    what: `${shownAs(mounted)} cannot be replaced, because the mounts inside it would be lost: ${holdersText(all)}`,
    path: pathString(mounted.path),
    holders: all,
  });
}

/**
 * Replaces a mount with a detached one in one step. The plan attaches the new mount beneath the old one
 * (MOVE_MOUNT_BENEATH, 6.5) and then detaches the old one. No process sees the place empty.
 */
export function* takePlace(above: Mounted & Id, next: Mounted & Id): Task<Mounted & Id> {
  if (above.held !== undefined || next.held === undefined) {
    throw conflictingOptions('only a mount that has a target can be replaced', 'attach it first');
  }
  const plan = new Plan();
  const root = addRoot(plan, above);
  const subject = { role: 'target', path: above.path } as const;
  addMove(plan, next.held.descriptor, root, k.MOVE_MOUNT_BENEATH, { undo: true, subject });
  // The root's file descriptor names the mount, unless /proc belongs to another namespace or is not mounted.
  const isByRoot = above.namespace === undefined && statPathSync('/proc/self/fd').errno === 0;
  const place: Text = isByRoot ? ['/proc/self/fd/', root] : above.path;
  const flags = isByRoot ? k.MNT_DETACH : k.MNT_DETACH | k.UMOUNT_NOFOLLOW;
  plan.add(calls.umount2, [place, flags], { subject });
  const outcome = yield* ask(plan);
  if (!(outcome instanceof StepFailure)) {
    return { ...next, held: undefined, path: above.path, namespace: above.namespace };
  }
  throw yield* toError(above, outcome, ({ step, errno }) =>
    step?.call === calls.move_mount && errno === e.EINVAL
      ? {
          reason: 'option-unsupported',
          what: `${shownAs(above)} cannot be replaced in one step: this kernel is older than 6.5, or the target is on a shared mount`,
          hint: 'unmount it and mount the other one; in between, the target is empty',
        }
      : undefined,
  );
}
