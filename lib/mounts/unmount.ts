/** Unmounts: umount2(2), the meaning of its errnos, and the work directory that an overlay leaves behind. */
import { checkMilliseconds, checkSignal, toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, OverlayError } from '../errors.js';
import type { Holder, Holders } from '../holder.js';
import { searchHolders } from '../holders/search-mounts.js';
import { holdersText } from '../holders/text.js';
import { deviceOf, seeMounts } from '../in-use/registry.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { addMountGuard } from '../kernel/guards.js';
import { type Held, take } from '../kernel/held.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat, type StatResult, statPathSync } from '../kernel/stat.js';
import { ask, run, runSync, type Task } from '../kernel/task.js';
import { findOption, shownLayers } from '../mount-strings.js';
import { type Mounted, mountIdMask } from '../mount-table/identity.js';
import type { RawMount } from '../mount-table/raw-mount.js';
import { type FindQuery, findRaw } from '../mount-table/table.js';
import { addJoin, checkNamespace, explainJoin, type NamespaceLike, toTarget } from '../namespaces/mount-namespace.js';
import {
  goesByDescriptors,
  isAbsolute,
  type Path,
  type PathLike,
  pathString,
  quotePath,
  withoutTrailingSlashes,
} from '../paths.js';
import { todoOf } from '../reasons.js';
import { either, member, option, type Text, text } from '../text.js';
import { explainErrno, replacedMount, type Verdict } from '../verdicts.js';
import { Attempts, isBusy, type Waiting } from './attempts.js';
import { removeWork } from './work-removal.js';

/** Options for unmounting: the flags of umount2(2), and the treatment of what an overlay leaves behind. */
export interface UnmountOptions {
  /**
   * Removes the mount and all mounts inside it from view at once; the kernel frees it when its last user ends
   * (MNT_DETACH). Until then, its upperdir stays in use. Default false.
   */
  detach?: boolean;
  /** MNT_FORCE. It has no effect on OverlayFS: a busy overlay stays busy. Default false. */
  force?: boolean;
  /** Follows a target that is a symbolic link. Default false (UMOUNT_NOFOLLOW). */
  followSymlinks?: boolean;
  /**
   * Removes the overlay's workdir afterwards: the directories `work` and `index` with what the kernel leaves in them,
   * whatever their modes, and the workdir itself by rmdir(2). Files of others in it stay: `'work-not-empty'`. A
   * workdir that an overlay still uses stays: `'work-in-use'`. A symbolic link that leads to it stays, too. Default false.
   */
  removeWork?: boolean;
  /**
   * How long to wait while the mount is busy, in milliseconds. Default 0, or without limit when a `signal` is given.
   * The promise form blocks no thread while it waits; the synchronous form blocks the calling thread.
   */
  timeout?: number;
  /**
   * Ends the wait. An unmount that the kernel has begun is completed, and the call then succeeds. The synchronous form
   * checks the signal once, before it begins.
   */
  signal?: AbortSignal;
  /** The mount namespace of the target, which is then an absolute path in it. Default: the caller's. */
  namespace?: NamespaceLike;
}

const booleans: ReadonlySet<string> = new Set(['detach', 'force', 'followSymlinks', 'removeWork']);
const names: ReadonlySet<string> = new Set([...booleans, 'timeout', 'signal', 'namespace']);

/** Options for unmounting a `Mount`, which knows its namespace. */
export type MountUnmountOptions = Omit<UnmountOptions, 'namespace'>;

const mountNames: ReadonlySet<string> = new Set([...names].filter((name) => name !== 'namespace'));

const noOptions: UnmountOptions = Object.freeze({});

export function checkMountUnmountOptions(options: MountUnmountOptions | undefined): UnmountOptions {
  return checkUnmountOptions(options, mountNames);
}

