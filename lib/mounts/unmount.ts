/** Unmounts: umount2(2), and the meaning of its errnos. */
import { checkMilliseconds, checkSignal, toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, OverlayError } from '../errors.js';
import type { Holder, Holders } from '../holder.js';
import { searchHolders } from '../holders/search-mounts.js';
import { usedByText } from '../holders/text.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { explainFiltered } from '../kernel/filtered.js';
import { addMountGuard } from '../kernel/guards.js';
import { type Held, take } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat, type StatResult } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import { type Mounted, mountIdMask } from '../mount-table/identity.js';
import { addJoin, checkNamespace, explainJoin, toTarget } from '../namespaces/mount-namespace.js';
import { goesByDescriptors, type PathLike, pathString, quotePath, withoutTrailingSlashes } from '../paths.js';
import { todoOf } from '../reasons.js';
import { either, member, option, type Text, text } from '../text.js';
import { explainErrno, replacedMount, type Verdict } from '../verdicts.js';
import { Attempts, isBusy } from './attempts.js';
import { explainUnreached } from './covered.js';

/** Options for unmounting: the flags of umount2(2), and how long to wait. */
export interface UnmountOptions {
  /**
   * Removes the mount and all mounts inside it from view at once; the kernel frees it when its last user ends
   * (MNT_DETACH). Until then, its upperdir stays in use. Default false.
   */
  detach?: boolean;
  /**
   * Unmounts all mounts at the target and below it, inner mounts first, as `umount --recursive` does. With `detach`,
   * each tree of mounts goes with one call. The target need not be a mount point, and it is no error if nothing is
   * mounted there. Default false.
   */
  recursive?: boolean;
  /**
   * How long to wait while the mount is busy, in milliseconds; Infinity for no limit. Default 0. The promise form blocks no thread while it waits; the synchronous form blocks the calling thread.
   */
  timeout?: number;
  /**
   * Ends the wait. An unmount that the kernel has begun is completed, and the call then succeeds. The synchronous form
   * checks the signal once, before it begins.
   */
  signal?: AbortSignal;
  /** The mount namespace of the target, which is then an absolute path in it. Default: the caller's. */
  namespace?: PathLike | number;
}

const booleans: ReadonlySet<string> = new Set(['detach', 'recursive']);
const names: ReadonlySet<string> = new Set([...booleans, 'timeout', 'signal', 'namespace']);

/** Options for unmounting a `Mount`, which knows its namespace. */
export type MountUnmountOptions = Omit<UnmountOptions, 'namespace' | 'recursive'>;

const mountNames: ReadonlySet<string> = new Set(
  [...names].filter((name) => name !== 'namespace' && name !== 'recursive'),
);

const noOptions: UnmountOptions = Object.freeze({});

export function checkMountUnmountOptions(options: MountUnmountOptions | undefined): UnmountOptions {
  return checkUnmountOptions(options, mountNames);
}

export function checkUnmountOptions(options: UnmountOptions | undefined, known = names): UnmountOptions {
  if (options === undefined) return noOptions;
  const checked = toBooleanOptions(options, known, booleans);
  checkMilliseconds(checked.timeout, 'timeout');
  checkSignal(checked.signal);
  if (checkNamespace(checked.namespace) !== undefined && checked.recursive) {
    throw conflictingOptions(
      text`${option('recursive')} and ${option('namespace')} exclude each other: ${option('namespace')} is of one mount`,
      'leave one of the two out',
    );
  }
  return checked;
}

function toMounted(target: PathLike, options: UnmountOptions): Mounted {
  const namespace = checkNamespace(options.namespace);
  const path = toTarget(target, namespace);
  // A trailing slash would make the kernel follow the link all the same.
  return {
    path: withoutTrailingSlashes(path),
    namespace,
  };
}

/** Adds the steps that unmount the mount at a path, provided that it is the intended one. */
export function addUnmount(plan: Plan, mounted: Mounted, options: UnmountOptions): void {
  if (mounted.id !== undefined) {
    const { id, path } = mounted;
    plan.add(calls.statx, [k.AT_FDCWD, path, k.AT_SYMLINK_NOFOLLOW, mountIdMask(id)]);
    addMountGuard(plan, id);
  }
  plan.add(calls.umount2, [mounted.path, k.UMOUNT_NOFOLLOW | (options.detach ? k.MNT_DETACH : 0)]);
}

