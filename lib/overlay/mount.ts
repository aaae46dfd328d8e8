/** Checks and plans the options of a mount, performs the plan in one native call, and explains a failure. */
import { explainMount, wantedAfter } from '../diagnosis/explain.js';
import { gatherFacts, gatherFactsSync } from '../diagnosis/gather-facts.js';
import { describeErrno, EINVAL, ENOENT, ENOSYS, ENOTEMPTY, EPERM } from '../errnos.js';
import { abortError, invalidArgumentValue, type OverlayError } from '../errors.js';
import { checkConflicts } from '../features/conflicts.js';
import { findBriefFeatures, findFeatures } from '../features/probe.js';
import type { KernelFeatures } from '../features/record.js';
import { askUse } from '../in-use/probe.js';
import { findUser, forgetUser, isStale, refresh } from '../in-use/registry.js';
import { calls } from '../kernel/calls.js';
import {
  AT_FDCWD,
  AT_REMOVEDIR,
  FSCONFIG_CMD_CREATE,
  FSCONFIG_SET_STRING,
  O_CLOEXEC,
  O_DIRECTORY,
  O_PATH,
} from '../kernel/constants.js';
import { close, type Held } from '../kernel/held.js';
import { type Outcome, type Outputs, StepFailure } from '../kernel/perform.js';
import { Plan, type Step } from '../kernel/plan.js';
import { type MountIds, readMountIds } from '../kernel/stat.js';
import { ask, inEitherForm, pause, run, runSync, type Task } from '../kernel/task.js';
import type { Mounted } from '../mount-table/identity.js';
import { Pauses } from '../mounts/attempts.js';
import { refuseInside, takePlace } from '../mounts/change.js';
import { cloned, internalsOf, Mount } from '../mounts/mount.js';
import { unmountPlan } from '../mounts/unmount.js';
import { addWorkContentsRemoval } from '../mounts/work-removal.js';
import { addJoin, explainJoin } from '../namespaces/mount-namespace.js';
import { type CheckedOptions, checkOptions, type OverlayOptions, takeOptions } from '../options/check.js';
import { copyPath, isAbsolute, isSamePath, type Path, toAbsolute, withoutTrailingSlashes } from '../paths.js';
import { type OverlayRunOptions, type RunResult, runIn } from '../programs/run.js';
import { findRootlessFeatures, lease } from '../rootless/lease.js';
import { type EffectiveOptions, effectiveOptions } from './effective.js';
import { findMarkless } from './find-markless.js';
import { planPlain } from './plain-plan.js';
import { addVolatileRemoval, type MountPlan, plan, planLayers, sentOptions, temporaryNames } from './plan.js';
import { toVerify, verify } from './verify.js';

/** The options of a mount that replaces another: all except those that choose the place. */
export type ReplaceOptions = Omit<
  OverlayOptions,
  'target' | 'stack' | 'namespace' | 'rootless' | 'subIds' | 'propagation' | 'temporary'
>;

let takeOver: (mount: OverlayMount, next: OverlayMount, mounted: Mounted & { readonly id: number }) => void;

/** Reads the caller's options once. */
function replaceOptions(options: ReplaceOptions): OverlayOptions {
  const given = takeOptions(options);
  for (const name of ['target', 'stack', 'namespace', 'rootless', 'subIds', 'propagation', 'temporary'] as const) {
    if (given[name] === undefined) continue;
    throw invalidArgumentValue(
      name,
      given[name],
      'cannot be given here: the new mount takes the target of the old one',
    );
  }
  return given;
}

/** Throws if the mount cannot be replaced. Runs before anything is mounted. */
function* checkReplaced(mount: OverlayMount, options: ReplaceOptions): Task<void> {
  if (mount.target === undefined) {
    throw invalidArgumentValue(
      'options',
      options,
      'cannot be used: this mount is detached, and only a mount with a target can be replaced',
    );
  }
  yield* refuseInside(internalsOf(mount).mounted);
}

