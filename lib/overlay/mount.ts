/** Mounting: options are checked and planned here, performed in one crossing, and explained when they fail. */
import { EINVAL } from '../errnos.js';
import { abortError } from '../errors.js';
import { calls } from '../kernel/calls.js';
import { FSCONFIG_CMD_CREATE } from '../kernel/constants.js';
import { readMountId } from '../kernel/look.js';
import { type Outputs, perform, performSync, StepFailure } from '../kernel/perform.js';
import { Mount } from '../mounts/mount.js';
import { isAbsolute, type Path, toAbsolute, withoutTrailingSlashes } from '../paths.js';
import { checkConflicts } from './conflicts.js';
import { explainMount, lookAfter } from './diagnose.js';
import { featuresSync, type KernelFeatures } from './features.js';
import { type CheckedOptions, checkOptions, type OverlayOptions } from './options.js';
import { type MountPlan, plan, quickPlan } from './plan.js';

/** An overlay that was mounted here. Unmount it, or have it disposed of with `using` or `await using`. */
export class OverlayMount extends Mount {
  /** The options with which it was mounted, the workdir that `create` chose among them. */
  readonly options: Readonly<OverlayOptions>;

  /** @internal */
  constructor(options: OverlayOptions, checked: CheckedOptions, id: number) {
    super(options.target, { path: withoutTrailingSlashes(checked.target), id, workdir: checked.workdir });
    this.options =
      checked.workdir === undefined || options.workdir !== undefined
        ? { ...options }
        : { ...options, workdir: checked.workdir };
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
  readonly checked: CheckedOptions;
  readonly features: KernelFeatures;
}

function prepare(options: OverlayOptions, features: KernelFeatures): Prepared {
  const checked = checkConflicts(resolve(checkOptions(options)), features);
  if (checked.signal?.aborted) throw abortError(checked.signal);
  return { checked, features };
}

function finish(options: OverlayOptions, { checked }: Prepared, { id }: MountPlan, outputs: Outputs): OverlayMount {
  return new OverlayMount(options, checked, readMountId(id, outputs));
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
 * Mounts an overlay: mount(2) where that loses nothing, or else fsopen(2) to move_mount(2) from Linux 6.5 on.
 * Either the mount is there, with its upper writable, or the call fails and nothing is mounted or left behind.
 * The calls are made in the mount namespace of the calling thread, on a thread of the library's own.
 *
 * @throws {TypeError} `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`: an option is wrong, or two conflict
 * @throws {RangeError} `ERR_OUT_OF_RANGE`: too many layers
 * @throws {OverlayError} the mount failed; `reason` says why
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function mountOverlay(options: OverlayOptions): Promise<OverlayMount> {
  const prepared = prepare(options, featuresSync());
  const quick = quickPlan(prepared.checked, prepared.features);
  if (quick !== undefined) {
    const outcome = await perform(quick.plan, prepared.checked.signal);
    if (!(outcome instanceof StepFailure)) return finish(options, prepared, quick, outcome);
  }
  return mountCarefully(options, prepared);
}

async function mountCarefully(options: OverlayOptions, prepared: Prepared): Promise<OverlayMount> {
  const { checked, features } = prepared;
  const careful = plan(checked, features);
  if (checked.signal?.aborted) throw abortError(checked.signal);
  const outcome = await perform(careful.plan, checked.signal);
  if (!(outcome instanceof StepFailure)) return finish(options, prepared, careful, outcome);
  if (outcome.cancelled && checked.signal) throw abortError(checked.signal);
  const again = withMetacopy(checked, outcome);
  if (again !== undefined) return mountCarefully(options, { ...prepared, checked: again });
  const look = lookAfter(checked);
  throw explainMount(checked, outcome, look.facts(await perform(look.plan)));
}

/** `mountOverlay`, on the calling thread. */
export function mountOverlaySync(options: OverlayOptions): OverlayMount {
  const prepared = prepare(options, featuresSync());
  const quick = quickPlan(prepared.checked, prepared.features);
  if (quick !== undefined) {
    const outcome = performSync(quick.plan);
    if (!(outcome instanceof StepFailure)) return finish(options, prepared, quick, outcome);
  }
  return mountCarefullySync(options, prepared);
}

function mountCarefullySync(options: OverlayOptions, prepared: Prepared): OverlayMount {
  const { checked, features } = prepared;
  const careful = plan(checked, features);
  const outcome = performSync(careful.plan);
  if (!(outcome instanceof StepFailure)) return finish(options, prepared, careful, outcome);
  const again = withMetacopy(checked, outcome);
  if (again !== undefined) return mountCarefullySync(options, { ...prepared, checked: again });
  const look = lookAfter(checked);
  throw explainMount(checked, outcome, look.facts(performSync(look.plan)));
}

/** `mountOverlay` step by step, decided from a given record of what the kernel can do. */
export async function mountOverlayWith(options: OverlayOptions, features: KernelFeatures): Promise<OverlayMount> {
  return mountCarefully(options, prepare(options, features));
}

/** `mountOverlayWith`, on the calling thread. */
export function mountOverlayWithSync(options: OverlayOptions, features: KernelFeatures): OverlayMount {
  return mountCarefullySync(options, prepare(options, features));
}