export function unmountPlan(mounted: Mounted, options: UnmountOptions): Plan {
  const plan = new Plan();
  if (mounted.namespace !== undefined) addJoin(plan, mounted.namespace);
  if (mounted.held === undefined) addUnmount(plan, mounted, options);
  else addClose(plan, mounted.held);
  return plan;
}

function addClose(plan: Plan, held: Held): void {
  for (const descriptor of take(held)) plan.add(calls.close, [descriptor]);
}

// ------------------------------------------------------------------------------------------------- failures

const INSIDE: Text = either('unmount the mounts inside it first', text`pass ${option('recursive', true)}`);

/** Facts that were gathered after a failure. */
interface Facts {
  readonly found?: StatResult;
  /** Why the path does not lead to the mount, if it is in the table. */
  readonly unreached?: Verdict | undefined;
  /** Set when the mount is busy. */
  readonly holders?: Holders;
  /** The part of the work that was done before the failure. */
  readonly leftover?: string | undefined;
}

/** How long to search for the holders of a mount, in ms. */
const SEARCH = 500;

/** The rules of an unmount. The others are those of any call. */
function findVerdict({ path }: Mounted, { errno, guard }: StepFailure, facts: Facts): Verdict | undefined {
  const { found, holders, unreached } = facts;
  if (unreached !== undefined) return unreached;
  if (guard === 'mount-is-another') return replacedMount(path);
  const shown = quotePath(path);
  const isMountRoot = found?.isMountRoot === true;
  switch (errno) {
    case e.EBUSY:
      return {
        reason: 'mount-busy',
        what: `the mount at ${shown} is busy${holders === undefined ? '' : usedByText(holders)}`,
        hint: holders?.length && holders.every(({ what }) => what === 'inside') ? INSIDE : undefined,
      };
    case e.EPERM:
      return {
        reason: 'no-privilege',
        what: `this process may not unmount ${shown}`,
        hint: text`${todoOf('no-privilege')}; a seccomp filter, or a sandbox such as Landlock, refuses it to root too`,
      };
    case e.EINVAL:
      if (goesByDescriptors(path) && (isMountRoot || found?.type === k.S_IFLNK)) {
        return {
          reason: 'not-mounted',
          what: `${shown} leads to a mount by a file descriptor, and is no mount point of this namespace`,
          hint: either(text`end a detached mount by its own ${member('unmount')}`, 'name the mount point'),
        };
      }
      if (found?.type === k.S_IFLNK) {
        return {
          reason: 'target-symlink',
          what: `the target ${shown} is a symbolic link`,
          hint: 'name the mount point itself',
        };
      }
      return isMountRoot
        ? { reason: 'mount-locked', what: `the mount at ${shown} belongs to another user namespace` }
        : { reason: 'not-mounted', what: `the target ${shown} is not a mount point` };
    default:
      return undefined;
  }
}

/** Returns the error that explains a failed unmount. Pure. */
export function explainUnmount(mounted: Mounted, failure: StepFailure, facts: Facts = {}): OverlayError {
  const { errno, step, guard } = failure;
  const shown = quotePath(mounted.path);
  const name = `the target ${shown}`;
  return new OverlayError({
    errno: failure.shownErrno,
    syscall: guard === undefined ? step?.call.name : undefined,
    path: pathString(mounted.path),
    leftover: facts.leftover,
    holders: facts.holders,
    ...(explainFiltered(failure) ??
      findVerdict(mounted, failure, facts) ??
      explainErrno(errno, { name, purpose: `unmount ${shown}`, missing: 'target-missing' })),
  });
}

/** Finds the reason for a failure other than a busy mount. */
export function* explain(mounted: Mounted, failure: StepFailure, leftover?: string): Task<OverlayError> {
  const notJoined = explainJoin(failure);
  if (notJoined !== undefined) return notJoined;
  const found = yield* statTarget(mounted);
  const isThere = found.type === k.S_IFLNK || (found.isMountRoot && failure.guard === undefined);
  const isLost = !isThere && [e.EINVAL, e.ENOENT, e.ENOTDIR].includes(failure.shownErrno);
  const unreached = isLost ? yield* explainUnreached(mounted) : undefined;
  return explainUnmount(mounted, failure, { found, unreached, leftover });
}