/** An overlay that this process mounted. Unmount it, or let `using` or `await using` dispose of it. */
export class OverlayMount extends Mount {
  #options: Readonly<OverlayOptions>;

  /** The options of the mount, with absolute paths, including the workdir that `create` chose. */
  get options(): Readonly<OverlayOptions> {
    return this.#options;
  }

  /** @internal */
  constructor(options: Readonly<OverlayOptions>, mounted: Mounted & MountIds) {
    super(mounted);
    this.#options = options;
  }

  /**
   * Runs a program that sees this overlay, as `run` does: at its target; without one, at its only lower directory, of
   * which the program then changes a copy; or at the `target` that the call names. The program starts in the working
   * directory if that is inside, else in the overlay's root.
   *
   * @throws as `run`; `ERR_INVALID_ARG_TYPE`: there is no target and more than one lower layer, and `target` is missing
   *
   * @example
   * const overlay = await mountOverlay({ lowerdir: '/srv/project', upperdir, workdir, rootless: 'auto' });
   * const { exitCode } = await overlay.run('npm', ['test']);
   */
  run(
    command: string,
    args: readonly string[] | undefined,
    options: OverlayRunOptions & { encoding: 'buffer' },
  ): Promise<RunResult<Buffer>>;
  run(command: string, args?: readonly string[], options?: OverlayRunOptions): Promise<RunResult>;
  async run(
    command: string,
    args?: readonly string[],
    options: OverlayRunOptions = {},
  ): Promise<RunResult<string | Buffer>> {
    return runIn(this, [this.options.lowerdir].flat(), command, args, options);
  }

  override async clone(): Promise<OverlayMount> {
    return toClone(this, await run(clonedWithLayers(this)));
  }

  override cloneSync(): OverlayMount {
    return toClone(this, runSync(clonedWithLayers(this)));
  }

  /**
   * Returns the options in force, as the kernel shows them: statmount(2) from Linux 6.8 on, else the mount table. The
   * kernel does not show an option that equals its module's default, so the result does not have it.
   *
   * @throws {OverlayError} `reason` is `'not-mounted'`, or `'feature-unverifiable'` for a detached mount whose options
   * the kernel does not show
   */
  async effective(): Promise<EffectiveOptions> {
    return run(readEffective(this));
  }

  /** The synchronous form of `effective`. */
  effectiveSync(): EffectiveOptions {
    return runSync(readEffective(this));
  }

  /**
   * Replaces this overlay by one with other layers, in one step (MOVE_MOUNT_BENEATH, Linux 6.5). The mount point is
   * never empty. Open files stay files of the old overlay, which ends when the last of them is closed. This object
   * then stands for the new mount.
   *
   * The library refuses an upperdir that both overlays have, as in use. `exclusive: false` allows it; then the kernel
   * decides whether writes through open files of the old overlay are lost. The library also refuses to replace an
   * overlay with mounts inside it, because they would go with it. Several calls on one object run one after the other.
   *
   * @throws as `mountOverlay`; also with the `reason` `'mount-inside'`, `'not-mounted'`, or `'option-unsupported'` if
   * the kernel has no such step
   */
  async replace(options: ReplaceOptions): Promise<void> {
    await run(replace(this, readOptions(replaceOptions(options)), options));
  }

  /** The synchronous form of `replace`. */
  replaceSync(options: ReplaceOptions): void {
    runSync(replace(this, readOptions(replaceOptions(options)), options));
  }

  static {
    takeOver = (mount, next, mounted) => {
      const { held } = internalsOf(next).mounted;
      internalsOf(mount).replaceState(mounted);
      // At once: an unmount by path finds the new mount busy while this file descriptor is open.
      if (held !== undefined) close(held);
      mount.#options = { ...next.options, target: mount.target as Path };
    };
  }
}

