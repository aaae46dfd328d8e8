/** Unmounting: umount2(2), what its errnos mean, and the work directory that an overlay leaves behind. */

import { checkMilliseconds, checkSignal, toBooleanOptions } from '../arguments.js';
import * as e from '../errnos.js';
import { conflictingOptions, OverlayError, type OverlayErrorFields } from '../errors.js';
import type { Holders } from '../holder.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { ask, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { type Held, take } from '../kernel/held.js';
import { addLook, type Found, lookSync, readLook } from '../kernel/look.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { findOption, shownLayers } from '../mount-strings.js';
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
import { Attempts, isBusy, type Waiting } from './attempts.js';
import { holdersText } from './holder-text.js';
import { deviceOf, seeMounts } from './in-use.js';
import { addJoin, checkNamespace, explainJoin, type NamespaceLike, toTarget } from './mount-namespace.js';
import { idHalves, type Mounted, mountIdMask } from './mounted.js';
import type { RawMount } from './raw-mount.js';
import { searchHolders } from './search-holders.js';
import { type FindQuery, findRaw } from './table.js';
import { removeWork } from './work-removal.js';

/** How to unmount: the flags of umount2(2), and what to do with what an overlay leaves. */
export interface UnmountOptions {
  /**
   * Takes the mount, with all mounts inside it, out of sight now and frees it when its last user ends
   * (MNT_DETACH). Until then an upperdir stays in use. Default false.
   */
  detach?: boolean;
  /** MNT_FORCE. OverlayFS itself has nothing to force; a busy overlay stays busy. Default false. */
  force?: boolean;
  /** Whether a target that is a symbolic link is followed. Default false (UMOUNT_NOFOLLOW). */
  followSymlinks?: boolean;
  /**
   * Removes the overlay's workdir afterwards: the directories `work` and `index` with what the kernel leaves in them,
   * whatever their modes, and the workdir itself by rmdir(2). Files of others in it stay: `'work-not-empty'`. A
   * workdir that an overlay still uses stays: `'work-in-use'`. A symbolic link that leads to it stays, too. Default false.
   */
  removeWork?: boolean;
  /**
   * How long to wait while the mount is busy, in milliseconds. Default 0; where there is a `signal`, without
   * end. No thread waits, but that of a twin does.
   */
  timeout?: number;
  /**
   * Ends the wait. An unmount that the kernel has begun is finished, and then counts. The twins look at it once,
   * before they begin.
   */
  signal?: AbortSignal;
  /** The mount namespace in which the target is, an absolute path there. Default: the caller's. */
  namespace?: NamespaceLike;
}

const booleans: ReadonlySet<string> = new Set(['detach', 'force', 'followSymlinks', 'removeWork']);
const names: ReadonlySet<string> = new Set([...booleans, 'timeout', 'signal', 'namespace']);

/** How to unmount a mount that knows which namespace it is in. */
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
      '"removeWork" cannot go with "namespace": the workdir may have another path there, or none',
      'leave one of the two out',
    );
  }
  if (checked.detach && checked.removeWork) {
    throw conflictingOptions(
      '"removeWork" cannot go with "detach": a detached overlay may still use its workdir',
      'leave one of the two out',
    );
  }
  return checked;
}

export function toMounted(target: PathLike, options: UnmountOptions): Mounted {
  const namespace = checkNamespace(options.namespace);
  const path = toTarget(target, namespace);
  // The slash would have the link followed all the same.
  return {
    path: options.followSymlinks ? path : withoutTrailingSlashes(path),
    namespace,
  };
}

function lookFlags(options: UnmountOptions): number {
  return options.followSymlinks ? 0 : k.AT_SYMLINK_NOFOLLOW;
}