function* statTarget(mounted: Mounted, mask?: number): Task<StatResult> {
  const plan = new Plan();
  if (mounted.namespace !== undefined) addJoin(plan, mounted.namespace);
  const step = addStat(plan, mounted.path, { flags: k.AT_SYMLINK_NOFOLLOW, ...(mask !== undefined && { mask }) });
  return readStat(step, yield* ask(plan));
}

/** Searches for what makes a mount busy. */
export const searchBusy = (mounted: Mounted): Task<Holders> =>
  searchHolders(mounted, { scope: 'busy', limit: SEARCH, flags: k.AT_SYMLINK_NOFOLLOW });

/** Returns the mount with its id; undefined when it is no longer at its path. */
export function* identify<M extends Mounted>(mounted: M): Task<(M & { readonly id: number }) | undefined> {
  const mask = mounted.id === undefined ? k.STATX_MNT_ID_UNIQUE | k.STATX_MNT_ID : mountIdMask(mounted.id);
  const { isMountRoot, mountId } = yield* statTarget(mounted, mask);
  if (!isMountRoot || (mounted.id !== undefined && mounted.id !== mountId)) return undefined;
  return { ...mounted, id: mountId };
}

// -------------------------------------------------------------------------------------------------- unmounting

/** How long to wait for momentary holders, such as a process that looks at a path, in ms. */
const MOMENT = 5;
/** How long to continue when no holder of the mount can be found but perhaps this library, in ms. */
const UNSEEN = 100;

/** Returns true when another call may have unmounted the mount that was found at the path. */
const isOther = (outcome: unknown): boolean =>
  outcome instanceof StepFailure && (outcome.guard === 'mount-is-another' || outcome.errno === e.EINVAL);

/** Returns true for what may be a descriptor of a plan under way, such as a replacement of this mount. */
const isPerhapsOurs = ({ pid, path }: Holder, mounted: Mounted): boolean =>
  pid === process.pid && path === pathString(mounted.path);

/** How often to look at the path again while other calls unmount and mount there. */
const MOST_ROUNDS = 4;

/**
 * Unmounts a mount. Each attempt calls `current` for it, because an object may stand for another mount meanwhile. If
 * no holder of a busy mount is found, or none but a descriptor of its root that another call may have, the unmount is
 * tried again before the call fails: the holder has released the mount since, or cannot be seen. Returns false if
 * another call has unmounted it before.
 */
export function* unmountMounted(
  current: () => Mounted,
  options: UnmountOptions,
  attempts = new Attempts(),
): Task<boolean> {
  const { signal, timeout = 0 } = options;
  const attempt = (mounted: () => Mounted, milliseconds: number) =>
    attempts.perform(
      () => unmountPlan(mounted(), options),
      { ...(signal && { signal }), timeout: milliseconds },
      current().held !== undefined,
    );
  let outcome = yield* attempt(current, Math.max(timeout, MOMENT));
  for (let round = 0; isBusy(outcome) || isOther(outcome); round++) {
    const found = yield* identify(current());
    if (isBusy(outcome)) {
      // From here on, the id identifies the mount. If another call unmounts it, the holders of the mount beneath do not
      // matter.
      const mounted = found ?? current();
      outcome = yield* attempt(() => mounted, round === 0 ? 0 : UNSEEN);
      if (!isBusy(outcome)) continue;
      const holders = yield* searchBusy(mounted);
      const isStill = (yield* identify(mounted)) !== undefined;
      const areSeen = holders.some((holder) => !isPerhapsOurs(holder, mounted));
      if (round >= MOST_ROUNDS || (isStill && (areSeen || round > 0))) {
        throw explainUnmount(mounted, outcome, { holders });
      }
    } else {
      if (round >= MOST_ROUNDS || current().id !== undefined || found === undefined) break;
      outcome = yield* attempt(current, 0);
    }
  }
  if (outcome instanceof StepFailure) throw yield* explain(current(), outcome);
  return outcome !== undefined;
}

export function* unmountOne(target: PathLike, options: UnmountOptions): Task<void> {
  const mounted = toMounted(target, options);
  yield* unmountMounted(() => mounted, options);
}