/** Makes a clone with a descriptor of its own for the layers in memory. */
function* clonedWithLayers(mount: OverlayMount): Task<Mounted & MountIds> {
  const { memory } = internalsOf(mount).mounted;
  const made = yield* cloned(mount);
  if (memory === undefined) return made;
  const plan = new Plan();
  const args = [AT_FDCWD, `/proc/self/fd/${memory.descriptor}`, O_DIRECTORY | O_PATH | O_CLOEXEC, 0] as const;
  const step = plan.stepOf(plan.add(calls.openat2, args, { keep: true, output: 0 }));
  const outcome = yield* ask(plan);
  // The clone has then no layers that can be named.
  return outcome instanceof StepFailure ? made : { ...made, memory: { descriptor: outcome.result(step) } };
}

/** The clone has the options of the mount, and no target. */
function toClone({ options }: OverlayMount, mounted: Mounted & MountIds): OverlayMount {
  const { target: _, ...rest } = options;
  if (!options.temporary) return new OverlayMount(rest, mounted);
  // Those of the mount go by its own descriptor.
  const { upperdir: _upper, workdir: _work, ...others } = rest;
  return new OverlayMount({ ...others, ...(mounted.memory && layersIn(mounted.memory)) }, mounted);
}

function readEffective(mount: OverlayMount): Task<EffectiveOptions> {
  const { lock } = internalsOf(mount);
  return lock.share(() => effectiveOptions(internalsOf(mount).mounted));
}

/** Mounts the replacement without a target, and lets it take the place of the mount. */
function replace(mount: OverlayMount, requested: Requested, options: ReplaceOptions): Task<void> {
  return internalsOf(mount).lock.exclude(function* () {
    yield* checkReplaced(mount, options);
    const [prepared, made] = yield* make(yield* prepare(requested));
    const next = toMount(prepared, made);
    const end = () =>
      inEitherForm(
        () => next.unmount(),
        () => next.unmountSync(),
      );
    try {
      takeOver(mount, next, yield* takePlace(internalsOf(mount).mounted, internalsOf(next).mounted));
    } catch (error) {
      yield* end();
      yield* removeMade(prepared.checked, made);
      throw error;
    }
    yield* end();
  });
}

/** Makes the paths absolute, so that they mean the same on every thread and at every time. */
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

/** The plans of mapped layers, of layers in memory and of places for detached mounts depend on the whole record. */
function featuresFor({ overlay, datadir, idmap, temporary, rootless, target }: CheckedOptions): Task<KernelFeatures> {
  const isBrief = overlay.length === 0 && datadir.length === 0 && idmap === undefined && temporary === undefined;
  return isBrief && (rootless === false || target !== undefined) ? findBriefFeatures() : findFeatures();
}

/** The caller's options, and what they mean. */
interface Requested {
  readonly given: OverlayOptions;
  readonly asked: CheckedOptions;
}

const pathNames = ['lowerdir', 'datadir', 'upperdir', 'workdir', 'target'] as const;

/** Puts the path that was asked for in the place of the one that was given, which may be relative. */
function keepPath(given: OverlayOptions, asked: CheckedOptions, name: (typeof pathNames)[number]): void {
  const value = given[name];
  const paths = asked[name] as Path | readonly Path[] | undefined;
  // A property that every object inherits is no option.
  if (value === undefined || paths === undefined) return;
  const [path] = Array.isArray(paths) ? paths : [paths];
  // Mostly it is there already: a store by a computed name takes some microseconds.
  if (path === value && typeof value === 'string') return;
  Object.assign(given, { [name]: Array.isArray(value) ? (paths as readonly Path[]).map(copyPath) : copyPath(path) });
}

/** Reads and checks the caller's options. It is no generator, whose frames would push the caller out of the stack trace. */
export function readOptions(options: OverlayOptions): Requested {
  const given = takeOptions(options);
  const asked = resolve(checkOptions(given));
  // The caller may change its lists later. Their lengths have been checked.
  for (const name of pathNames) keepPath(given, asked, name);
  if (Array.isArray(given.allowDegraded)) given.allowDegraded = [...given.allowDegraded];
  if (asked.signal?.aborted) throw abortError(asked.signal);
  return { given, asked };
}

