/**
 * Finds options that the kernel has dropped: it silently mounts without some features. The library reads the options
 * back only if the caller has named one that the kernel can drop.
 */
import { subjectsOf } from '../diagnosis/gather.js';
import { nameOf, pathField } from '../diagnosis/rule.js';
import { EOPNOTSUPP } from '../errnos.js';
import { OverlayError } from '../errors.js';
import type { DefaultName, KernelFeatures } from '../features/record.js';
import { calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { StepFailure } from '../kernel/perform.js';
import { Plan } from '../kernel/plan.js';
import { addStat, readStat } from '../kernel/stat.js';
import { ask, type Task } from '../kernel/task.js';
import { splitShown } from '../mount-strings.js';
import { isUniqueId, type Mounted } from '../mount-table/identity.js';
import { readTable } from '../mount-table/mountinfo.js';
import { WHOLE_MOUNT } from '../mount-table/statmount.js';
import { readMounts } from '../mount-table/table.js';
import type { CheckedOptions, NamedOption } from '../options/check.js';
import { optionRows, optionTable } from '../options/table.js';
import { type Path, pathString, quotePath } from '../paths.js';
import { either, option, type Text, text } from '../text.js';
import { findAttached, lookAtDetached } from './effective.js';

/** Options as the kernel shows them: null for a bare word. */
type Shown = ReadonlyMap<string, string | null>;

/** Returns true if an option is in force. The kernel does not show the module's defaults. */
function isInForce({ kernel, value }: NamedOption, shown: Shown, { defaults, options }: KernelFeatures): boolean {
  const found = shown.get(kernel);
  switch (kernel) {
    case 'redirect_dir': {
      const standard = defaults.redirect_dir ? 'on' : defaults.redirect_always_follow === false ? 'nofollow' : 'follow';
      const used = found ?? standard;
      // Nothing is renamed in a read-only view: there 'on' and 'follow' do the same.
      return used === value || (value === 'follow' && used === 'on');
    }
    case 'uuid':
      // On kernels that know only on and off, on is the default, and the kernel does not show it.
      return found === value || (value === 'on' && options['uuid=null'] === false && found === undefined);
    default:
      return (found ?? (defaults[kernel as DefaultName] ? 'on' : 'off')) === value;
  }
}

const canFall = ({ name, value }: NamedOption): boolean => !!optionRows[name]?.droppable?.includes(value ?? '');

/** Returns the options to read back. */
export function toVerify({ overlay, allowDegraded }: CheckedOptions): readonly NamedOption[] {
  return overlay.length === 0
    ? overlay
    : overlay.filter((option) => canFall(option) && !allowDegraded.includes(option.name));
}

const toShown = (text: Buffer): Shown =>
  new Map(splitShown(text).map(({ name, value }) => [name, value?.toString('latin1') ?? null]));

/** Returns the error for a mount that lacks an option which the caller asked for, if so. `id` is that of the mount. */
export function* verify(
  options: CheckedOptions,
  features: KernelFeatures,
  mounted: Mounted & { readonly id: number },
): Task<OverlayError | undefined> {
  const wanted = toVerify(options);
  const text =
    mounted.held !== undefined
      ? yield* readDetached(mounted)
      : mounted.namespace !== undefined
        ? yield* readThere(mounted)
        : ((yield* readById(mounted.id)) ?? (yield* readFromTable(mounted.path)));
  if (text === undefined) return unverifiable(options, wanted);
  const shown = toShown(text);
  const fallen = wanted.filter((named) => !isInForce(named, shown, features));
  for (const named of fallen) {
    // If all layers are on one file system, xino does nothing, and the kernel does not show it.
    if (named.kernel === 'xino' && (yield* isOnOneFileSystem(options))) continue;
    return yield* dropped(options, named);
  }
  return undefined;
}

function* readDetached(mounted: Mounted): Task<Buffer | undefined> {
  const look = lookAtDetached(mounted);
  const raw = look.read(yield* ask(look.plan));
  return raw && Buffer.from(raw.options, 'latin1');
}

/** Reads the options in the namespace of the mount, if it is still at its path there. */
function* readThere(mounted: Mounted & { readonly id: number }): Task<Buffer | undefined> {
  const raw = yield* findAttached(mounted);
  return raw && Buffer.from(raw.options, 'latin1');
}

/** Reads the options by the unique id of the mount, from Linux 6.11 on. */
function* readById(id: number): Task<Buffer | undefined> {
  const [mount] = isUniqueId(id) ? yield* readMounts([id], WHOLE_MOUNT) : [];
  // Each overlay has lower layers. If none are shown, the kernel does not report the options.
  return mount?.options.includes('lowerdir') ? Buffer.from(mount.options, 'latin1') : undefined;
}

/** Reads the options from the mount table, before Linux 6.11. The table has another id for the mount. */
function* readFromTable(target: Path): Task<Buffer | undefined> {
  const plan = new Plan();
  const step = addStat(plan, target, { flags: k.AT_SYMLINK_NOFOLLOW, mask: k.STATX_MNT_ID });
  const { mountId } = readStat(step, yield* ask(plan));
  const [options] = yield* readTable(({ id, type, superOptions }) =>
    id === mountId && type === 'overlay' ? superOptions : undefined,
  );
  return options === undefined ? undefined : Buffer.from(options, 'latin1');
}

const toPart = ({ name, value }: NamedOption): Text => option(name, optionTable[name].form === 'switch' ? true : value);

function unverifiable({ target }: CheckedOptions, wanted: readonly NamedOption[]): OverlayError {
  const names = wanted.flatMap((named, i) => (i === 0 ? toPart(named) : [', ', toPart(named)]));
  const where = target === undefined ? '' : ` at ${quotePath(target)}`;
  return new OverlayError({
    errno: EOPNOTSUPP,
    reason: 'feature-unverifiable',
    what: text`the library cannot verify that ${names} is in force${where}: the mount table of this process does not show the mount`,
    hint: text`pass ${option('allowDegraded', [wanted[0]?.name])} to mount without the check`,
    path: target && pathString(target),
  });
}

function* isOnOneFileSystem(options: CheckedOptions): Task<boolean> {
  const plan = new Plan();
  const layers: Path[] = [...options.lowerdir, ...(options.upperdir === undefined ? [] : [options.upperdir])];
  const steps = layers.map((path) => addStat(plan, path, { mask: k.STATX_INO | k.STATX_MNT_ID }));
  const outputs = yield* ask(plan);
  const found = steps.map((step) => readStat(step, outputs));
  if (new Set(found.map(({ device }) => device)).size === 1) return true;
  // Subvolumes of one file system have different devices.
  const devices = new Map(yield* readTable(({ id, device }): [number, string] => [id, device]));
  return new Set(found.map(({ mountId }) => devices.get(mountId))).size === 1;
}

/** Returns the error for a dropped option. Names the layer that causes it, if one gives out no file handles. */
function* dropped(options: CheckedOptions, named: NamedOption): Task<OverlayError> {
  const plan = new Plan();
  const subjects = subjectsOf(options).filter(({ role }) => role === 'lowerdir' || role === 'upperdir');
  const steps = subjects.map(({ path }) =>
    plan.stepOf(
      plan.add(calls.name_to_handle_at, [k.AT_FDCWD, path, k.AT_SYMLINK_FOLLOW], { output: 144, tolerate: 'any' }),
    ),
  );
  const outputs = yield* ask(plan);
  const culprit =
    outputs instanceof StepFailure || !['index', 'nfs_export', 'xino'].includes(named.kernel)
      ? undefined
      : subjects.find((_, i) => outputs.result(steps[i] as (typeof steps)[number]) === -EOPNOTSUPP);
  const why =
    culprit === undefined ? '' : `, because the file system of ${nameOf(culprit, options)} has no file handles`;
  return new OverlayError({
    errno: EOPNOTSUPP,
    reason: 'feature-dropped',
    what: text`the kernel silently mounted without ${toPart(named)}${why}`,
    hint: either('leave it out', text`pass ${option('allowDegraded', [named.name])} to mount without it`),
    ...pathField(culprit?.path ?? options.target),
  });
}