function checkUnmountOptions(options: UnmountOptions | undefined, known: ReadonlySet<string>): UnmountOptions {
  if (options === undefined) return noOptions;
  const checked = toBooleanOptions(options, known, booleans);
  checkMilliseconds(checked.timeout, 'timeout');
  checkSignal(checked.signal);
  if (checkNamespace(checked.namespace) !== undefined && checked.removeWork) {
    throw conflictingOptions(
      text`${option('removeWork')} and ${option('namespace')} exclude each other: the workdir may have another path there, or none`,
      'leave one of the two out',
    );
  }
  if (checked.detach && checked.removeWork) {
    throw conflictingOptions(
      text`${option('removeWork')} and ${option('detach')} exclude each other: a detached overlay may still use its workdir`,
      'leave one of the two out',
    );
  }
  return checked;
}

export function toMounted(target: PathLike, options: UnmountOptions): Mounted {
  const namespace = checkNamespace(options.namespace);
  const path = toTarget(target, namespace);
  // A trailing slash would make the kernel follow the link all the same.
  return {
    path: options.followSymlinks ? path : withoutTrailingSlashes(path),
    namespace,
  };
}

function statFlags(options: UnmountOptions): number {
  return options.followSymlinks ? 0 : k.AT_SYMLINK_NOFOLLOW;
}

/** Adds the steps that unmount the mount at a path, provided that it is the intended one. */
export function addUnmount(plan: Plan, mounted: Mounted, options: UnmountOptions): void {
  if (mounted.id !== undefined) {
    const { id, path } = mounted;
    plan.add(calls.statx, [k.AT_FDCWD, path, statFlags(options), mountIdMask(id)]);
    addMountGuard(plan, id);
  }
  const flags =
    (options.force ? k.MNT_FORCE : 0) |
    (options.detach ? k.MNT_DETACH : 0) |
    (options.followSymlinks ? 0 : k.UMOUNT_NOFOLLOW);
  plan.add(calls.umount2, [mounted.path, flags]);
}

export function unmountPlan(mounted: Mounted, options: UnmountOptions): Plan {
  const plan = new Plan();
  if (mounted.namespace !== undefined) addJoin(plan, mounted.namespace);
  if (mounted.held === undefined) addUnmount(plan, mounted, options);
  else addClose(plan, mounted.held);
  return plan;
}

function addClose(plan: Plan, held: Held): void {
  const descriptor = take(held);
  if (descriptor !== undefined) plan.add(calls.close, [descriptor]);
}

/**
 * Returns the workdir of the overlay at a path, from the mount table. Also adds the overlay to the record of
 * directories in use, so that a later step can tell if it has ended.
 */
function* findWorkdir(
  { path, namespace }: Mounted,
  options: UnmountOptions,
): Task<Pick<Mounted, 'workdir' | 'device'> | undefined> {
  const mount = yield* findMountAt({ path, namespace, isExact: true, flags: statFlags(options) });
  if (mount?.type !== 'overlay') return undefined;
  const text = findOption(Buffer.from(mount.options, 'latin1'), 'workdir');
  if (text === undefined) return undefined;
  // If the text can mean several directories, the one that exists is meant.
  const candidates = shownLayers(text);
  const [workdir, another] = candidates.length === 1 ? candidates : candidates.filter(exists);
  // A path that mount(2) or fsconfig(2) could not take was passed as a file descriptor of the process that mounted.
  const isDescriptor = text.toString('latin1').startsWith('/proc/self/fd/');
  if (workdir !== undefined && another === undefined && isAbsolute(workdir) && !isDescriptor) {
    yield* seeMounts([mount]);
    return { workdir, device: deviceOf(mount) };
  }
  throw new OverlayError({
    errno: e.EINVAL,
    reason: 'work-unknown',
    what: `the mount table shows the workdir of ${quotePath(path)} as ${quotePath(text)}, which can mean several directories`,
    path: pathString(path),
  });
}