/** Decides what `'auto'` means, and asks what the kernel supports for such a mount. */
export function* settle({ given, asked }: Requested, record?: KernelFeatures): Task<Prepared> {
  const rootless = asked.rootless === 'auto' ? (record ?? (yield* findFeatures())).mayMount !== true : asked.rootless;
  const checked = asked.rootless === rootless ? asked : { ...asked, rootless };
  const features = rootless ? yield* findRootlessFeatures(record) : (record ?? (yield* featuresFor(checked)));
  return { given, checked, features };
}

/** Runs the checks against the kernel's features that come before any plan. */
export function* prepare(requested: Requested, record?: KernelFeatures): Task<Prepared> {
  const { given, checked, features } = yield* settle(requested, record);
  return { given, checked: checkConflicts(checked, features), features };
}

/** A new mount that has not been verified yet. */
interface Made {
  readonly mounted: Mounted & MountIds;
  /** True if the upperdir's file system may be unable to keep marks: one without blocks is suspect. */
  readonly isSuspect: boolean;
  /** The directories that the plan made for the mount, from the top. */
  readonly directories: readonly Path[];
  /** Those that it made in the target's namespace, if that is another. */
  readonly directoriesThere: readonly Path[];
}

function toMade({ checked }: Prepared, planned: MountPlan, outputs: Outputs): Made {
  const { superblock } = planned;
  return {
    mounted: toMounted(readMountIds(planned.id, outputs), checked, planned, outputs),
    isSuspect: superblock !== undefined && outputs.number(superblock, BLOCKS) === 0,
    directories: directoriesMadeBy(planned.made, outputs),
    directoriesThere: directoriesMadeBy(planned.madeThere, outputs),
  };
}

export const directoriesMadeBy = (steps: readonly Step[], outputs: Outputs): readonly Path[] =>
  steps.length === 0 ? noPaths : steps.filter((step) => outputs.result(step) >= 0).map(({ args }) => args[1] as Path);

/** Returns the path of the mount and, for a detached mount, the file descriptor that holds it. */
function toMounted(
  { id, device }: MountIds,
  { target, namespace }: CheckedOptions,
  { descriptor, place, spare, memory: step }: MountPlan,
  outputs: Outputs,
): Mounted & MountIds {
  const memory = step && { descriptor: outputs.result(step) };
  if (descriptor === undefined) return { id, device, path: withoutTrailingSlashes(target as Path), namespace, memory };
  const held = {
    descriptor: outputs.result(descriptor),
    place: place && { descriptor: outputs.result(place) },
    spare: spare && { descriptor: outputs.result(spare) },
  };
  return { id, device, path: `/proc/self/fd/${held.descriptor}`, held, memory };
}

const noPaths: readonly Path[] = [];

/** The index of the block count in the output of statfs(2). */
const BLOCKS = 2;

/**
 * Returns the error for a mount that differs from what the caller asked for. Runs on the calling thread in both forms:
 * the mount exists already, and a program that exited now would leave it behind.
 */
function verifyMounted(prepared: Prepared, made: Made): Error | undefined {
  if (!made.isSuspect && toVerify(prepared.checked).length === 0) return undefined;
  try {
    return runSync(findProblem(prepared, made));
  } catch (error) {
    return error as Error; // a mount that cannot be verified counts as wrong
  }
}

function* findProblem({ checked, features }: Prepared, made: Made): Task<OverlayError | undefined> {
  const { upperdir } = checked;
  const usesTrusted = () => !sentOptions(checked, features).some(([name]) => name === 'userxattr');
  if (made.isSuspect && upperdir !== undefined && usesTrusted()) {
    const markless = yield* findMarkless(checked, upperdir, 'trusted');
    if (markless !== undefined) return markless;
  }
  return toVerify(checked).length > 0 ? yield* verify(checked, features, made.mounted) : undefined;
}

