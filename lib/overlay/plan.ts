/**
 * From options to kernel calls. Pure: which calls are made depends on the options and on the record of what
 * the kernel can do, so that each way down can be had on any kernel by a record that lacks things.
 */
import * as k from '../kernel/constants.js';
import * as e from '../kernel/errnos.js';
import { STATX_OUTPUT } from '../kernel/perform.js';
import { type Descriptor, Plan, type Subject, type Text } from '../kernel/plan.js';
import { OverlayError } from '../errors.js';
import { escapeLayer } from '../mount-strings.js';
import { joinPath, type Path, pathString, toBytes, withoutTrailingSlashes } from '../paths.js';
import type { KernelFeatures } from './features.js';
import type { CheckedOptions } from './options.js';

/** A longer value does not pass fsconfig(2), which has no text for it. */
const FSCONFIG_MAX_BYTES = 255;

const attributeBits = {
  readonly: [k.MOUNT_ATTR_RDONLY, k.MS_RDONLY],
  nosuid: [k.MOUNT_ATTR_NOSUID, k.MS_NOSUID],
  nodev: [k.MOUNT_ATTR_NODEV, k.MS_NODEV],
  noexec: [k.MOUNT_ATTR_NOEXEC, k.MS_NOEXEC],
  nosymfollow: [k.MOUNT_ATTR_NOSYMFOLLOW, k.MS_NOSYMFOLLOW],
  nodiratime: [k.MOUNT_ATTR_NODIRATIME, k.MS_NODIRATIME],
  relatime: [0, 0],
  noatime: [k.MOUNT_ATTR_NOATIME, k.MS_NOATIME],
  strictatime: [k.MOUNT_ATTR_STRICTATIME, k.MS_STRICTATIME],
} as const;

const NEW_API = 0;
const MOUNT_2 = 1;

function attributes(options: CheckedOptions, api: typeof NEW_API | typeof MOUNT_2): number {
  let set = attributeBits[options.atime][api] as number;
  for (const name of options.attributes) set |= attributeBits[name][api];
  return set;
}

/** A plan to mount, and the step that reports the new mount's id. */
export interface MountPlan extends Plan {
  idStep: Descriptor;
}

interface Layers {
  readonly lowers: readonly Descriptor[];
  readonly upper: Descriptor | undefined;
  readonly work: Descriptor | undefined;
}

/** Kernel options: what the caller named, and what goes without saying. */
function overlayOptions(options: CheckedOptions, features: KernelFeatures): CheckedOptions['overlay'] {
  if (!features.userNamespace || options.upperdir === undefined || options.userxattr !== undefined) {
    return options.overlay;
  }
  // trusted.* is out of reach in a user namespace: without userxattr the kernel would mount an overlay in
  // which a removed directory cannot be made again. Options that exclude it are the caller's choice.
  const isExcluded = options.overlay.some(([name]) => name === 'redirect_dir' || name === 'metacopy');
  return isExcluded ? options.overlay : [...options.overlay, ['userxattr', null]];
}

/** Every directory on the way that may be missing, from the top. */
function addDirectories(plan: Plan, path: Path): void {
  const bytes = Buffer.from(toBytes(withoutTrailingSlashes(path)));
  for (let end = bytes.indexOf(0x2f, 1); ; end = bytes.indexOf(0x2f, end + 1)) {
    const prefix = end < 0 ? bytes : bytes.subarray(0, end);
    if (end < 0 || bytes[end - 1] !== 0x2f) {
      plan.add('mkdirat', [k.AT_FDCWD, prefix, 0o755], { undo: true, tolerate: [e.EEXIST] });
    }
    if (end < 0) return;
  }
}

function addCreated(plan: Plan, options: CheckedOptions): void {
  if (!options.create) return;
  addDirectories(plan, options.target);
  if (options.upperdir === undefined || options.workdir === undefined) return;
  addDirectories(plan, options.upperdir);
  addDirectories(plan, options.workdir);
  // What the kernel makes in there; a workdir that was there before is left as a mount leaves it.
  plan.add('unlinkat', [k.AT_FDCWD, joinPath(options.workdir, 'work'), k.AT_REMOVEDIR], {
    later: true,
    tolerate: 'any',
  });
}

