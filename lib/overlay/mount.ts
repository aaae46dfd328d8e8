/** Mounting: options are checked and planned here, performed in one crossing, and explained when they fail. */
import { EINVAL, ENOSYS, EPERM } from '../errnos.js';
import { abortError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { FSCONFIG_CMD_CREATE } from '../kernel/constants.js';
import { type MountIds, readMountIds } from '../kernel/look.js';
import { type Outputs, perform, performSync, StepFailure } from '../kernel/perform.js';
import { Mount } from '../mounts/mount.js';
import { explainJoin } from '../mounts/mount-namespace.js';
import { isAbsolute, type Path, toAbsolute, withoutTrailingSlashes } from '../paths.js';
import { checkConflicts } from './conflicts.js';
import { explainMount, lookAfter } from './diagnose.js';
import { featuresSync, type KernelFeatures } from './features.js';
import { type CheckedOptions, checkOptions, type OverlayOptions, takeOptions } from './options.js';
import { type MountPlan, plan } from './plan.js';

/** An overlay that was mounted here. Unmount it, or have it disposed of with `using` or `await using`. */
export class OverlayMount extends Mount {
  /** The options with which it was mounted, the workdir that `create` chose among them. */
  readonly options: Readonly<OverlayOptions>;

  /** @internal */
  constructor(given: OverlayOptions, { target, workdir, namespace }: CheckedOptions, found: MountIds) {
    super(given.target, { path: withoutTrailingSlashes(target), ...found, workdir, namespace });
    this.options = workdir === undefined || given.workdir !== undefined ? given : { ...given, workdir };
  }
}

/** Paths that mean the same on every thread and at every time. */
function resolve(options: CheckedOptions): CheckedOptions {
  const { lowerdir, upperdir, workdir, target } = options;
  const areAbsolute =
    options.datadir.length === 0 &&
    isAbsolute(target) &&
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
    target: toAbsolute(target),
  };
}

interface Prepared {
  readonly given: OverlayOptions;
  readonly checked: CheckedOptions;
  readonly features: KernelFeatures;
}

function prepare(options: OverlayOptions, features: KernelFeatures): Prepared {
  const given = takeOptions(options);
  const checked = checkOptions(given);
  if (checked.signal?.aborted) throw abortError(checked.signal);
  return { given, checked: checkConflicts(resolve(checked), features), features };
}

function finish({ given, checked }: Prepared, { id }: MountPlan, outputs: Outputs): OverlayMount {
  return new OverlayMount(given, checked, readMountIds(id, outputs));
}

/** What is to be tried when the kernel has refused, if anything. */
function retry(prepared: Prepared, failure: StepFailure): Prepared | undefined {
  const { checked, features } = prepared;
  const { step, errno } = failure;
  // A seccomp filter may know mount(2) only. If it is the privilege that is lacking, that says so too.
  if (step?.call === calls.fsopen && (errno === EPERM || errno === ENOSYS)) {
    return { ...prepared, features: { ...features, mountApi: false } };
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

/** Mounts under way by target: of two at once for one target, the second has to see the first. */
const underWay = new Map<string, Promise<unknown>>();

async function inTurn<T>(target: Path, mount: () => Promise<T>): Promise<T> {
  const key = typeof target === 'string' ? target : Buffer.from(target).toString('latin1');
  for (let before = underWay.get(key); before !== undefined; before = underWay.get(key)) {
    await before.catch(() => {});
  }
  const own = mount();
  underWay.set(key, own);
  try {
    return await own;
  } finally {
    underWay.delete(key);
  }
}

/**
 * Mounts an overlay: fsopen(2) to move_mount(2) from Linux 6.5 on, mount(2) before (5.10 is the oldest kernel
 * that is tested). Either the mount is there, with its upper writable, or the call fails and nothing is mounted
 * or left behind. The calls are made in the mount namespace of the calling thread, on a thread of the
 * library's own.
 *
 * @throws {TypeError} `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`: an option is wrong, or two conflict
 * @throws {RangeError} `ERR_OUT_OF_RANGE`: too many layers
 * @throws {OverlayError} the mount failed; `reason` says why
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function mountOverlay(options: OverlayOptions): Promise<OverlayMount> {
  return mountOverlayWith(options, featuresSync());
}

/** `mountOverlay`, decided from a given record of what the kernel can do. */
export async function mountOverlayWith(options: OverlayOptions, features: KernelFeatures): Promise<OverlayMount> {
  const prepared = prepare(options, features);
  const { stack, namespace, target } = prepared.checked;
  return stack || namespace !== undefined
    ? mountPrepared(prepared)
    : inTurn(withoutTrailingSlashes(target), () => mountPrepared(prepared));
}

async function mountPrepared(prepared: Prepared): Promise<OverlayMount> {
  const { checked, features } = prepared;
  const { signal } = checked;
  if (signal?.aborted) throw abortError(signal);
  const planned = plan(checked, features);
  const outcome = await perform(planned.plan, signal);
  if (!(outcome instanceof StepFailure)) return finish(prepared, planned, outcome);
  if (outcome.cancelled && signal) throw abortError(signal, outcome.undoErrno);
  const again = retry(prepared, outcome);
  if (again !== undefined) return mountPrepared(again);
  const notJoined = explainJoin(outcome);
  if (notJoined !== undefined) throw notJoined;
  const look = lookAfter(checked);
  throw explainMount(checked, outcome, look.facts(await perform(look.plan)));
}

/** `mountOverlay`, on the calling thread. */
export function mountOverlaySync(options: OverlayOptions): OverlayMount {
  return mountOverlayWithSync(options, featuresSync());
}

/** `mountOverlayWith`, on the calling thread. */
export function mountOverlayWithSync(options: OverlayOptions, features: KernelFeatures): OverlayMount {
  return mountPreparedSync(prepare(options, features));
}

function mountPreparedSync(prepared: Prepared): OverlayMount {
  const { checked, features } = prepared;
  const planned = plan(checked, features);
  const outcome = performSync(planned.plan);
  if (!(outcome instanceof StepFailure)) return finish(prepared, planned, outcome);
  const again = retry(prepared, outcome);
  if (again !== undefined) return mountPreparedSync(again);
  const notJoined = explainJoin(outcome);
  if (notJoined !== undefined) throw notJoined;
  const look = lookAfter(checked);
  throw explainMount(checked, outcome, look.facts(performSync(look.plan)));
}
