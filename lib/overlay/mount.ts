/** Mounting: options are checked and planned here, performed in one crossing, and explained when they fail. */
import { describeErrno, EBUSY, EINVAL, ENOSYS, EPERM } from '../errnos.js';
import { abortError, invalidArgumentValue, type OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { AT_FDCWD, AT_REMOVEDIR, FSCONFIG_CMD_CREATE, FSCONFIG_SET_STRING } from '../kernel/constants.js';
import { ask, type Dialogue, hold, holdSync, inEitherForm, pause } from '../kernel/dialogue.js';
import { type MountIds, readMountIds } from '../kernel/look.js';
import { type Outcome, type Outputs, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { Pauses } from '../mounts/attempts.js';
import { refuseInside, takePlace } from '../mounts/change.js';
import { findUser, forgetUser, isStale, refresh } from '../mounts/in-use.js';
import { become, change, changeSync, Mount, mountedOf, use, useSync } from '../mounts/mount.js';
import { explainJoin } from '../mounts/mount-namespace.js';
import type { Mounted } from '../mounts/mounted.js';
import { unmountPlan } from '../mounts/unmount.js';
import { askUse } from '../mounts/use-probe.js';
import { addWorkContentsRemoval } from '../mounts/work-removal.js';
import { isAbsolute, isSamePath, type Path, type PathLike, toAbsolute, withoutTrailingSlashes } from '../paths.js';
import { checkConflicts } from './conflicts.js';
import { explainMount, wantedAfter } from './diagnosis/explain.js';
import { emptyFacts } from './diagnosis/facts.js';
import { gather } from './diagnosis/gather.js';
import { look, lookSync } from './diagnosis/look.js';
import { type EffectiveOptions, effectiveOptions } from './effective.js';
import { briefFeaturesSync, featuresSync, type KernelFeatures } from './features.js';
import { type CheckedOptions, checkOptions, type OverlayOptions, takeOptions } from './options.js';
import { planPlain } from './plain-plan.js';
import { addVolatileRemoval, addXattrGuard, type MountPlan, plan, sentOptions } from './plan.js';
import { toVerify, verify } from './readback.js';
import { lease, rootlessRecord } from './rootless.js';

/** The options of a mount that takes the place of another: all but those that say where. */
export type ReplaceOptions = Omit<
  OverlayOptions,
  'target' | 'stack' | 'namespace' | 'rootless' | 'subIds' | 'propagation'
>;

let takeOver: (mount: OverlayMount, next: OverlayMount, mounted: Mounted & { readonly id: number }) => void;

/** The caller's options, taken once. */
function replaceOptions(options: ReplaceOptions): OverlayOptions {
  const given = takeOptions(options);
  for (const name of ['target', 'stack', 'namespace', 'rootless', 'subIds', 'propagation'] as const) {
    if (given[name] === undefined) continue;
    throw invalidArgumentValue(name, given[name], 'cannot be given here: the place is that of the mount');
  }
  return given;
}

/** Throws where a mount cannot be replaced, before anything is mounted. */
function* checkReplaced(mount: OverlayMount, options: ReplaceOptions): Dialogue<void> {
  if (mount.target === undefined) {
    throw invalidArgumentValue('options', options, 'replace a mount that has a target: this one is detached');
  }
  yield* refuseInside(mountedOf(mount));
}

/** An overlay that was mounted here. Unmount it, or have it disposed of with `using` or `await using`. */
export class OverlayMount extends Mount {
  #options: Readonly<OverlayOptions>;

  /** The options with which it was mounted, the workdir that `create` chose among them. */
  get options(): Readonly<OverlayOptions> {
    return this.#options;
  }

  /** @internal */
  constructor(given: OverlayOptions, checked: CheckedOptions, mounted: Mounted & MountIds, ownsWork: boolean) {
    const { workdir, namespace, rootless, subIds } = checked;
    // Each by its name: a spread would take longer than all the rest.
    const { path, id, device, held } = mounted;
    const isRootless = rootless !== false;
    const hasSubIds = isRootless && subIds;
    super(given.target, { path, id, device, held, workdir, ownsWork, namespace, isRootless, hasSubIds });
    this.#options = workdir === undefined || given.workdir !== undefined ? given : { ...given, workdir };
  }

  /**
   * The options in force, as the kernel shows them: statmount(2), 6.8, or the mount table. What has a default of the
   * module's and is at it is not shown, and not here.
   *
   * @throws {OverlayError} `reason` is `'not-mounted'`, or `'feature-unverifiable'` for a detached mount that cannot
   * be looked at
   */
  async effective(): Promise<EffectiveOptions> {
    return use(this, (mounted) => hold(effectiveOptions(mounted)));
  }

  /** `effective`, on the calling thread. */
  effectiveSync(): EffectiveOptions {
    return useSync(this, (mounted) => holdSync(effectiveOptions(mounted)));
  }

  /**
   * Puts an overlay of other layers in the place of this one, in one step: MOVE_MOUNT_BENEATH, 6.5. At no time is
   * the place empty; files that are open stay those of the old one, which ends with the last of them. This object
   * then is the new mount. An upper that both have is refused as in use; with `exclusive: false` it is not, and what
   * is then written through the old one's open files is lost or not, as the kernel has it. What is mounted inside the
   * old one would go with it, and is refused. Several calls of one object come one after the other.
   *
   * @throws as `mountOverlay`; `reason` is `'mount-inside'`, `'not-mounted'`, or `'option-unsupported'` where the
   * kernel has no such step
   */
  async replace(options: ReplaceOptions): Promise<void> {
    const given = replaceOptions(options);
    await change(this, async () => {
      await hold(checkReplaced(this, options));
      const next = await mountOverlay(given);
      try {
        takeOver(this, next, await hold(takePlace(mountedOf(this), mountedOf(next))));
      } finally {
        await next.unmount();
      }
    });
  }

  /** `replace`, on the calling thread. */
  replaceSync(options: ReplaceOptions): void {
    const given = replaceOptions(options);
    changeSync(this, () => {
      holdSync(checkReplaced(this, options));
      const next = mountOverlaySync(given);
      try {
        takeOver(this, next, holdSync(takePlace(mountedOf(this), mountedOf(next))));
      } finally {
        next.unmountSync();
      }
    });
  }

  static {
    takeOver = (mount, next, mounted) => {
      const { target } = mount;
      become(mount, target, mounted);
      mount.#options = { ...next.options, target: target as PathLike };
    };
  }
}

/** Paths that mean the same on every thread and at every time. */
function resolve(options: CheckedOptions): CheckedOptions {
  const { lowerdir, upperdir, workdir, target } = options;
  const areAbsolute =
    options.datadir.length === 0 &&
    (target === undefined || isAbsolute(target)) &&
    (upperdir === undefined || isAbsolute(upperdir)) &&
    (workdir === undefined || isAbsolute(workdir)) &&
    lowerdir.every(isAbsolute);
  if (areAbsolute) return options;
  const absolute = (path: Path | undefined) => (path === undefined ? undefined : toAbsolute(path));
  return {
    ...options,
    lowerdir: lowerdir.map(toAbsolute),
    datadir: options.datadir.map(toAbsolute),
    upperdir: absolute(upperdir),
    workdir: absolute(workdir),
    target: absolute(target),
  };
}

interface Prepared {
  readonly given: OverlayOptions;
  readonly checked: CheckedOptions;
  readonly features: KernelFeatures;
}

const featuresFor = ({ overlay, datadir, idmap }: CheckedOptions): KernelFeatures =>
  overlay.length === 0 && datadir.length === 0 && idmap === undefined ? briefFeaturesSync() : featuresSync();

/** The checks that come before any plan. */
export function prepare(options: OverlayOptions, record?: KernelFeatures): Prepared {
  const given = takeOptions(options);
  const asked = resolve(checkOptions(given));
  // Its lists are the caller's to change; of a length that has been checked.
  for (const name of ['lowerdir', 'datadir', 'allowDegraded'] as const) {
    const list = given[name];
    if (Array.isArray(list)) Object.assign(given, { [name]: [...list] });
  }
  if (asked.signal?.aborted) throw abortError(asked.signal);
  const rootless = asked.rootless === 'auto' ? (record ?? featuresSync()).mayMount !== true : asked.rootless;
  const checked = asked.rootless === rootless ? asked : { ...asked, rootless };
  const features = rootless ? rootlessRecord(record) : (record ?? featuresFor(checked));
  return { given, checked: checkConflicts(checked, features), features };
}

/** A mount that is there, before it is known to be what was asked for. */
interface Made {
  readonly mounted: Mounted & MountIds;
  /** Whether its upper may be on a file system that keeps no marks: those that have no blocks are suspect. */
  readonly isSuspect: boolean;
  /** The directories that were made for it, from the top. */
  readonly directories: readonly Path[];
}

function toMade({ checked }: Prepared, planned: MountPlan, outputs: Outputs): Made {
  const { superblock } = planned;
  return {
    mounted: toMounted(readMountIds(planned.id, outputs), checked, planned, outputs),
    isSuspect: superblock !== undefined && outputs.number(superblock, BLOCKS) === 0,
    directories:
      planned.made.length === 0
        ? noPaths
        : planned.made.filter((step) => outputs.result(step) >= 0).map(({ args }) => args[1] as Path),
  };
}

/** Where the mount is, and what holds one that has no place. */
function toMounted(
  { id, device }: MountIds,
  { target, namespace }: CheckedOptions,
  { descriptor }: MountPlan,
  outputs: Outputs,
): Mounted & MountIds {
  if (descriptor === undefined) return { id, device, path: withoutTrailingSlashes(target as Path), namespace };
  const held = { descriptor: outputs.result(descriptor) };
  return { id, device, path: `/proc/self/fd/${held.descriptor}`, held };
}

const noPaths: readonly Path[] = [];

/** In the output of statfs(2). */
const BLOCKS = 2;

/**
 * The error for a mount that is not what was asked for. On the calling thread in both forms: the mount is there, and
 * a program that exits now would leave it.
 */
function verifyMounted(prepared: Prepared, made: Made): Error | undefined {
  if (!made.isSuspect && toVerify(prepared.checked).length === 0) return undefined;
  try {
    return holdSync(findProblem(prepared, made));
  } catch (error) {
    return error as Error; // what cannot be looked at is not known to be right
  }
}

function* findProblem({ checked, features }: Prepared, made: Made): Dialogue<OverlayError | undefined> {
  return (
    (made.isSuspect ? yield* findMarkless(checked, features) : undefined) ??
    (toVerify(checked).length > 0 ? yield* verify(checked, features, made.mounted) : undefined)
  );
}

/** A mount that is not what was asked for is taken down again. */
function* takeDown({ checked }: Prepared, made: Made, fault: Error): Dialogue<Error> {
  const outcome = yield* ask(takeDownPlan(checked, made));
  if (outcome instanceof StepFailure) {
    fault.message += ` The mount is still there: it could not be unmounted (${describeErrno(outcome.errno)[0]}).`;
  }
  return fault;
}

/** The error for an upper without attributes, if it has none. */
function* findMarkless(checked: CheckedOptions, features: KernelFeatures): Dialogue<OverlayError | undefined> {
  const { upperdir } = checked;
  if (upperdir === undefined || sentOptions(checked, features).some(([name]) => name === 'userxattr')) return undefined;
  const guard = new Plan();
  addXattrGuard(guard, upperdir, 'trusted');
  const outcome = yield* ask(guard);
  if (!(outcome instanceof StepFailure)) return undefined;
  const draft = emptyFacts();
  yield* gather(draft, checked, wantedAfter(outcome));
  return explainMount(checked, outcome, draft);
}

function takeDownPlan(checked: CheckedOptions, { mounted, directories }: Made): Plan {
  const { workdir } = checked;
  const { steps } = unmountPlan(mounted, { detach: true });
  const takeDown = new Plan();
  for (const { call, args } of steps) takeDown.add(call, args);
  addVolatileRemoval(takeDown, checked, false);
  // In a workdir that was there before, it may be another overlay's.
  if (workdir !== undefined && isAmong(directories, workdir)) {
    addWorkContentsRemoval(takeDown, AT_FDCWD, workdir, 'any');
  }
  for (const path of [...directories].reverse()) {
    takeDown.add(calls.unlinkat, [AT_FDCWD, path, AT_REMOVEDIR], { tolerate: 'any' });
  }
  return takeDown;
}

const isAmong = (paths: readonly Path[], path: Path): boolean => paths.some((other) => isSamePath(other, path));

function toMount({ given, checked }: Prepared, { mounted, directories }: Made): OverlayMount {
  const { workdir } = checked;
  const ownsWork = workdir !== undefined && directories.length > 0 && isAmong(directories, workdir);
  return new OverlayMount(given, checked, mounted, ownsWork);
}

/** After a guard has refused upper or work: whether the mount is worth another try. */
function* settleUse({ checked }: Prepared, failure: StepFailure): Dialogue<boolean> {
  if (isStale(failure)) {
    yield* refresh();
    return true;
  }
  const directory = failure.step?.options.subject?.path;
  if (failure.step?.call !== calls.reserve || failure.errno !== EBUSY || directory === undefined) return false;
  const pauses = new Pauses(MOMENT);
  for (;;) {
    const user = yield* findUser(directory);
    if (user === undefined) return true;
    if (user.isCertain) return false;
    if ((yield* askKernel(checked, directory)) === false) {
      yield* forgetUser(directory, user);
      return true;
    }
    const length = pauses.next();
    if (length === undefined) return false;
    yield* pause(length, checked.signal);
  }
}

/**
 * An overlay out of sight may be about to end: a process that was killed, or one that reads another's files in /proc,
 * holds it for a moment. So long it is waited for, in ms.
 */
const MOMENT = 20;

/** Whether the kernel says that a directory is in use; undefined where this process may not ask. */
function* askKernel({ rootless, subIds, lowerdir }: CheckedOptions, directory: Path): Dialogue<boolean | undefined> {
  const lower = lowerdir[0] as Path;
  if (rootless === false) return yield* askUse(directory, lower);
  const { namespaces, end } = yield* lease(rootless, subIds);
  try {
    return yield* askUse(directory, lower, namespaces);
  } finally {
    end();
  }
}

/** A plan, and what is to be done when it has been performed. */
type Planned = [planned: MountPlan, end: () => void];

/** The plan of a mount with the privilege of this process. */
const planHere = ({ checked, features }: Prepared): Planned => [
  planPlain(checked, features) ?? plan(checked, features),
  () => {},
];

/** The plan of a mount in namespaces, which it may first have to be given. */
function* planRootless({ checked, features }: Prepared): Dialogue<Planned> {
  const { namespaces, end } = yield* lease(checked.rootless, checked.subIds);
  try {
    return [plan(checked, features, namespaces), end];
  } catch (error) {
    end();
    throw error;
  }
}

/** What is to be tried when the kernel has refused, if anything. */
function retry(prepared: Prepared, failure: StepFailure): Prepared | undefined {
  const { checked, features } = prepared;
  const { step, errno } = failure;
  // A seccomp filter may know mount(2) only. If it is the privilege that is lacking, that says so too.
  if (checked.target !== undefined && step?.call === calls.fsopen && (errno === EPERM || errno === ENOSYS)) {
    return { ...prepared, features: { ...features, mountApi: false } };
  }
  // As a string a path is no reason for the kernel to mount what comes at its end by itself, such as by autofs(5).
  const isByPath = step?.call === calls.fsconfig && step.args[1] === FSCONFIG_SET_STRING && step.options.subject;
  const isRefusedPath = isByPath && errno === EINVAL && features.layerDescriptors !== false;
  // One by one, the layers show which of them the kernel refuses.
  const isWhole = step?.call === calls.fsconfig && step.args[2] === 'lowerdir';
  if ((isRefusedPath || isWhole) && features.lowerdirAppend === true) {
    return { ...prepared, features: { ...features, lowerdirAppend: 'unknown' } };
  }
  const again = withMetacopy(checked, failure);
  return again && { ...prepared, checked: again };
}

/** Whether a kernel wants metacopy with data-only layers shows only when it refuses the mount without a word. */
function withMetacopy(checked: CheckedOptions, { step, errno }: StepFailure): CheckedOptions | undefined {
  const { datadir, overlay, userxattr } = checked;
  const isRefusal = errno === EINVAL && step?.call === calls.fsconfig && step.args[1] === FSCONFIG_CMD_CREATE;
  if (datadir.length === 0 || userxattr || !isRefusal || overlay.some(({ name }) => name === 'metacopy')) {
    return undefined;
  }
  return { ...checked, overlay: [...overlay, { name: 'metacopy', kernel: 'metacopy', value: 'on' }] };
}

/**
 * Mounts an overlay: fsopen(2) to move_mount(2) from Linux 6.5 on, mount(2) before (5.10 is the oldest kernel
 * that is tested). Either the mount is there, with its upper writable, or the call fails and nothing is mounted
 * or left behind. The calls are made in the mount namespace of the calling thread, on a thread of the
 * library's own.
 *
 * Without a `target` the mount is detached: no path leads to it but `/proc/self/fd/N`. With `rootless` no
 * privilege is needed for that, see docs/rootless.md.
 *
 * @throws {TypeError} `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`: an option is wrong, or two conflict
 * @throws {RangeError} `ERR_OUT_OF_RANGE`: too many layers
 * @throws {OverlayError} the mount failed; `reason` says why
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export function mountOverlay(options: OverlayOptions): Promise<OverlayMount> {
  return mountOverlayWith(options);
}

/** `mountOverlay`, decided from a given record of what the kernel can do. */
export async function mountOverlayWith(options: OverlayOptions, features?: KernelFeatures): Promise<OverlayMount> {
  return hold(mountPrepared(prepare(options, features)));
}

/** `mountOverlay`, on the calling thread. */
export function mountOverlaySync(options: OverlayOptions): OverlayMount {
  return mountOverlayWithSync(options);
}

/** `mountOverlayWith`, on the calling thread. */
export function mountOverlayWithSync(options: OverlayOptions, features?: KernelFeatures): OverlayMount {
  return holdSync(mountPrepared(prepare(options, features)));
}

function* mountPrepared(prepared: Prepared): Dialogue<OverlayMount> {
  const { checked } = prepared;
  const { signal, exclusive, upperdir, rootless } = checked;
  // The plan of such a mount sees the mounts of a namespace of its own.
  if (exclusive && upperdir !== undefined && rootless !== false) yield* refresh();
  const [planned, end] = rootless === false ? planHere(prepared) : yield* planRootless(prepared);
  let outcome: Outcome;
  try {
    outcome = yield* ask(planned.plan, signal);
  } finally {
    end();
  }
  if (!(outcome instanceof StepFailure)) {
    const made = toMade(prepared, planned, outcome);
    const error = verifyMounted(prepared, made);
    if (error === undefined) return toMount(prepared, made);
    throw yield* takeDown(prepared, made, error);
  }
  if (outcome.cancelled && signal) throw abortError(signal, outcome.undoErrno);
  if (yield* settleUse(prepared, outcome)) return yield* mountPrepared(prepared);
  const again = retry(prepared, outcome);
  if (again !== undefined) return yield* mountPrepared(again);
  const notJoined = explainJoin(outcome);
  if (notJoined !== undefined) throw notJoined;
  const wanted = wantedAfter(outcome);
  const facts = yield* inEitherForm(
    () => look(checked, wanted),
    () => lookSync(checked, wanted),
  );
  throw explainMount(checked, outcome, facts);
}