function addTarget(plan: Plan, options: CheckedOptions): Descriptor {
  const subject: Subject = { role: 'target', path: options.target };
  const flags = k.O_DIRECTORY | k.O_NOFOLLOW | k.O_CLOEXEC | k.O_PATH;
  const target = plan.add('openat2', [k.AT_FDCWD, withoutTrailingSlashes(options.target), flags, 0], { subject });
  if (!options.stack) {
    const refused = k.STATX_ATTR_MOUNT_ROOT;
    plan.add('statx', [target, '', k.AT_EMPTY_PATH, k.STATX_TYPE, refused, null, e.EBUSY], { subject });
  }
  return target;
}

function addLayers(plan: Plan, options: CheckedOptions, features: KernelFeatures): Layers {
  const access = features.layerDescriptors === 'readable' ? 0 : k.O_PATH;
  const open = (path: Path, subject: Subject): Descriptor =>
    plan.add('openat2', [k.AT_FDCWD, path, k.O_DIRECTORY | k.O_CLOEXEC | access, 0], { subject });
  const openIfGiven = (role: 'upperdir' | 'workdir', path: Path | undefined) =>
    path === undefined ? undefined : open(path, { role, path });
  return {
    lowers: options.lowerdir.map((path, index) => open(path, { role: 'lowerdir', index, path })),
    upper: openIfGiven('upperdir', options.upperdir),
    work: openIfGiven('workdir', options.workdir),
  };
}

const viaDescriptor = (descriptor: Descriptor): Text => ['/proc/self/fd/', descriptor];
const fits = (path: Path): boolean =>
  (typeof path === 'string' && path.length * 3 <= FSCONFIG_MAX_BYTES) || toBytes(path).length <= FSCONFIG_MAX_BYTES;

function addContext(plan: Plan, options: CheckedOptions, features: KernelFeatures, layers: Layers): Descriptor {
  const context = plan.add('fsopen', ['overlay', k.FSOPEN_CLOEXEC]);
  const byDescriptor = features.layerDescriptors !== false;
  const set = (key: string, value: Text, subject?: Subject): void => {
    const command = value === null ? k.FSCONFIG_SET_FLAG : k.FSCONFIG_SET_STRING;
    plan.add('fsconfig', [context, command, key, value, 0], subject && { subject });
  };
  const setLayer = (key: string, descriptor: Descriptor, escape: (path: Path) => Path): void => {
    const { options: stepOptions } = plan.stepOf(descriptor);
    const subject = stepOptions.subject as Subject;
    if (byDescriptor) {
      plan.add('fsconfig', [context, k.FSCONFIG_SET_FD, key, null, descriptor], { subject });
    } else {
      const text = escape(subject.path);
      set(key, fits(text) ? text : viaDescriptor(descriptor), subject);
    }
  };
  set('source', options.source);
  for (const lower of layers.lowers) setLayer('lowerdir+', lower, (path) => path);
  if (layers.upper !== undefined) setLayer('upperdir', layers.upper, escapeLayer);
  if (layers.work !== undefined) setLayer('workdir', layers.work, escapeLayer);
  for (const [name, value] of overlayOptions(options, features)) set(name, value);
  plan.add('fsconfig', [context, k.FSCONFIG_CMD_CREATE, null, null, 0]);
  return context;
}