/**
 * Unmounts a mount that differs from what the caller asked for, and returns the error. Runs on the calling thread in
 * both forms, as `verifyMounted` does.
 */
function takeDown({ checked }: Prepared, made: Made, fault: Error): Error {
  const outcome = runSync(ask(unmountPlan(made.mounted, { detach: true })));
  if (outcome instanceof StepFailure) {
    fault.message += ` The mount is still there: it could not be unmounted (${describeErrno(outcome.errno)[0]}).`;
  } else {
    runSync(removeMade(checked, made));
  }
  return fault;
}

/** Removes the directories that were made for a mount, after its end. */
function* removeMade(checked: CheckedOptions, { directories, directoriesThere }: Made): Task<void> {
  const { workdir, namespace } = checked;
  const plan = new Plan();
  addVolatileRemoval(plan, checked);
  // In a workdir that existed before, the contents may belong to another overlay.
  if (workdir !== undefined && isAmong(directories, workdir)) {
    addWorkContentsRemoval(plan, AT_FDCWD, workdir, 'any');
  }
  addRemoval(plan, directories);
  yield* ask(plan);
  if (namespace === undefined || directoriesThere.length === 0) return;
  const planThere = new Plan();
  addJoin(planThere, namespace);
  addRemoval(planThere, directoriesThere);
  yield* ask(planThere);
}

function addRemoval(plan: Plan, directories: readonly Path[]): void {
  for (const path of [...directories].reverse()) {
    plan.add(calls.unlinkat, [AT_FDCWD, path, AT_REMOVEDIR], { tolerate: 'any' });
  }
}

const isAmong = (paths: readonly Path[], path: Path): boolean => paths.some((other) => isSamePath(other, path));

function toMount({ given, checked }: Prepared, { mounted, directories }: Made): OverlayMount {
  const { workdir, namespace, rootless, subIds } = checked;
  const ownsWork = workdir !== undefined && directories.length > 0 && isAmong(directories, workdir);
  // A spread would take longer than the rest of this function.
  const { path, id, device, held, memory } = mounted;
  const isRootless = rootless !== false;
  const hasSubIds = isRootless && subIds;
  let options = given;
  if (memory !== undefined) options = { ...given, ...layersIn(memory), rootless };
  else if (workdir !== undefined && given.workdir === undefined) options = { ...given, workdir };
  const made = { path, id, device, held, memory, workdir, ownsWork, namespace, isRootless, hasSubIds };
  return new OverlayMount(options, made);
}

/** The paths of the layers in a tmpfs, while its descriptor is open. */
function layersIn({ descriptor }: Held): Pick<OverlayOptions, 'upperdir' | 'workdir'> {
  const at = (name: string): string => `/proc/self/fd/${descriptor}/${name}`;
  return { upperdir: at(temporaryNames.upperdir), workdir: at(temporaryNames.workdir) };
}

/** Decides, after a guard has refused the upperdir or workdir, whether to try the mount again. */
function* settleUse({ checked }: Prepared, failure: StepFailure): Task<boolean> {
  if (isStale(failure)) {
    yield* refresh();
    return true;
  }
  const directory = failure.step?.options.subject?.path;
  if (failure.guard !== 'directory-is-in-use' || directory === undefined) return false;
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
    yield* pause(length);
    if (checked.signal?.aborted) throw abortError(checked.signal, failure.undoErrno);
  }
}

/**
 * How long to wait for an overlay that is no longer visible to end, in milliseconds. A killed process, or a process
 * that reads another one's files in /proc, keeps the overlay for a moment.
 */
const MOMENT = 20;