/** Adds the steps that unmount what is mounted at a path, if it is the one that is meant. */
export function addUnmount(plan: Plan, mounted: Mounted, options: UnmountOptions): void {
  if (mounted.id !== undefined) {
    const { id, path } = mounted;
    plan.add(calls.statx, [k.AT_FDCWD, path, lookFlags(options), mountIdMask(id), 0, ...idHalves(id)]);
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

/** The workdir of the overlay that is mounted at a path, from the mount table. Whether it ends can be told afterwards. */
function* findWorkdir(
  { path, namespace }: Mounted,
  options: UnmountOptions,
): Dialogue<Pick<Mounted, 'workdir' | 'device'> | undefined> {
  const mount = yield* findMountAt({ path, namespace, isExact: true, flags: lookFlags(options) });
  if (mount?.type !== 'overlay') return undefined;
  const text = findOption(Buffer.from(mount.options, 'latin1'), 'workdir');
  if (text === undefined) return undefined;
  // The one that exists is meant.
  const candidates = shownLayers(text);
  const [workdir, another] = candidates.length === 1 ? candidates : candidates.filter(exists);
  // Where mount(2) or fsconfig(2) could not take the path, it was a descriptor's, of the process that mounted.
  const isDescriptor = text.toString('latin1').startsWith('/proc/self/fd/');
  if (workdir !== undefined && another === undefined && isAbsolute(workdir) && !isDescriptor) {
    yield* seeMounts([mount]);
    return { workdir, device: deviceOf(mount) };
  }
  throw new OverlayError({
    errno: e.EINVAL,
    reason: 'work-unknown',
    what: `the mount table shows the workdir of ${quotePath(path)} as ${quotePath(text)}, which can mean more than one directory`,
    path: pathString(path),
  });
}

/** Undefined where nothing is at the path: the unmount then fails, and says so. */
function* findMountAt(query: FindQuery): Dialogue<RawMount | undefined> {
  try {
    return yield* findRaw(query);
  } catch (error) {
    const reason = error instanceof OverlayError ? error.reason : undefined;
    if (reason === 'path-missing' || reason === 'path-inaccessible') return undefined;
    throw error;
  }
}

function exists(path: Path): boolean {
  return lookSync(path, { flags: k.AT_SYMLINK_NOFOLLOW }).errno === 0;
}

// ------------------------------------------------------------------------------------------ what went wrong

const INSIDE = 'unmount what is mounted inside first, or all at once with unmountTree';

const by = (holders: string): string => (holders === '' ? '; by whom is not to be seen' : ` by ${holders}`);

/** What a look after a failure has found. */
interface Facts {
  readonly found?: Found;
  /** When the mount is busy. */
  readonly holders?: Holders;
  /** What is done for all that. */
  readonly leftover?: string | undefined;
}

/** How long to search for those who hold a mount, in ms. */
const SEARCH = 500;

/** The reason for a failed unmount. Pure. */
export function explainUnmount(mounted: Mounted, failure: StepFailure, facts: Facts = {}): OverlayError {
  const { found, holders, leftover } = facts;
  const { errno, step } = failure;
  const shown = quotePath(mounted.path);
  const fields = (rest: Pick<OverlayErrorFields, 'reason' | 'what' | 'hint' | 'holders'>): OverlayError =>
    new OverlayError({
      errno: errno === e.ESTALE ? e.EINVAL : errno,
      syscall: errno === e.ESTALE ? undefined : step?.call.name,
      path: pathString(mounted.path),
      leftover,
      ...rest,
    });

  switch (errno) {
    case e.ENOENT:
      return fields({ reason: 'target-missing', what: `the target ${shown} does not exist`, hint: 'check the path' });
    case e.EBUSY:
      return fields({
        reason: 'mount-busy',
        what: `the mount at ${shown} is in use${holders && by(holdersText(holders))}`,
        hint: holders?.length && holders.every(({ what }) => what === 'inside') ? INSIDE : undefined,
        holders,
      });
    case e.EPERM:
      return fields({
        reason: 'no-privilege',
        what: `this process may not unmount ${shown}`,
        hint: `${todoOf('no-privilege')}; a seccomp filter, or a sandbox such as Landlock, refuses it to root too`,
      });
    case e.ESTALE:
      return fields({
        reason: 'not-mounted',
        what: `what is at ${shown} is not the mount that was made here any more`,
      });
    case e.EINVAL:
      if (found?.type === k.S_IFLNK) {
        return fields({
          reason: 'target-symlink',
          what: `the target ${shown} is a symbolic link`,
          hint: 'name the mount point itself, or pass `followSymlinks: true`',
        });
      }
      if (found?.isMountRoot && goesByDescriptors(mounted.path)) {
        return fields({
          reason: 'not-mounted',
          what: `the mount at ${shown} is attached nowhere in this namespace, or belongs to another user namespace`,
          hint: 'a detached mount ends by its own `unmount`, or when its descriptor is closed',
        });
      }
      if (found?.isMountRoot) {
        return fields({ reason: 'mount-locked', what: `the mount at ${shown} belongs to another user namespace` });
      }
      return fields({ reason: 'not-mounted', what: `the target ${shown} is not a mount point` });
    case e.EACCES:
    case e.ELOOP:
    case e.ENAMETOOLONG:
    case e.ENOTDIR:
      return fields({ reason: 'path-inaccessible', what: `the target ${shown} cannot be reached` });
    default:
      return fields({ reason: 'unexplained', what: `${shown} could not be unmounted` });
  }
}

/** Whether the mount itself is gone, for all that the unmount failed. */
export function isUnmountedAllTheSame(error: unknown): boolean {
  return error instanceof OverlayError && (error.syscall === 'rmdir' || error.reason === 'work-in-use');
}

/** Looks for the reason of a failure other than that the mount is busy. */
export function* explain(
  mounted: Mounted,
  failure: StepFailure,
  options: UnmountOptions,
  leftover?: string,
): Dialogue<OverlayError> {
  const notJoined = explainJoin(failure);
  if (notJoined !== undefined) return notJoined;
  return explainUnmount(mounted, failure, { found: yield* lookAt(mounted, options), leftover });
}

function* lookAt(mounted: Mounted, options: UnmountOptions, mask?: number): Dialogue<Found> {
  const plan = new Plan();
  if (mounted.namespace !== undefined) addJoin(plan, mounted.namespace);
  const step = addLook(plan, mounted.path, { flags: lookFlags(options), ...(mask !== undefined && { mask }) });
  return readLook(step, yield* ask(plan));
}

/** Who makes a mount busy. */
export const searchBusy = (mounted: Mounted, options: UnmountOptions): Dialogue<Holders> =>
  searchHolders(mounted, { scope: 'busy', limit: SEARCH, flags: lookFlags(options) });

/** The same mount with its id; undefined where it is not at its path any more. */
export function* identify<M extends Mounted>(
  mounted: M,
  options: UnmountOptions,
): Dialogue<(M & { readonly id: number }) | undefined> {
  const mask = mounted.id === undefined ? k.STATX_MNT_ID_UNIQUE | k.STATX_MNT_ID : mountIdMask(mounted.id);
  const { isMountRoot, mountId } = yield* lookAt(mounted, options, mask);
  if (!isMountRoot || (mounted.id !== undefined && mounted.id !== mountId)) return undefined;
  return { ...mounted, id: mountId };
}

// ------------------------------------------------------------------------------------------ what is to be done

/** Those who hold a mount for a moment only, such as a look at a path, are waited for so long, in ms. */
const MOMENT = 5;
/** An unmount goes on for so long where nobody can be found who holds the mount, in ms. */
const UNSEEN = 100;

/** Whether another call may have unmounted what was found at the path. */
const isOther = (outcome: unknown): boolean =>
  outcome instanceof StepFailure && (outcome.errno === e.ESTALE || outcome.errno === e.EINVAL);

/** How often a path is looked at anew where other calls unmount and mount. */
const MOST_ROUNDS = 4;

/**
 * Unmounts. `current` says what, at each attempt anew: an object may stand for another mount meanwhile. A busy mount is
 * tried again before the call fails, if nobody is found to hold it: whoever did has let go since, or cannot be seen.
 */
export function* unmountMounted(
  current: () => Mounted,
  options: UnmountOptions,
  attempts = new Attempts(),
): Dialogue<void> {
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
      // By its id from here on: who holds what is beneath it, when another call has unmounted it, is of no interest.
      const mounted = found ?? current();
      outcome = yield* attempt(() => mounted, round === 0 ? 0 : UNSEEN);
      if (!isBusy(outcome)) continue;
      const holders = yield* searchBusy(mounted, options);
      const isStill = (yield* identify(mounted, options)) !== undefined;
      if (round >= MOST_ROUNDS || (isStill && (holders.length > 0 || round > 0))) {
        throw explainUnmount(mounted, outcome, { holders });
      }
    } else {
      if (round >= MOST_ROUNDS || current().id !== undefined || found === undefined) break;
      outcome = yield* attempt(current, 0);
    }
  }
  if (outcome instanceof StepFailure) throw yield* explain(current(), outcome, options);
  // Not where another call has unmounted it before.
  if (options.removeWork && outcome !== undefined) yield* removeWork(current());
}