/** fsopen(2) to move_mount(2): nothing is to be seen before the last step. */
function addDetachedWay(plan: Plan, options: CheckedOptions, features: KernelFeatures): Descriptor {
  const target = addTarget(plan, options);
  const layers = addLayers(plan, options, features);
  const context = addContext(plan, options, features, layers);
  const set = attributes(options, NEW_API);
  // A superblock that came out read-only shows only while the mount itself is not.
  const guarded = layers.upper !== undefined;
  const early = guarded ? set & ~k.MOUNT_ATTR_RDONLY : set;
  const mount = plan.add('fsmount', [context, k.FSMOUNT_CLOEXEC, early]);
  if (guarded) plan.add('fstatfs', [mount, k.ST_RDONLY, 0, e.EROFS]);
  if (early !== set) {
    plan.add('mount_setattr', [mount, '', k.AT_EMPTY_PATH, k.MOUNT_ATTR_RDONLY, 0, 0, 0]);
  }
  const id = addIdStep(plan, mount, features);
  plan.add('move_mount', [mount, '', target, '', k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH], {
    undo: true,
    subject: { role: 'target', path: options.target },
  });
  return id;
}

/** mount(2), with all layers in one string. */
function addMountWay(plan: Plan, options: CheckedOptions, features: KernelFeatures): Descriptor {
  const target = addTarget(plan, options);
  addLayers(plan, options, features);
  const data = mountData(options, features);
  const set = attributes(options, MOUNT_2);
  const guarded = options.upperdir !== undefined;
  const early = guarded ? set & ~k.MS_RDONLY : set;
  plan.add('mount', [options.source, viaDescriptor(target), 'overlay', early, data]);
  plan.add('umount2', [withoutTrailingSlashes(options.target), k.MNT_DETACH | k.UMOUNT_NOFOLLOW], { later: true });
  // The descriptor leads to what the mount now hides: the path is opened once more.
  const flags = k.O_DIRECTORY | k.O_NOFOLLOW | k.O_CLOEXEC | k.O_PATH;
  const mount = plan.add('openat2', [k.AT_FDCWD, withoutTrailingSlashes(options.target), flags, 0]);
  if (guarded) plan.add('fstatfs', [mount, k.ST_RDONLY, 0, e.EROFS]);
  if (early !== set) {
    plan.add('mount', [null, viaDescriptor(mount), null, k.MS_REMOUNT | k.MS_BIND | set, null]);
  }
  return addIdStep(plan, mount, features);
}

function addIdStep(plan: Plan, mount: Descriptor, features: KernelFeatures): Descriptor {
  const mask = features.uniqueMountId ? k.STATX_MNT_ID_UNIQUE : k.STATX_MNT_ID;
  return plan.add('statx', [mount, '', k.AT_EMPTY_PATH, mask | k.STATX_INO, 0, null, 0], { output: STATX_OUTPUT });
}

function mountData(options: CheckedOptions, features: KernelFeatures): Buffer {
  const pieces: Uint8Array[] = [];
  const add = (...texts: Path[]) => pieces.push(...texts.map(toBytes));
  add('lowerdir=');
  options.lowerdir.forEach((path, i) => {
    add(...(i === 0 ? [] : [':']), escapeLayer(path));
  });
  if (options.upperdir !== undefined) add(',upperdir=', escapeLayer(options.upperdir));
  if (options.workdir !== undefined) add(',workdir=', escapeLayer(options.workdir));
  for (const [name, value] of overlayOptions(options, features)) add(value === null ? `,${name}` : `,${name}=${value}`);
  const data = Buffer.concat(pieces);
  if (data.length < features.pageSize) return data;
  throw new OverlayError({
    errno: e.E2BIG,
    reason: 'options-too-long',
    what: `the options of this mount are ${data.length} bytes long, mount(2) takes ${features.pageSize - 1}, and would cut the rest off`,
    path: pathString(options.target),
  });
}

/** What has to be done to mount this, the paths being absolute. */
export function plan(options: CheckedOptions, features: KernelFeatures): MountPlan {
  const result = new Plan() as MountPlan;
  addCreated(result, options);
  const isDetached = features.fsContext && (features.lowerdirAppend || features.layerDescriptors !== false);
  result.idStep = isDetached ? addDetachedWay(result, options, features) : addMountWay(result, options, features);
  return result;
}