/** Asks the kernel whether a directory is in use. Returns undefined if this process may not ask. */
function* askKernel({ rootless, subIds, lowerdir }: CheckedOptions, directory: Path): Task<boolean | undefined> {
  const lower = lowerdir[0] as Path;
  if (rootless === false) return yield* askUse(directory, lower);
  const { namespaces, end } = yield* lease(rootless, subIds);
  try {
    return yield* askUse(directory, lower, namespaces);
  } finally {
    end();
  }
}

/** A plan, and the function to call after it has been performed. */
type Planned = [planned: MountPlan, end: () => void];

/** Returns the plan of a mount that uses the privilege of this process. */
const planHere = ({ checked, features }: Prepared): Planned => [
  planPlain(checked, features) ?? plan(checked, features),
  () => {},
];

/** Returns the plan of a mount in namespaces, and makes the namespaces first if necessary. */
function* planRootless({ checked, features }: Prepared): Task<Planned> {
  const { namespaces, end } = yield* lease(checked.rootless, checked.subIds);
  try {
    return [plan(checked, features, namespaces), end];
  } catch (error) {
    end();
    throw error;
  }
}

/** Returns what to try next after the kernel has refused, or undefined. */
function retry(prepared: Prepared, failure: StepFailure): Prepared | undefined {
  const { checked, features } = prepared;
  const { step, errno } = failure;
  // A seccomp filter may allow mount(2) only. If the process lacks privilege instead, mount(2) reports that too.
  const isRefused = step?.call === calls.fsopen && (errno === EPERM || errno === ENOSYS);
  const isByMount = checked.target !== undefined && checked.idmap === undefined && checked.namespace === undefined;
  if (isRefused && features.mountApi && isByMount) {
    return { ...prepared, features: { ...features, mountApi: false } };
  }
  // The kernel does not trigger an automount, such as autofs(5), at the end of a path that is passed as a string.
  const isByPath = step?.call === calls.fsconfig && step.args[1] === FSCONFIG_SET_STRING && step.options.subject;
  const isRefusedPath = isByPath && errno === EINVAL && features.layerDescriptors !== false;
  // Layers that are set one by one show which of them the kernel refuses.
  const isWhole = step?.call === calls.fsconfig && step.args[2] === 'lowerdir';
  if ((isRefusedPath || isWhole) && features.lowerdirAppend === true) {
    return { ...prepared, features: { ...features, lowerdirAppend: 'unknown' } };
  }
  // A filter may hide that the kernel is older than the probed call.
  const isPlaceless = step?.call === calls.move_mount && errno === EINVAL && checked.target === undefined;
  if (isPlaceless && features.openTreeAttr === true) {
    return { ...prepared, features: { ...features, openTreeAttr: false } };
  }
  const again = withMetacopy(checked, failure);
  return again && { ...prepared, checked: again };
}

/**
 * Adds metacopy to the options if its absence may be why the kernel refused data-only layers. The kernel gives no
 * message in that case, so only the refusal tells.
 */
function withMetacopy(checked: CheckedOptions, { step, errno }: StepFailure): CheckedOptions | undefined {
  const { datadir, overlay, userxattr } = checked;
  const isRefusal = errno === EINVAL && step?.call === calls.fsconfig && step.args[1] === FSCONFIG_CMD_CREATE;
  if (datadir.length === 0 || userxattr || !isRefusal || overlay.some(({ name }) => name === 'metacopy')) {
    return undefined;
  }
  return { ...checked, overlay: [...overlay, { name: 'metacopy', kernel: 'metacopy', value: 'on' }] };
}

