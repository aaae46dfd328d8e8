/** Mounting: options are checked and planned here, performed in one crossing, and explained when they fail. */
import { abortError } from '../errors.js';
import { type Outputs, perform, performSync, StepFailure, statxWord } from '../kernel/perform.js';
import { Mount } from '../mounts/mount.js';
import { isAbsolute, type Path, toAbsolute, withoutTrailingSlashes } from '../paths.js';
import { explainMount, lookAfter } from './diagnose.js';
import { type KernelFeatures, kernelFeatures } from './features.js';
import { type CheckedOptions, checkOptions, type OverlayOptions } from './options.js';
import { type MountPlan, plan } from './plan.js';

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
    isAbsolute(target) &&
    (upperdir === undefined || isAbsolute(upperdir)) &&
    (workdir === undefined || isAbsolute(workdir)) &&
    lowerdir.every(isAbsolute);
  if (areAbsolute) return options;
  const absolute = (path: Path | undefined) => (path === undefined ? undefined : toAbsolute(path));
  return {
    ...options,
    lowerdir: lowerdir.map(toAbsolute),
    upperdir: absolute(upperdir),
    workdir: absolute(workdir),
    target: toAbsolute(target),
  };
}

interface Prepared {
  readonly checked: CheckedOptions;
  readonly plan: MountPlan;
}

function prepare(options: OverlayOptions, features?: KernelFeatures): Prepared {
  const checked = resolve(checkOptions(options));
  if (checked.signal?.aborted) throw abortError(checked.signal);
  return { checked, plan: plan(checked, features ?? kernelFeatures()) };
}

function finish(options: OverlayOptions, { checked, plan: performed }: Prepared, outputs: Outputs): OverlayMount {
  const id = Number(outputs.word(performed.stepOf(performed.idStep), statxWord.mountId));
  return new OverlayMount(options, checked, id);
}

/**
 * Mounts an overlay: fsopen(2) to move_mount(2) from Linux 6.5 on, mount(2) before. Either the mount is there,
 * with its upper writable, or the call fails and nothing is mounted or left behind. The calls are made in the
 * mount namespace of the calling thread, on a thread of the library's own.
 *
 * @throws {TypeError} `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE`: an option is wrong, or two conflict
 * @throws {RangeError} `ERR_OUT_OF_RANGE`: too many layers
 * @throws {OverlayError} the mount failed; `reason` says why
 * @throws {Error} `ABORT_ERR`: the signal has aborted
 */
export async function mountOverlay(options: OverlayOptions): Promise<OverlayMount> {
  return mountOverlayWith(options);
}

/** `mountOverlay`, decided from a given record of what the kernel can do. */
export async function mountOverlayWith(options: OverlayOptions, features?: KernelFeatures): Promise<OverlayMount> {
  const prepared = prepare(options, features);
  const { checked } = prepared;
  const outcome = await perform(prepared.plan, checked.signal);
  if (!(outcome instanceof StepFailure)) return finish(options, prepared, outcome);
  if (outcome.cancelled && checked.signal) throw abortError(checked.signal);
  const look = lookAfter(checked, outcome);
  throw explainMount(checked, outcome, look.facts(await perform(look.plan)));
}

/** `mountOverlay`, on the calling thread. */
export function mountOverlaySync(options: OverlayOptions): OverlayMount {
  return mountOverlayWithSync(options);
}

/** `mountOverlaySync`, decided from a given record of what the kernel can do. */
export function mountOverlayWithSync(options: OverlayOptions, features?: KernelFeatures): OverlayMount {
  const prepared = prepare(options, features);
  const outcome = performSync(prepared.plan);
  if (!(outcome instanceof StepFailure)) return finish(options, prepared, outcome);
  const look = lookAfter(prepared.checked, outcome);
  throw explainMount(prepared.checked, outcome, look.facts(performSync(look.plan)));
}
