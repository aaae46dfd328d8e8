/** Mounting: options are checked and planned here, performed in one crossing, and explained when they fail. */
import { describeErrno, EBUSY, EINVAL, ENOSYS, EPERM } from '../errnos.js';
import { abortError, invalidArgumentValue, OverlayError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { AT_FDCWD, AT_REMOVEDIR, FSCONFIG_CMD_CREATE, FSCONFIG_SET_STRING } from '../kernel/constants.js';
import { ask, type Dialogue, hold, holdSync } from '../kernel/dialogue.js';
import { type MountIds, readMountIds } from '../kernel/look.js';
import { type Outcome, type Outputs, perform, performSync, StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { type AttachOptions, refuseInside, takePlace } from '../mounts/change.js';
import { become, change, changeSync, Mount, mountedOf, use, useSync } from '../mounts/mount.js';
import { explainJoin } from '../mounts/mount-namespace.js';
import type { Mounted } from '../mounts/mounted.js';
import { unmountPlan } from '../mounts/unmount.js';
import {
  isAbsolute,
  isSamePath,
  joinPath,
  type Path,
  type PathLike,
  pathString,
  quotePath,
  toAbsolute,
  toBytes,
  withoutTrailingSlashes,
} from '../paths.js';
import { checkConflicts } from './conflicts.js';
import { explainMount, wantedAfter } from './diagnosis/explain.js';
import { emptyFacts } from './diagnosis/facts.js';
import { askUse, gather } from './diagnosis/gather.js';
import { look, lookSync } from './diagnosis/look.js';
import { type EffectiveOptions, effectiveOptions } from './effective.js';
import { featuresSync, type KernelFeatures } from './features.js';
import { type CheckedOptions, checkOptions, type OverlayOptions, takeOptions } from './options.js';
import { addVolatileRemoval, addXattrGuard, type MountPlan, madeInWork, plan, sentOptions } from './plan.js';
import { toVerify, verify } from './readback.js';
import { lease, rootlessRecord } from './rootless.js';
import { type Claim, catchUp, forgetGone, isBehind, lookAtUnseen, readClaim, uses, type Whereabouts } from './uses.js';

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
  constructor(given: OverlayOptions, checked: CheckedOptions, mounted: Mounted & MountIds) {
    const { workdir, namespace, rootless, subIds } = checked;
    // Each by its name: a spread would take longer than all the rest.
    const { path, id, device, held } = mounted;
    const onGone = (isDetached: boolean) => uses.release(id, isDetached);
    const isRootless = rootless !== false;
    const hasSubIds = isRootless && subIds;
    super(given.target, { path, id, device, held, workdir, namespace, isRootless, hasSubIds, onGone });
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

  override async attach(target: PathLike, options?: AttachOptions): Promise<void> {
    await super.attach(target, options);
    this.#settle();
  }

  override attachSync(target: PathLike, options?: AttachOptions): void {
    super.attachSync(target, options);
    this.#settle();
  }

  override async clone(): Promise<Mount> {
    const clone = await super.clone();
    uses.addClone(this.id);
    return clone;
  }

  override cloneSync(): Mount {
    const clone = super.cloneSync();
    uses.addClone(this.id);
    return clone;
  }

  /** What it uses is in use by a mount that has a place now. */
  #settle(): void {
    const mounted = mountedOf(this);
    uses.settle(mounted.id, mounted.path, whereaboutsOf(mounted));
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
      const { id } = mount;
      const { target } = mount;
      // The mount of `next` is this one's now: `next` has nothing any more that would end, or that it could let go of.
      become(next, undefined, { ...mountedOf(next), onGone: () => {} });
      become(mount, target, { ...mounted, onGone: (isDetached) => uses.release(mounted.id, isDetached) });
      uses.settle(mounted.id, mounted.path, whereaboutsOf(mounted));
      uses.release(id, true);
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

/** Of a mount that has a place. */
const whereaboutsOf = ({ namespace }: Mounted): Whereabouts => (namespace === undefined ? 'here' : 'elsewhere');

interface Prepared {
  readonly given: OverlayOptions;
  readonly checked: CheckedOptions;
  readonly features: KernelFeatures;
}

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
  const features = rootless ? rootlessRecord(record) : (record ?? featuresSync());
  return { given, checked: checkConflicts(checked, features), features };
}

/** A mount that is there, before it is known to be what was asked for. */
interface Made {
  readonly mounted: Mounted & MountIds;
  readonly claim: Claim | undefined;
  /** Whether its upper may be on a file system that keeps no marks: those that have no blocks are suspect. */
  readonly isSuspect: boolean;
  /** The directories that were made for it, from the top. */
  readonly directories: readonly Path[];
}

function toMade({ checked }: Prepared, planned: MountPlan, outputs: Outputs): Made {
  const { upperdir, workdir, exclusive } = checked;
  const ids = readMountIds(planned.id, outputs);
  const { id } = ids;
  const keys = readClaim(planned.news, planned.claim, outputs);
  const { superblock } = planned;
  const mounted = toMounted(ids, checked, planned, outputs);
  const { path, held } = mounted;
  const where = held ?? whereaboutsOf(mounted);
  return {
    mounted,
    claim: exclusive && upperdir && workdir ? { id, path, where, upperdir, workdir, keys } : undefined,
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

/** Whether there is more to do than to hand it out. */
function isInQuestion({ checked }: Prepared, { claim, isSuspect }: Made): boolean {
  const isUnclear = claim !== undefined && (claim.keys === undefined ? !uses.isEmpty : uses.unseen.length > 0);
  const isRefused = !isUnclear && claim !== undefined && !uses.take(claim);
  return isUnclear || isRefused || isSuspect || toVerify(checked).length > 0;
}

/**
 * The error for a mount that is not what was asked for. On the calling thread in both forms: the mount is there, and
 * a program that exits now would leave it.
 */
function question(prepared: Prepared, made: Made): Error | undefined {
  if (!isInQuestion(prepared, made)) return undefined;
  try {
    return holdSync(findFault(prepared, made));
  } catch (error) {
    return error as Error; // what cannot be looked at is not known to be right
  }
}

function* findFault({ checked, features }: Prepared, made: Made): Dialogue<OverlayError | undefined> {
  return (
    (yield* findOvertaken(checked, made)) ??
    (made.isSuspect ? yield* findMarkless(checked, features) : undefined) ??
    (toVerify(checked).length > 0 ? yield* verify(checked, features, made.mounted) : undefined)
  );
}

/** A mount that is not what was asked for is taken down again. */
function* takeDown({ checked }: Prepared, made: Made, fault: Error): Dialogue<Error> {
  uses.forget(made.mounted.id);
  const isTaken = fault instanceof OverlayError && fault.reason === 'upper-in-use';
  const outcome = yield* ask(takeDownPlan(checked, made, isTaken));
  if (outcome instanceof StepFailure) {
    fault.message += ` The mount is still there: it could not be unmounted (${describeErrno(outcome.errno)[0]}).`;
  }
  return fault;
}

function* findOvertaken(checked: CheckedOptions, { claim }: Made): Dialogue<OverlayError | undefined> {
  if (claim === undefined) return undefined;
  // Those that came before have been looked at when this one is.
  function* take(of: Claim): Dialogue<boolean> {
    if (of.keys === undefined) return !(yield* lookAtUnseen(of)).includes(of.id);
    yield* lookAtUnseen();
    return uses.take(of);
  }
  if (yield* take(claim)) return undefined;
  // A mount may have been seen at the moment at which it went, and been put down all the same.
  // biome-ignore lint/correctness/useYield: no directory is asked for: this very mount uses them
  const hasGone = yield* forgetGone([], function* () {
    return [];
  });
  return hasGone && (yield* take(claim)) ? undefined : overtaken(checked);
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

/** The same upper by two names, at the same time: the second to come loses. */
function overtaken({ upperdir = '', target }: CheckedOptions): OverlayError {
  return new OverlayError({
    errno: EBUSY,
    reason: 'upper-in-use',
    what: `the upperdir ${quotePath(upperdir)} or its workdir was taken by another overlay while ${target === undefined ? 'a detached one' : `the one at ${quotePath(target)}`} was mounted`,
    path: pathString(upperdir),
  });
}

function takeDownPlan(checked: CheckedOptions, { mounted, directories }: Made, isTaken: boolean): Plan {
  const { workdir } = checked;
  const { steps } = unmountPlan(mounted, { detach: true });
  const takeDown = new Plan();
  for (const { call, args } of steps) takeDown.add(call, args);
  addVolatileRemoval(takeDown, checked, false);
  // In a workdir that was there before, or that has been taken, it may be another overlay's.
  if (workdir !== undefined && !isTaken && directories.some((path) => isSamePath(path, workdir))) {
    takeDown.add(calls.sweep, [AT_FDCWD, joinPath(workdir, 'work')], { tolerate: 'any' });
    for (const name of madeInWork) {
      takeDown.add(calls.unlinkat, [AT_FDCWD, joinPath(workdir, name), AT_REMOVEDIR], { tolerate: 'any' });
    }
  }
  for (const path of [...directories].reverse()) {
    takeDown.add(calls.unlinkat, [AT_FDCWD, path, AT_REMOVEDIR], { tolerate: 'any' });
  }
  return takeDown;
}

const toMount = ({ given, checked }: Prepared, { mounted }: Made): OverlayMount =>
  new OverlayMount(given, checked, mounted);

/** After the guard has refused an upper: whether it is worth another try. */
function* tryClaimAgain({ checked }: Prepared, failure: StepFailure): Dialogue<boolean> {
  if (isBehind(failure)) {
    yield* catchUp();
    return true;
  }
  if (failure.step?.call !== calls.claim || failure.errno !== EBUSY) return false;
  return yield* forgetGone([checked.upperdir, checked.workdir], function* () {
    const { upper, work } = yield* askUse(checked);
    return [upper, work];
  });
}

/** A plan, and what is to be done when it has been performed. */
type Planned = [planned: MountPlan, end: () => void];

/** The plan of a mount with the privilege of this process. */
const planHere = ({ checked, features }: Prepared): Planned => [plan(checked, features), () => {}];

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
  if (isByPath && errno === EINVAL && features.lowerdirAppend && features.layerDescriptors !== false) {
    return { ...prepared, features: { ...features, lowerdirAppend: false } };
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

/** Mounts under way by target, upper and work: of two at once for one of these, the second has to see the first. */
const underWay = new Map<string, Promise<unknown>>();

/** The same for all texts of a path that differ in doubled slashes and dots alone; `..` may lead anywhere. */
function keyOf(path: Path): string {
  const isAscii = typeof path === 'string' && /^[\x20-\x7e]*$/.test(path);
  const text = isAscii ? path : Buffer.from(toBytes(path)).toString('latin1');
  // Most have none of these, and a copy takes longer than a look.
  return /\/\.?(?:\/|$)/.test(text) ? text.replace(/(?:\/\.?)+(?=\/|$)/g, '') : text;
}

/** What no other mount may take meanwhile. */
function claimedPaths({ stack, target, exclusive, upperdir, workdir }: CheckedOptions): string[] {
  const claimed: string[] = [];
  if (!stack && target !== undefined) claimed.push(keyOf(target));
  if (exclusive && upperdir !== undefined) claimed.push(keyOf(upperdir));
  if (exclusive && workdir !== undefined) claimed.push(keyOf(workdir));
  return claimed;
}

function findUnderWay(claimed: readonly string[]): Promise<unknown> | undefined {
  if (underWay.size === 0) return undefined;
  return claimed.map((key) => underWay.get(key)).find((before) => before !== undefined);
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
  const prepared = prepare(options, features);
  const claimed = claimedPaths(prepared.checked);
  for (let before = findUnderWay(claimed); before !== undefined; before = findUnderWay(claimed)) {
    await before.catch(() => {});
  }
  const own = mountPrepared(prepared);
  for (const key of claimed) underWay.set(key, own);
  try {
    return await own;
  } finally {
    for (const key of claimed) underWay.delete(key);
  }
}

async function mountPrepared(prepared: Prepared): Promise<OverlayMount> {
  const { checked } = prepared;
  const { signal } = checked;
  if (signal?.aborted) throw abortError(signal);
  if (checked.exclusive && uses.unseen.length > 0) await hold(lookAtUnseen());
  const [planned, end] = checked.rootless === false ? planHere(prepared) : await hold(planRootless(prepared));
  let outcome: Outcome;
  try {
    outcome = await perform(planned.plan, signal);
  } finally {
    end();
  }
  if (!(outcome instanceof StepFailure)) {
    const made = toMade(prepared, planned, outcome);
    const error = question(prepared, made);
    if (error === undefined) return toMount(prepared, made);
    throw await hold(takeDown(prepared, made, error));
  }
  if (outcome.cancelled && signal) throw abortError(signal, outcome.undoErrno);
  if (await hold(tryClaimAgain(prepared, outcome))) return mountPrepared(prepared);
  const again = retry(prepared, outcome);
  if (again !== undefined) return mountPrepared(again);
  const notJoined = explainJoin(outcome);
  if (notJoined !== undefined) throw notJoined;
  throw explainMount(checked, outcome, await look(checked, wantedAfter(outcome)));
}

/** `mountOverlay`, on the calling thread. */
export function mountOverlaySync(options: OverlayOptions): OverlayMount {
  return mountOverlayWithSync(options);
}

/** `mountOverlayWith`, on the calling thread. */
export function mountOverlayWithSync(options: OverlayOptions, features?: KernelFeatures): OverlayMount {
  return mountPreparedSync(prepare(options, features));
}

function mountPreparedSync(prepared: Prepared): OverlayMount {
  const { checked } = prepared;
  if (checked.exclusive && uses.unseen.length > 0) holdSync(lookAtUnseen());
  const [planned, end] = checked.rootless === false ? planHere(prepared) : holdSync(planRootless(prepared));
  const outcome = performSync(planned.plan);
  end();
  if (!(outcome instanceof StepFailure)) {
    const made = toMade(prepared, planned, outcome);
    const error = question(prepared, made);
    if (error === undefined) return toMount(prepared, made);
    throw holdSync(takeDown(prepared, made, error));
  }
  if (holdSync(tryClaimAgain(prepared, outcome))) return mountPreparedSync(prepared);
  const again = retry(prepared, outcome);
  if (again !== undefined) return mountPreparedSync(again);
  const notJoined = explainJoin(outcome);
  if (notJoined !== undefined) throw notJoined;
  throw explainMount(checked, outcome, lookSync(checked, wantedAfter(outcome)));
}