/** Returns undefined when nothing is at the path. The unmount then fails and reports this. */
function* findMountAt(query: FindQuery): Task<RawMount | undefined> {
  try {
    return yield* findRaw(query);
  } catch (error) {
    const reason = error instanceof OverlayError ? error.reason : undefined;
    if (reason === 'path-missing' || reason === 'path-inaccessible') return undefined;
    throw error;
  }
}

function exists(path: Path): boolean {
  return statPathSync(path, { flags: k.AT_SYMLINK_NOFOLLOW }).errno === 0;
}

// ------------------------------------------------------------------------------------------------- failures

const INSIDE: Text = either('unmount the mounts inside it first', 'unmount all of them with unmountTree');

const usedBy = (holders: string): string =>
  holders === '' ? ', and no process that uses it could be identified' : `: in use by ${holders}`;

/** Facts that were gathered after a failure. */
interface Facts {
  readonly found?: StatResult;
  /** Set when the mount is busy. */
  readonly holders?: Holders;
  /** The part of the work that was done before the failure. */
  readonly leftover?: string | undefined;
}

/** How long to search for the holders of a mount, in ms. */
const SEARCH = 500;

/** The rules of an unmount. The others are those of any call. */
function findVerdict({ path }: Mounted, { errno, guard }: StepFailure, facts: Facts): Verdict | undefined {
  if (guard === 'mount-is-another') return replacedMount(path);
  const { found, holders } = facts;
  const shown = quotePath(path);
  const isMountRoot = found?.isMountRoot === true;
  switch (errno) {
    case e.EBUSY:
      return {
        reason: 'mount-busy',
        what: `the mount at ${shown} is busy${holders === undefined ? '' : usedBy(holdersText(holders))}`,
        hint: holders?.length && holders.every(({ what }) => what === 'inside') ? INSIDE : undefined,
      };
    case e.EPERM:
      return {
        reason: 'no-privilege',
        what: `this process may not unmount ${shown}`,
        hint: text`${todoOf('no-privilege')}; a seccomp filter, or a sandbox such as Landlock, refuses it to root too`,
      };
    case e.EINVAL:
      if (found?.type === k.S_IFLNK) {
        return {
          reason: 'target-symlink',
          what: `the target ${shown} is a symbolic link`,
          hint: either('name the mount point itself', text`pass ${option('followSymlinks', true)}`),
        };
      }
      if (isMountRoot && goesByDescriptors(path)) {
        return {
          reason: 'not-mounted',
          what: `the mount at ${shown} is not attached in this namespace, or belongs to another user namespace`,
          hint: either(text`end a detached mount by its own ${member('unmount')}`, 'close its descriptor'),
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
    ...(findVerdict(mounted, failure, facts) ??
      explainErrno(errno, { name, purpose: `unmount ${shown}`, missing: 'target-missing' })),
  });
}

/** Returns true when the mount is gone although the call has failed. */
export function isUnmountedAllTheSame(error: unknown): boolean {
  return error instanceof OverlayError && (error.syscall === 'rmdir' || error.reason === 'work-in-use');
}

/** Finds the reason for a failure other than a busy mount. */
export function* explain(
  mounted: Mounted,
  failure: StepFailure,
  options: UnmountOptions,
  leftover?: string,
): Task<OverlayError> {
  const notJoined = explainJoin(failure);
  if (notJoined !== undefined) return notJoined;
  return explainUnmount(mounted, failure, { found: yield* statTarget(mounted, options), leftover });
}

function* statTarget(mounted: Mounted, options: UnmountOptions, mask?: number): Task<StatResult> {
  const plan = new Plan();
  if (mounted.namespace !== undefined) addJoin(plan, mounted.namespace);
  const step = addStat(plan, mounted.path, { flags: statFlags(options), ...(mask !== undefined && { mask }) });
  return readStat(step, yield* ask(plan));
}

/** Searches for what makes a mount busy. */
export const searchBusy = (mounted: Mounted, options: UnmountOptions): Task<Holders> =>
  searchHolders(mounted, { scope: 'busy', limit: SEARCH, flags: statFlags(options) });

/** Returns the mount with its id; undefined when it is no longer at its path. */
export function* identify<M extends Mounted>(
  mounted: M,
  options: UnmountOptions,
): Task<(M & { readonly id: number }) | undefined> {
  const mask = mounted.id === undefined ? k.STATX_MNT_ID_UNIQUE | k.STATX_MNT_ID : mountIdMask(mounted.id);
  const { isMountRoot, mountId } = yield* statTarget(mounted, options, mask);
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
 * tried again before the call fails: the holder has released the mount since, or cannot be seen.
 */
export function* unmountMounted(
  current: () => Mounted,
  options: UnmountOptions,
  attempts = new Attempts(),
): Task<void> {
  const { signal, timeout = signal === undefined ? 0 : Infinity } = options;
  const attempt = (mounted: () => Mounted, milliseconds: number) =>
    attempts.perform(
      () => unmountPlan(mounted(), options),
      { ...(signal && { signal }), timeout: milliseconds },
      current().held !== undefined,
    );
  let outcome = yield* attempt(current, Math.max(timeout, MOMENT));
  for (let round = 0; isBusy(outcome) || isOther(outcome); round++) {
    const found = yield* identify(current(), options);
    if (isBusy(outcome)) {
      // From here on, the id identifies the mount. If another call unmounts it, the holders of the mount beneath do not
      // matter.
      const mounted = found ?? current();
      outcome = yield* attempt(() => mounted, round === 0 ? 0 : UNSEEN);
      if (!isBusy(outcome)) continue;
      const holders = yield* searchBusy(mounted, options);
      const isStill = (yield* identify(mounted, options)) !== undefined;
      const areSeen = holders.some((holder) => !isPerhapsOurs(holder, mounted));
      if (round >= MOST_ROUNDS || (isStill && (areSeen || round > 0))) {
        throw explainUnmount(mounted, outcome, { holders });
      }
    } else {
      if (round >= MOST_ROUNDS || current().id !== undefined || found === undefined) break;
      outcome = yield* attempt(current, 0);
    }
  }
  if (outcome instanceof StepFailure) throw yield* explain(current(), outcome, options);
  // Skipped when another call has already unmounted it.
  if (options.removeWork && outcome !== undefined) yield* removeWork(current());
}

/** Returns the options for the calling thread. A signal cannot end a wait there, so the default is not to wait. */
export const withoutEndlessWait = <T extends Waiting>(options: T): T =>
  options.signal === undefined ? options : { ...options, timeout: options.timeout ?? 0 };

function* unmountAt(target: PathLike, options: UnmountOptions): Task<void> {
  const mounted = toMounted(target, options);
  const known = options.removeWork ? { ...mounted, ...(yield* findWorkdir(mounted, options)) } : mounted;
  yield* unmountMounted(() => known, options);
}

/**
 * Unmounts the mount at `target`: umount2(2). If several mounts are stacked there, it unmounts the top one. The kernel
 * first writes back the whole file system of an overlay's upperdir, which can take time. The promise waits for it on a
 * thread of the library's own.
 *
 * If no user of a busy mount can be found, the call tries again for up to a tenth of a second.
 *
 * @throws {OverlayError} `reason` is `'not-mounted'`, `'mount-busy'`, `'target-missing'`,
 * `'target-symlink'`, `'mount-locked'`, `'no-privilege'`, `'path-inaccessible'` or, when the mount is gone
 * and its workdir is not, `'work-not-empty'`, `'work-in-use'` or `'path-not-directory'`. `holders` tells who uses a
 * busy one.
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function unmount(target: PathLike, options?: UnmountOptions): Promise<void> {
  return run(unmountAt(target, checkUnmountOptions(options, names)));
}

/** The synchronous form of `unmount`. */
export function unmountSync(target: PathLike, options?: UnmountOptions): void {
  runSync(unmountAt(target, withoutEndlessWait(checkUnmountOptions(options, names))));
}