/**
 * Mounts an overlay: with fsopen(2) to move_mount(2) from Linux 6.5 on, with mount(2) before. Linux 5.10 is the oldest
 * kernel that is tested. Either the mount exists and its upperdir is writable, or the call fails and leaves no mount and
 * no directory that it made. The library makes the system calls on a thread of its own, in the mount namespace of the
 * calling thread.
 *
 * Without a `target` the mount is detached: the only path to it is `/proc/self/fd/N`. With `rootless` a detached mount
 * needs no privilege; see docs/rootless.md.
 *
 * @throws {TypeError} `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`: an option is wrong, or two conflict
 * @throws {RangeError} `ERR_OUT_OF_RANGE`: too many layers
 * @throws {OverlayError} the mount failed; `reason` says why
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export function mountOverlay(options: OverlayOptions): Promise<OverlayMount> {
  return mountOverlayWith(options);
}

/** `mountOverlay` with a given record of what the kernel supports. */
export async function mountOverlayWith(options: OverlayOptions, features?: KernelFeatures): Promise<OverlayMount> {
  return run(mountWith(readOptions(options), features));
}

/** The synchronous form of `mountOverlay`. */
export function mountOverlaySync(options: OverlayOptions): OverlayMount {
  return mountOverlayWithSync(options);
}

/** The synchronous form of `mountOverlayWith`. */
export function mountOverlayWithSync(options: OverlayOptions, features?: KernelFeatures): OverlayMount {
  return runSync(mountWith(readOptions(options), features));
}

function* mountWith(requested: Requested, features?: KernelFeatures): Task<OverlayMount> {
  return toMount(...(yield* make(yield* prepare(requested, features))));
}

/** How often to try again when other calls take back directories that they and this call create. */
const MOST_ROUNDS = 4;

/**
 * Returns true if the upperdir or workdir may have vanished during the plan: another call with `create` made it, failed,
 * and took it back before this plan had reserved it.
 */
function mayHaveVanished({ create }: CheckedOptions, { step, errno, guard }: StepFailure): boolean {
  const role = step?.options.subject?.role;
  const isMissing = errno === ENOENT && (role === 'upperdir' || role === 'workdir');
  // The kernel mounts read-only if it cannot make its directory in a workdir.
  return create && (isMissing || guard === 'superblock-is-read-only');
}

/** Makes the mount and verifies it. `undoErrno` is that of an earlier round. */
function* make(prepared: Prepared, round = 0, undoErrno = 0): Task<[Prepared, Made]> {
  const { checked } = prepared;
  const { signal, exclusive, upperdir, rootless } = checked;
  // The plan of a rootless mount sees only the mounts of its own namespace.
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
    if (error === undefined) return [prepared, made];
    throw takeDown(prepared, made, error);
  }
  outcome.undoErrno ||= undoErrno;
  const left = outcome.undoErrno;
  if (outcome.cancelled && signal) throw abortError(signal, left);
  // A directory that another call has filled meanwhile stays. Otherwise the mount itself may still be there.
  if (left === 0 || left === ENOTEMPTY) {
    if (yield* settleUse(prepared, outcome)) return yield* make(prepared, 0, left);
    if (round < MOST_ROUNDS && mayHaveVanished(checked, outcome)) return yield* make(prepared, round + 1, left);
    const again = retry(prepared, outcome);
    if (again !== undefined) return yield* make(again, 0, left);
  }
  const notJoined = explainJoin(outcome);
  if (notJoined !== undefined) throw notJoined;
  const wanted = wantedAfter(outcome);
  const directories =
    checked.create && outcome.guard === 'superblock-is-read-only' ? yield* makeAgain(checked) : noPaths;
  try {
    const facts = yield* inEitherForm(
      () => gatherFacts(checked, wanted),
      () => gatherFactsSync(checked, wanted),
    );
    throw explainMount(checked, outcome, facts);
  } finally {
    const removal = new Plan();
    addRemoval(removal, directories);
    yield* ask(removal);
  }
}

/** Makes the directories that the undo has removed, as they were at the failure: they may have taken the last inodes. */
function* makeAgain(checked: CheckedOptions): Task<readonly Path[]> {
  const { plan, made } = planLayers(checked);
  const outcome = yield* ask(plan);
  return outcome instanceof StepFailure ? noPaths : directoriesMadeBy(made, outcome);
}