/** The options for the calling thread, on which a signal can end no wait. */
export const withoutEndlessWait = <T extends Waiting>(options: T): T =>
  options.signal === undefined ? options : { ...options, timeout: options.timeout ?? 0 };

function* unmountAt(target: PathLike, options: UnmountOptions): Dialogue<void> {
  const mounted = toMounted(target, options);
  const known = options.removeWork ? { ...mounted, ...(yield* findWorkdir(mounted, options)) } : mounted;
  yield* unmountMounted(() => known, options);
}

/**
 * Unmounts what is mounted at `target`: umount2(2). Of several mounts stacked there, the top one. Writes the
 * whole file system of an overlay's upperdir back first, which can take its time; the promise waits on a
 * thread of the library's own.
 *
 * A busy mount is tried again for up to a tenth of a second where nobody is found who uses it.
 *
 * @throws {OverlayError} `reason` is `'not-mounted'`, `'mount-busy'`, `'target-missing'`,
 * `'target-symlink'`, `'mount-locked'`, `'no-privilege'`, `'path-inaccessible'` or, when the mount is gone
 * and its workdir is not, `'work-not-empty'`, `'work-in-use'` or `'path-not-directory'`. Of a busy one, `holders` tells
 * who uses it.
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function unmount(target: PathLike, options?: UnmountOptions): Promise<void> {
  return hold(unmountAt(target, checkUnmountOptions(options, names)));
}

/** `unmount`, on the calling thread. */
export function unmountSync(target: PathLike, options?: UnmountOptions): void {
  holdSync(unmountAt(target, withoutEndlessWait(checkUnmountOptions(options, names))));
}
