/**
 * Plans the kernel calls for the options of a mount. Pure: the calls depend only on the options and on the record of
 * what the kernel supports. A record that lacks features therefore selects each fallback on any kernel.
 */
import * as e from '../errnos.js';
import { OverlayError } from '../errors.js';
import { type KernelFeatures, needsMetacopy } from '../features/record.js';
import { addNewerMountsGuard, addRecord, addReservation, type UseRole, useRoles } from '../in-use/registry.js';
import { type Call, calls } from '../kernel/calls.js';
import * as k from '../kernel/constants.js';
import { addGuard } from '../kernel/guards.js';
import {
  type Descriptor,
  MADE_BY,
  Plan,
  type Step,
  type StepOptions,
  type Subject,
  type Text,
} from '../kernel/plan.js';
import { STATFS_OUTPUT, STATX_OUTPUT } from '../kernel/stat.js';
import { escapeLayer } from '../mount-strings.js';
import { addJoin } from '../namespaces/mount-namespace.js';
import { addNamespaces, type Namespaces, OWN_MOUNT_NAMESPACE } from '../namespaces/user-namespace.js';
import { attributeBits, flagBits, propagationBits } from '../options/attributes.js';
import { type CheckedOptions, hasUpper } from '../options/check.js';
import { commonDirectory, Mapper } from '../options/idmap.js';
import type { TmpfsLimits } from '../options/tmpfs-limits.js';
import {
  goesByDescriptors,
  isSamePath,
  joinPath,
  type Path,
  pathString,
  toBytes,
  withoutTrailingSlashes,
} from '../paths.js';
import { option, text } from '../text.js';

/** fsconfig(2) refuses a longer value, without a message. */
const FSCONFIG_MAX_BYTES = 255;

/** A plan to mount. */
export interface MountPlan {
  readonly plan: Plan;
  /** The step that reports the id of the new mount. */
  readonly id: Step;
  /** The guard that reports the state of the superblock, if the plan has one. */
  readonly superblock: Step | undefined;
  /** The steps that make missing directories. The result of each tells whether it made one. */
  readonly made: readonly Step[];
  /** Those that make them in the target's namespace, if it is another. */
  readonly madeThere: readonly Step[];
  /** The step that makes the file descriptor of a detached mount, and reports it. */
  readonly descriptor?: Step;
  /** The step that makes the descriptor of the tree or namespace in which a detached mount has its place. */
  readonly place?: Step;
  /** The step that makes the tmpfs of the upperdir and the workdir, and reports its descriptor. */
  readonly memory?: Step;
  /** The step that makes a clone without a place, where the mount itself cannot be cloned. */
  readonly spare?: Step;
}

type Made = Pick<MountPlan, 'id' | 'descriptor' | 'place' | 'spare' | 'memory'>;

/** The options of a mount that has a target. */
type Attached = CheckedOptions & { readonly target: Path };

const isAttached = (options: CheckedOptions): options is Attached => options.target !== undefined;

interface Layer {
  readonly subject: Subject;
  /** Undefined for a layer that the plan passes by its path. */
  readonly descriptor: Descriptor | undefined;
}

interface Layers {
  readonly lowers: readonly Layer[];
  readonly data: readonly Layer[];
  readonly upper: Layer | undefined;
  readonly work: Layer | undefined;
  /** The tmpfs that holds the upper and the work. */
  readonly memory?: Descriptor;
}

/** An option as the plan sends it: the kernel's name for it, and its value, or null if it takes none. */
type Sent = readonly [name: string, value: string | null];

/** Returns the options to send: those that the caller named, and those that they depend on. */
export function sentOptions(options: CheckedOptions, features: KernelFeatures): readonly Sent[] {
  const { overlay, datadir, userxattr } = options;
  const isPlain = overlay.length === 0 && datadir.length === 0 && !features.userNamespace;
  if (isPlain) return noOptions;
  const sent = new Map<string, string | null>(overlay.map(({ kernel, value }) => [kernel, value]));
  // A user namespace cannot use trusted.* attributes. Without userxattr the kernel would mount an overlay in which no
  // directory is opaque and a removed directory cannot be made again.
  if (userxattr === undefined && features.userNamespace) sent.set('userxattr', null);
  if (sent.has('userxattr')) {
    // A module parameter can turn 'off' into 'follow', which the kernel refuses together with userxattr.
    if (sent.get('redirect_dir') === 'off' || !sent.has('redirect_dir')) sent.set('redirect_dir', 'nofollow');
  } else {
    if (datadir.length > 0 && !sent.has('metacopy') && needsMetacopy(features)) sent.set('metacopy', 'on');
    if (sent.get('metacopy') === 'on' && !sent.has('redirect_dir')) sent.set('redirect_dir', 'on');
  }
  return [...sent];
}

const noOptions: readonly Sent[] = [];

/** Adds steps that make each missing directory of a path, from the top; the last one with this mode. */
function addDirectories(plan: Plan, path: Path, mode = 0o755): void {
  const bytes = Buffer.from(toBytes(withoutTrailingSlashes(path)));
  for (let end = bytes.indexOf(0x2f, 1); ; end = bytes.indexOf(0x2f, end + 1)) {
    const prefix = end < 0 ? bytes : bytes.subarray(0, end);
    if (end < 0 || bytes[end - 1] !== 0x2f) {
      plan.add(calls.mkdirat, [k.AT_FDCWD, prefix, end < 0 ? mode : 0o755], {
        undo: true,
        tolerate: [e.EEXIST],
        output: 0,
      });
    }
    if (end < 0) return;
  }
}

/** Returns the plan that makes missing directories of the upperdir and the workdir alone, and its steps that make them. */
export function planLayers(options: CheckedOptions): Pick<MountPlan, 'plan' | 'made'> {
  const plan = new Plan();
  addCreated(plan, { ...options, create: true, target: undefined });
  return { plan, made: plan.steps.filter(({ call }) => call === calls.mkdirat) };
}

function addCreated(plan: Plan, options: CheckedOptions): void {
  if (!options.create) return;
  if (isAttached(options) && options.namespace === undefined) addDirectories(plan, options.target);
  if (options.upperdir === undefined || options.workdir === undefined) return;
  addDirectories(plan, options.upperdir, 0o700);
  addDirectories(plan, options.workdir, 0o700);
  // Last, because the workdir may be in the upperdir's parent and no step may change the times afterwards.
  addResemblance(plan, options, options.upperdir);
}

/** The root of an overlay shows the attributes of its upperdir, so a new one gets those of the topmost lower layer. */
function addResemblance(plan: Plan, { lowerdir, idmap }: CheckedOptions, upperdir: Path): void {
  const [lower] = lowerdir;
  const making = plan.steps.findLastIndex(
    ({ call, args }) => call === calls.mkdirat && isSamePath(args[1] as Path, upperdir),
  );
  if (lower === undefined || making < 0) return;
  const subject = { role: 'upperdir', path: upperdir } as const;
  const path = withoutTrailingSlashes(upperdir);
  // With a map, the view shows other ids than the directories have.
  const args = [k.AT_FDCWD, path, MADE_BY | making, lower, idmap === undefined ? 1 : 0] as const;
  plan.add(calls.resemble, args, { subject });
}

/**
 * Adds the removal of what the kernel makes in the workdir, for a plan that is undone. Add this right before the step
 * that makes the mount, so that it is performed after the mount is gone. In a workdir that existed before, only the
 * mark of a volatile mount is removed, since other directories may belong to another overlay.
 */
function addWorkRemoval(plan: Plan, options: CheckedOptions): void {
  const { create, workdir } = options;
  if (create && workdir !== undefined) {
    // The plan makes the workdir last.
    const made = MADE_BY | plan.steps.findLastIndex(({ call }) => call === calls.mkdirat);
    for (const name of madeInWork) {
      const args = [k.AT_FDCWD, joinPath(workdir, name), k.AT_REMOVEDIR, made] as const;
      plan.add(calls.unlinkat, args, { later: true, tolerate: 'any' });
    }
  }
  // If the step that follows fails, the mark belongs to another mount.
  addVolatileRemoval(plan, options, { later: plan.following(1) });
}

/** The directories that the kernel makes in a workdir. */
const madeInWork = ['index', 'work'] as const;

/**
 * Adds guards against removed directories. A path by a descriptor, such as `/proc/self/fd/9`, still opens a removed
 * directory. The kernel accepts it as an empty lower layer, or as an upperdir in which nothing can be made.
 */
function addRemovedGuards(plan: Plan, { lowerdir, datadir, upperdir, workdir }: CheckedOptions): void {
  const add = (subject: Subject): void => {
    if (!goesByDescriptors(subject.path)) return;
    const args = [k.AT_FDCWD, subject.path, k.AT_STATX_DONT_SYNC, k.STATX_TYPE | k.STATX_NLINK] as const;
    plan.add(calls.statx, args, { subject });
    addGuard(plan, 'directory-is-removed', { subject });
  };
  lowerdir.forEach((path, index) => {
    add({ role: 'lowerdir', index, path });
  });
  datadir.forEach((path, index) => {
    add({ role: 'datadir', index, path });
  });
  if (upperdir !== undefined) add({ role: 'upperdir', path: upperdir });
  if (workdir !== undefined) add({ role: 'workdir', path: workdir });
}

const targetFlags = k.O_DIRECTORY | k.O_NOFOLLOW | k.O_CLOEXEC | k.O_PATH;

/**
 * Opens the target, so that later changes of its path do not matter. Fails with ENOTDIR on a link or a file. Unless the
 * mount may be stacked, guards against a mount that is there already, and against another plan that is about to mount
 * there.
 */
function addTarget(plan: Plan, options: Attached): Descriptor {
  const subject = targetSubject(options);
  const path = withoutTrailingSlashes(options.target);
  const target = plan.add(calls.openat2, [k.AT_FDCWD, path, targetFlags, 0], { subject });
  if (!options.stack) plan.add(calls.reserve_target, [target], { subject });
  return target;
}

/** Joins the target's namespace, in which the later steps run, and opens the target there. */
function addTargetThere(plan: Plan, options: Attached): Descriptor {
  if (options.namespace !== undefined) addJoin(plan, options.namespace);
  if (options.create) addDirectories(plan, options.target);
  return addTarget(plan, options);
}

const targetSubject = ({ target }: Attached): Subject => ({ role: 'target', path: target });

function addLayers(
  plan: Plan,
  options: CheckedOptions,
  features: Pick<KernelFeatures, 'layerDescriptors' | 'openTreeAttr' | 'userNamespace'>,
  lowersBy: 'descriptor' | 'path' | 'value' = 'descriptor',
): Layers {
  const { idmap } = options;
  const access = features.layerDescriptors === 'readable' ? 0 : k.O_PATH;
  const open = (path: Path, subject: Subject, mayGoByPath: boolean): Layer => {
    if (mayGoByPath && isPlain(path)) return { subject, descriptor: undefined };
    const args = [k.AT_FDCWD, path, k.O_DIRECTORY | k.O_CLOEXEC | access, 0] as const;
    return { subject, descriptor: plan.add(calls.openat2, args, { subject }) };
  };
  const openIfGiven = (role: 'upperdir' | 'workdir', path: Path | undefined) =>
    path === undefined ? undefined : open(path, { role, path }, false);
  const mapper = new Mapper(plan);
  const openLower = (path: Path, subject: Subject): Layer =>
    idmap?.lower === undefined
      ? open(path, subject, lowersBy === 'path')
      : { subject, descriptor: mapper.add(path, idmap.lower, subject) };
  const { upperdir, workdir } = options;
  const upperAndWork = (): Pick<Layers, 'upper' | 'work' | 'memory'> => {
    if (options.temporary !== undefined) return addTemporary(plan, options, options.temporary, features);
    if (idmap?.upper === undefined || upperdir === undefined || workdir === undefined) {
      return { upper: openIfGiven('upperdir', upperdir), work: openIfGiven('workdir', workdir) };
    }
    const common = commonDirectory(upperdir, workdir);
    const subjects: readonly Subject[] = [
      { role: 'upperdir', path: upperdir },
      { role: 'workdir', path: workdir },
    ];
    const opened: Layer[] = [];
    mapper.add(common.parent, idmap.upper, subjects[0] as Subject, (tree) => {
      // A directory behind a link that leads out of the tree, or on another mount, would not be mapped.
      const resolve = k.RESOLVE_BENEATH | k.RESOLVE_NO_XDEV;
      [common.upper, common.work].forEach((path, i) => {
        const args = [tree, path, k.O_DIRECTORY | k.O_CLOEXEC | access, resolve] as const;
        const subject = subjects[i] as Subject;
        opened.push({ subject, descriptor: plan.add(calls.openat2, args, { subject }) });
      });
    });
    return { upper: opened[0], work: opened[1] };
  };
  const openAll = (role: 'lowerdir' | 'datadir'): readonly Layer[] =>
    lowersBy === 'value' ? [] : options[role].map((path, index) => openLower(path, { role, index, path }));
  const layers = { lowers: openAll('lowerdir'), data: openAll('datadir'), ...upperAndWork() };
  if (!features.openTreeAttr) mapper.attach();
  return layers;
}

/** A name that nothing in the root directory of this machine has, where only root can make one. */
const placeName = `overlay-${Math.random().toString(36).slice(2)}`;

/** The names in the tmpfs of a temporary mount. The mount table shows them as paths from the root directory. */
export const temporaryNames = { upperdir: `${placeName}-upper`, workdir: `${placeName}-work` } as const;

/** The caller gets the descriptor of such a step. */
const kept = { keep: true, output: 0 } as const;

/** Adds a detached mount of a new file system in memory. */
function addFileSystem(
  plan: Plan,
  type: 'tmpfs' | 'ramfs',
  settings: Readonly<Record<string, string>>,
  options: StepOptions,
): Descriptor {
  const context = plan.add(calls.fsopen, [type, k.FSOPEN_CLOEXEC]);
  for (const [key, value] of Object.entries(settings)) {
    plan.add(calls.fsconfig, [context, k.FSCONFIG_SET_STRING, key, value]);
  }
  plan.add(calls.fsconfig, [context, k.FSCONFIG_CMD_CREATE, null, null]);
  return plan.add(calls.fsmount, [context, k.FSMOUNT_CLOEXEC, 0], options);
}

/** The inodes of the tmpfs that the mount itself takes, with its index and what the kernel tries at first. */
const OWN_INODES = 6;

/** Makes an upperdir and a workdir in a tmpfs of the mount's own, which is never in sight. */
function addTemporary(
  plan: Plan,
  { lowerdir }: CheckedOptions,
  { size, inodes }: TmpfsLimits,
  { openTreeAttr, userNamespace }: Pick<KernelFeatures, 'openTreeAttr' | 'userNamespace'>,
): Required<Pick<Layers, 'upper' | 'work' | 'memory'>> {
  const settings = {
    mode: '700',
    ...(size !== undefined && { size: String(size) }),
    ...(inodes !== undefined && { nr_inodes: String(inodes + OWN_INODES) }),
  };
  const memory = addFileSystem(plan, 'tmpfs', settings, kept);
  const make = (role: keyof typeof temporaryNames): Layer => {
    const path = temporaryNames[role];
    const made = plan.add(calls.mkdirat, [memory, path, 0o700]);
    const args = [memory, path, made, lowerdir[0] as Path, 1] as const;
    if (role === 'upperdir') plan.add(calls.resemble, args, { subject: { role, path } });
    const descriptor = plan.add(calls.openat2, [memory, path, k.O_DIRECTORY | k.O_CLOEXEC | k.O_PATH, 0]);
    return { subject: { role, path }, descriptor };
  };
  const [upper, work] = [make('upperdir'), make('workdir')];
  if (userNamespace) addXattrGuard(plan, ['/proc/self/fd/', upper.descriptor as Descriptor], 'user');
  // As a mapped clone.
  if (!openTreeAttr) plan.add(calls.move_mount, [memory, '', k.AT_FDCWD, '/', k.MOVE_MOUNT_F_EMPTY_PATH]);
  return { upper, work, memory };
}

/** Opens only the upperdir and the workdir, for the guards. */
const addUpper = (plan: Plan, options: CheckedOptions): Layers =>
  addLayers(
    plan,
    { ...options, lowerdir: [], datadir: [] },
    { layerDescriptors: 'path', openTreeAttr: true, userNamespace: false },
  );

const viaDescriptor = (descriptor: Descriptor): Text => ['/proc/self/fd/', descriptor];
const fits = (path: Path): boolean =>
  (typeof path === 'string' && path.length * 3 <= FSCONFIG_MAX_BYTES) || toBytes(path).length <= FSCONFIG_MAX_BYTES;
/** Returns true if fsconfig(2) reads the path the same way for every option. */
const isPlain = (path: Path): boolean => typeof path === 'string' && !path.includes('\\') && fits(path);
const hasComma = (path: Path): boolean => (typeof path === 'string' ? path.includes(',') : path.includes(0x2c));

function addContext(
  plan: Plan,
  options: CheckedOptions,
  features: KernelFeatures,
  layers: Layers,
  lowerdir: Text | undefined,
): Descriptor {
  const context = plan.add(calls.fsopen, ['overlay', k.FSOPEN_CLOEXEC]);
  const takesDescriptors = features.layerDescriptors !== false;
  const set = (key: string, value: Text, subject?: Subject): void => {
    const command = value === null ? k.FSCONFIG_SET_FLAG : k.FSCONFIG_SET_STRING;
    plan.add(calls.fsconfig, [context, command, key, value], subject && { subject });
  };
  const setLayer = (key: string, { subject, descriptor }: Layer, written: (path: Path) => Path): void => {
    if (descriptor === undefined) {
      set(key, subject.path, subject);
    } else if (takesDescriptors) {
      plan.add(calls.fsconfig, [context, k.FSCONFIG_SET_FD, key, null, descriptor], { subject });
    } else {
      const text = written(subject.path);
      const isSent = !makesLayers(options) && fits(text) && !(features.fsContext === false && hasComma(text));
      set(key, isSent ? text : viaDescriptor(descriptor), subject);
    }
  };
  set('source', options.source);
  const asItIs = (path: Path): Path => path;
  if (lowerdir === undefined) {
    for (const lower of layers.lowers) setLayer('lowerdir+', lower, asItIs);
    for (const data of layers.data) setLayer('datadir+', data, asItIs);
  } else {
    plan.add(calls.fsconfig, [context, k.FSCONFIG_SET_STRING, 'lowerdir', lowerdir]);
  }
  if (layers.upper !== undefined) setLayer('upperdir', layers.upper, escapeLayer);
  if (layers.work !== undefined) setLayer('workdir', layers.work, escapeLayer);
  for (const [name, value] of sentOptions(options, features)) set(name, value);
  if (options.readonlySuperblock) set('ro', null);
  addWorkRemoval(plan, options);
  plan.add(calls.fsconfig, [context, k.FSCONFIG_CMD_CREATE, null, null]);
  return context;
}

/**
 * Adds the removal of the mark of a volatile mount, which makes the kernel refuse the next mount. The directory `work`
 * around it goes too: the mount has made it anew. `later` is the step that makes the mount, if the plan only undoes it.
 */
export function addVolatileRemoval(
  plan: Plan,
  { overlay, workdir }: CheckedOptions,
  { later }: { readonly later?: Descriptor } = {},
): void {
  if (workdir === undefined || !overlay.some(({ kernel }) => kernel === 'volatile')) return;
  // A user namespace leaves `work` with mode 000, which this call opens up.
  const args = [k.AT_FDCWD, joinPath(workdir, 'work'), 1, 0, 0, 0, later ?? 0] as const;
  plan.add(calls.remove, args, { later: later !== undefined, tolerate: 'any' });
}

/**
 * Adds guards against mistakes that the kernel accepts: an upperdir that another overlay uses, that is not writable, or
 * whose file system keeps no marks.
 */
function addUpperGuards(plan: Plan, options: CheckedOptions, features: KernelFeatures, layers: Layers): void {
  const { upperdir, exclusive, readonlySuperblock } = options;
  if (upperdir === undefined) return;
  const isHere = options.rootless === false && !hasOwnMounts(options, features);
  if (exclusive && isHere && features.statmount !== false) addNewerMountsGuard(plan);
  addApart(plan, options, layers);
  for (const role of useRoles) addUpperReservation(plan, options, role, layers);
  const upper = layers.upper?.descriptor;
  if (readonlySuperblock) return;
  if (isAccessChecked(options, features) && upper !== undefined) {
    // Tolerates a seccomp filter that does not know the call, and errors that the kernel will report itself.
    plan.add(calls.faccessat2, [upper, '', k.W_OK | k.X_OK, k.AT_EACCESS | k.AT_EMPTY_PATH], {
      guard: 'upperdir-is-not-writable',
      tolerate: [e.ENOSYS, e.EPERM, e.EROFS, e.EINVAL],
    });
  }
  if (sentOptions(options, features).some(([name]) => name === 'userxattr')) addXattrGuard(plan, upperdir, 'user');
}

/** Guards against an upperdir or workdir inside a lower layer. The kernel itself refuses the other pairs. */
function addApart(plan: Plan, { lowerdir, datadir }: CheckedOptions, { lowers, data, upper, work }: Layers): void {
  if (upper?.descriptor === undefined || work?.descriptor === undefined) return;
  const ends = [upper.descriptor, work.descriptor] as const;
  const add = (subject: Subject, layer: Layer | undefined): void => {
    const lower =
      layer?.descriptor === undefined ? ([k.AT_FDCWD, subject.path] as const) : ([layer.descriptor, ''] as const);
    plan.add(calls.apart, [...ends, ...lower], { subject });
  };
  lowerdir.forEach((path, index) => {
    add({ role: 'lowerdir', index, path }, lowers[index]);
  });
  datadir.forEach((path, index) => {
    add({ role: 'datadir', index, path }, data[index]);
  });
}

function addUpperReservation(plan: Plan, options: CheckedOptions, role: UseRole, { upper, work }: Layers): void {
  const { exclusive, create, [role]: path } = options;
  const layer = role === 'upperdir' ? upper : work;
  if (path === undefined || layer?.descriptor === undefined) return;
  const making = create
    ? plan.steps.findIndex(({ call, args }) => call === calls.mkdirat && isSamePath(args[1] as Path, path))
    : -1;
  const against = exclusive ? 'everybody' : 'nobody';
  const madeBy = making < 0 ? 0 : MADE_BY | making;
  addReservation(plan, layer.descriptor, { role, subject: layer.subject, against, madeBy });
}

/**
 * Returns true if the plan checks access to the upperdir. Root in the initial user namespace may write everywhere. The
 * library checks for trusted.* attributes after the mount.
 */
const isAccessChecked = ({ readonlySuperblock }: CheckedOptions, { userNamespace }: KernelFeatures): boolean =>
  userNamespace && !readonlySuperblock;

/** Adds a guard that the upperdir's file system has extended attributes of the kind that holds the marks. */
export function addXattrGuard(plan: Plan, upperdir: Text, kind: 'user' | 'trusted'): void {
  plan.add(calls.getxattr, [upperdir, `${kind}.overlay.opaque`, 0], {
    guard: 'upperdir-has-no-xattrs',
    tolerate: [e.ENODATA, e.EPERM, e.EACCES, e.ENOENT],
  });
}

/**
 * Adds the calls from fsopen(2) to move_mount(2). The mount is not visible before the last step. `lowerdir` is the
 * value of the option of that name, if the lower layers are not set one by one.
 */
function addDetachedWay(
  plan: Plan,
  options: CheckedOptions,
  features: KernelFeatures,
  lowerdir?: Path | 'numbers',
): Made {
  // A target in another namespace than the layers is opened last.
  const targetHere = isAttached(options) && options.namespace === undefined ? addTarget(plan, options) : undefined;
  const home = hasOwnMounts(options, features) ? addOwnMounts(plan) : undefined;
  const lowersBy =
    features.lowerdirAppend !== true || lowerdir === 'numbers'
      ? 'descriptor'
      : lowerdir === undefined
        ? 'path'
        : 'value';
  const layers = addLayers(plan, options, features, lowersBy);
  addUpperGuards(plan, options, features, layers);
  if (lowerdir === 'numbers') addWorkingDirectory(plan);
  const value = lowerdir === 'numbers' ? numbersValue(layers) : lowerdir;
  const context = addContext(plan, options, features, layers, value);
  const set = attributeBits(options);
  const early = set & ~lateAttributes(options);
  const mount = plan.add(
    calls.fsmount,
    [context, k.FSMOUNT_CLOEXEC, early],
    isAttached(options) ? {} : { keep: true, output: 0 },
  );
  if (isGuarded(options)) {
    plan.add(calls.fstatfs, [mount], { output: STATFS_OUTPUT });
    addGuard(plan, 'superblock-is-read-only');
  }
  if (early !== set) plan.add(calls.mount_setattr, [mount, '', k.AT_EMPTY_PATH, set & ~early]);
  const id = addIdLook(plan, mount, options, features);
  if (options.upperdir !== undefined) addRecord(plan, mount);
  if (home !== undefined) plan.add(calls.setns, [home, k.CLONE_NEWNS], { undo: true });
  if (isAttached(options)) {
    const target = targetHere ?? addTargetThere(plan, options);
    plan.add(calls.move_mount, [mount, '', target, '', k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH], {
      undo: true,
      subject: targetSubject(options),
    });
  }
  // A mount that is attached below a shared one becomes shared, and an unbindable mount cannot be attached there.
  if (options.propagation !== undefined) {
    plan.add(calls.mount_setattr, [mount, '', k.AT_EMPTY_PATH, 0, 0, propagationBits[options.propagation]]);
  }
  const memory = layers.memory === undefined ? {} : { memory: plan.stepOf(layers.memory) };
  if (isAttached(options)) return { id, ...memory };
  const made = { id, descriptor: plan.stepOf(mount), ...memory };
  return plan.isInChild ? { ...made, ...addPlace(plan, mount, features) } : made;
}

/**
 * Attaches a detached mount at a path that leads nowhere in this machine. Otherwise the kernel shows `/` as its path,
 * and realpath(3) of a file in the mount is that of another file. The place has nothing else, so it keeps no other mount
 * alive: it is in a detached tree, or before Linux 6.15 in the mount namespace of the child. A mount in another
 * namespace cannot be shown to a program, so a clone of it then stays detached.
 */
function addPlace(plan: Plan, mount: Descriptor, { openTreeAttr }: KernelFeatures): Pick<MountPlan, 'place' | 'spare'> {
  const move = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH;
  // `..` leads there from the mount. A file that the user made there would be lost.
  const tree = addFileSystem(plan, 'ramfs', { mode: '555' }, openTreeAttr === true ? kept : {});
  plan.add(calls.mkdirat, [tree, placeName, 0o755]);
  const place = plan.add(calls.openat2, [tree, placeName, targetFlags, 0]);
  if (openTreeAttr === true) {
    plan.add(calls.move_mount, [mount, '', place, '', move]);
    return { place: plan.stepOf(tree) };
  }
  const namespace = plan.add(calls.openat2, [k.AT_FDCWD, OWN_MOUNT_NAMESPACE, k.O_CLOEXEC, 0], kept);
  plan.add(calls.move_mount, [tree, '', k.AT_FDCWD, '/', k.MOVE_MOUNT_F_EMPTY_PATH]);
  plan.add(calls.pivot, [tree]);
  plan.add(calls.move_mount, [mount, '', place, '', move]);
  const flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH;
  const spare = plan.add(calls.open_tree, [mount, '', flags], kept);
  return { place: plan.stepOf(namespace), spare: plan.stepOf(spare) };
}

/** Returns true if the plan makes mounts for layers: a path would lead to another directory than a mapped clone, or nowhere. */
const makesLayers = ({ idmap, temporary }: CheckedOptions): boolean => idmap !== undefined || temporary !== undefined;

/**
 * Before Linux 6.15 such a mount must be attached in the namespace in which the overlay is made. A rootless mount has a
 * namespace of its own anyway.
 */
const hasOwnMounts = (options: CheckedOptions, { openTreeAttr }: Pick<KernelFeatures, 'openTreeAttr'>): boolean =>
  !openTreeAttr && options.rootless === false && makesLayers(options);

/**
 * Gives the plan a mount namespace of its own, in which it can attach mounts that no other process sees. Returns a
 * descriptor of the namespace to return to.
 */
function addOwnMounts(plan: Plan): Descriptor {
  plan.isOnOwnThread = true;
  const home = plan.add(calls.openat2, [k.AT_FDCWD, OWN_MOUNT_NAMESPACE, k.O_CLOEXEC, 0]);
  plan.add(calls.unshare, [k.CLONE_NEWNS]);
  plan.add(calls.mount, [null, '/', null, k.MS_REC | k.MS_PRIVATE, null]);
  return home;
}

/** Returns true if the plan must fail unless the superblock is writable. */
const isGuarded = (options: CheckedOptions): boolean => hasUpper(options) && !options.readonlySuperblock;

/** Returns the attributes to set after the mount is made: early versions of fsmount(2) took no nosymfollow. */
function lateAttributes(options: CheckedOptions): number {
  // A read-only superblock is visible only while the mount itself is not read-only.
  return k.MOUNT_ATTR_NOSYMFOLLOW | (isGuarded(options) ? k.MOUNT_ATTR_RDONLY : 0);
}

/**
 * Returns true if one value of `lowerdir` can hold the layers. From Linux 5.2 to 6.4 fsconfig(2) wraps the options of
 * mount(2); there this is so only if no path has to go through a descriptor, because mount(2) itself shows the paths to
 * others.
 */
function fitsOneValue(options: CheckedOptions, features: KernelFeatures): boolean {
  const lowerdir = lowerdirValue(options);
  if (!fits(lowerdir)) return false;
  if (features.fsContext !== false) return true;
  const needsSetattr = options.propagation !== undefined || (attributeBits(options) & lateAttributes(options)) !== 0;
  if (needsSetattr && !features.mountSetattr) return false;
  const paths = [options.upperdir, options.workdir].flatMap((path) => (path === undefined ? [] : escapeLayer(path)));
  const values = sentOptions(options, features).map(([, value]) => value ?? '');
  return paths.every(fits) && ![lowerdir, ...paths, ...values].some(hasComma);
}

/** The maximum size of the layers as numbers: five bytes each, up to 99,999 descriptors, and one colon or two. */
const numbersSize = ({ lowerdir, datadir }: CheckedOptions): number => 6 * lowerdir.length + 7 * datadir.length;

/**
 * Adds mount(2) with all layers in one string, the oldest fallback. mount(2) does not tell which option is wrong, and
 * its guards run after the mount exists.
 */
function addMountWay(
  plan: Plan,
  options: Attached,
  features: KernelFeatures,
  data: Text,
  target: Descriptor,
  layers = addUpper(plan, options),
): Made {
  addUpperGuards(plan, options, features, layers);
  const set = flagBits(options);
  // MS_RDONLY applies to both the mount and the superblock. A second call sets the mount's own bits.
  const early = options.readonlySuperblock ? set | k.MS_RDONLY : isGuarded(options) ? set & ~k.MS_RDONLY : set;
  addWorkRemoval(plan, options);
  const root = plan.following(1);
  plan.add(calls.mount, [options.source, viaDescriptor(target), 'overlay', early, data, root], { undo: true });
  const subject = targetSubject(options);
  plan.add(calls.openat2, [k.AT_FDCWD, withoutTrailingSlashes(options.target), targetFlags, 0], { subject });
  plan.add(calls.fstatfs, [root], { output: STATFS_OUTPUT });
  // If the target's path has changed meanwhile, the descriptor is on another file system.
  addGuard(plan, 'target-was-replaced');
  if (isGuarded(options)) addGuard(plan, 'superblock-is-read-only');
  if (early !== set) plan.add(calls.mount, [null, viaDescriptor(root), null, k.MS_REMOUNT | k.MS_BIND | set]);
  if (options.propagation !== undefined) {
    plan.add(calls.mount, [null, viaDescriptor(root), null, propagationBits[options.propagation]]);
  }
  const id = addIdLook(plan, root, options, features);
  if (options.upperdir !== undefined) addRecord(plan, root);
  return { id };
}

/**
 * Changes to the directory in which file descriptors have their numbers as names. All threads of a process share the
 * working directory, so the plan runs on a thread that has its own.
 */
function addWorkingDirectory(plan: Plan): void {
  plan.isOnOwnThread = true;
  plan.add(calls.unshare, [k.CLONE_FS]);
  plan.add(calls.chdir, ['/proc/self/fd']);
}

/** Returns the layers as a value of `lowerdir`, relative to that directory. */
function numbersValue({ lowers, data }: Layers): (Path | Descriptor)[] {
  const pieces = lowers.flatMap((lower, i) => (i === 0 ? [numberOf(lower)] : [':', numberOf(lower)]));
  return [...pieces, ...data.flatMap((layer) => ['::', numberOf(layer)])];
}

const numberOf = ({ descriptor }: Layer): Descriptor => descriptor as Descriptor;

/**
 * Adds mount(2) for options that exceed a page. It passes the layers as the numbers of their descriptors, relative to
 * /proc/self/fd. It passes the upperdir and the workdir by path if they fit, so that others see who uses them.
 */
function addNumbersWay(plan: Plan, options: Attached, features: KernelFeatures, withUpper: boolean): Made {
  const target = addTarget(plan, options);
  const layers = addLayers(plan, options, features);
  addWorkingDirectory(plan);
  const data: (Path | Descriptor)[] = ['lowerdir=', ...numbersValue(layers)];
  if (withUpper && layers.upper !== undefined) data.push(',upperdir=', numberOf(layers.upper));
  if (withUpper && layers.work !== undefined) data.push(',workdir=', numberOf(layers.work));
  data.push(...(withUpper ? optionData(options, features) : tailData(options, features)));
  return addMountWay(plan, options, features, data, target, layers);
}

/**
 * Adds the step that reads the new mount's id, and a guard against a root that cannot be changed: its attributes are
 * those of the upperdir.
 */
function addIdLook(plan: Plan, root: Descriptor, options: CheckedOptions, features: KernelFeatures): Step {
  const { upperdir } = options;
  const mask = features.uniqueMountId ? k.STATX_MNT_ID_UNIQUE : k.STATX_MNT_ID;
  const look = plan.add(calls.statx, [root, '', k.AT_EMPTY_PATH, mask | k.STATX_INO], { output: STATX_OUTPUT });
  if (upperdir !== undefined && isGuarded(options)) {
    addGuard(plan, 'upperdir-is-immutable', { subject: { role: 'upperdir', path: upperdir } });
  }
  return plan.stepOf(look);
}

/** Returns the layers as the value of `lowerdir`, in pieces. */
function lowerdirPieces({ lowerdir, datadir }: CheckedOptions): Path[] {
  const pieces: Path[] = [escapeLayer(lowerdir[0] as Path)];
  for (let i = 1; i < lowerdir.length; i++) pieces.push(':', escapeLayer(lowerdir[i] as Path));
  for (const layer of datadir) pieces.push('::', escapeLayer(layer));
  return pieces;
}

function lowerdirValue(options: CheckedOptions): Path {
  const pieces = lowerdirPieces(options);
  return pieces.every((piece) => typeof piece === 'string') ? pieces.join('') : Buffer.concat(pieces.map(toBytes));
}

/** Returns the layers as the value of `lowerdir`, or undefined if it is too long for fsconfig(2). */
function shortLowerdir(options: CheckedOptions): Path | undefined {
  let length = 0;
  for (const path of options.lowerdir) length += path.length;
  for (const path of options.datadir) length += path.length;
  if (length > FSCONFIG_MAX_BYTES) return undefined;
  const value = lowerdirValue(options);
  return fits(value) ? value : undefined;
}

/** Returns the options of mount(2) that follow the lower layers, in pieces. */
function tailData(options: CheckedOptions, features: KernelFeatures): Path[] {
  const { upperdir, workdir } = options;
  const pieces: Path[] = [];
  if (upperdir !== undefined) pieces.push(',upperdir=', escapeLayer(upperdir));
  if (workdir !== undefined) pieces.push(',workdir=', escapeLayer(workdir));
  return [...pieces, ...optionData(options, features)];
}

/** Returns the options that are not layers, in pieces. */
function optionData(options: CheckedOptions, features: KernelFeatures): Path[] {
  const pieces: Path[] = [];
  for (const [name, value] of sentOptions(options, features)) {
    pieces.push(',', name);
    // Quotes keep a comma from ending the value: an SELinux context has commas between its categories.
    if (value !== null) pieces.push('=', value.includes(',') ? `"${value}"` : value);
  }
  return pieces;
}

/** Returns all options as mount(2) takes them, in pieces. */
function mountData(options: CheckedOptions, features: KernelFeatures): readonly Path[] {
  return ['lowerdir=', ...lowerdirPieces(options), ...tailData(options, features)];
}

const sizeOf = (pieces: readonly Path[]): number => pieces.reduce((sum, piece) => sum + toBytes(piece).length, 0);

/**
 * Returns the plan that mounts an overlay. The paths must be absolute. The plan runs in the given namespaces of a child
 * process, or in those of the calling thread.
 */
export function plan(options: CheckedOptions, features: KernelFeatures, namespaces?: Namespaces): MountPlan {
  const result = new Plan();
  if (namespaces !== undefined) addNamespaces(result, namespaces);
  addCreated(result, options);
  addRemovedGuards(result, options);
  const way = addWay(result, options, features);
  const { steps } = result;
  const find = (wanted: Call) => steps.find(({ call }) => call === wanted);
  const join = options.namespace === undefined ? steps.length : steps.findLastIndex(({ call }) => call === calls.setns);
  const making = (from: number, to = steps.length) =>
    options.create ? steps.slice(from, to).filter(isDirectoryMade) : noSteps;
  return {
    plan: result,
    ...way,
    superblock: isGuarded(options) ? find(calls.fstatfs) : undefined,
    made: making(0, join),
    madeThere: making(join),
  };
}

const noSteps: readonly Step[] = [];

const isDirectoryMade = ({ call, options }: Step): boolean => call === calls.mkdirat && options.undo === true;

/** The error for a target in another namespace: mount(2) takes the layers and the target from one namespace. */
function notByMount({ target }: Attached, { release, mountApi }: KernelFeatures): OverlayError {
  const cause = mountApi
    ? text`only mount(2) takes these options`
    : text`fsopen(2) is missing, or a seccomp filter refuses it`;
  return new OverlayError({
    errno: e.EOPNOTSUPP,
    reason: 'option-unsupported',
    what: text`on this kernel (${release}), ${cause}, and mount(2) cannot mount in another ${option('namespace')}`,
    hint: mountApi
      ? 'use Linux 6.7 or later, or fewer lower layers with short names and without commas'
      : 'allow fsopen(2) in the profile of the container or service, or use Linux 6.7 or later',
    path: pathString(target),
  });
}

function addWay(plan: Plan, options: CheckedOptions, features: KernelFeatures): Made {
  const isByNumbers = makesLayers(options);
  if (features.mountApi || !isAttached(options) || isByNumbers) {
    const { fsContext, lowerdirAppend, layerDescriptors } = features;
    if (fsContext && (lowerdirAppend || layerDescriptors)) {
      // Tools look for one `lowerdir` value in the mount table, unless they gave the layers apart.
      const isByPath = lowerdirAppend === true && options.idmap === undefined && !options.layersApart;
      return addDetachedWay(plan, options, features, isByPath ? shortLowerdir(options) : undefined);
    }
    if (isByNumbers) return addDetachedWay(plan, options, features, 'numbers');
    if (fitsOneValue(options, features)) return addDetachedWay(plan, options, features, lowerdirValue(options));
  }
  const data = mountData(options, features);
  if (!isAttached(options)) {
    if (numbersSize(options) <= FSCONFIG_MAX_BYTES) return addDetachedWay(plan, options, features, 'numbers');
    throw new OverlayError({
      errno: e.E2BIG,
      reason: 'options-too-long',
      what: `the layers of this detached mount need more than the ${FSCONFIG_MAX_BYTES} bytes that this kernel accepts`,
      hint: 'use fewer layers, or a target',
    });
  }
  if (options.namespace !== undefined) throw notByMount(options, features);
  if (sizeOf(data) < features.pageSize) return addMountWay(plan, options, features, data, addTarget(plan, options));
  const size = numbersSize(options) + sizeOf(['lowerdir=', ...tailData(options, features)]);
  if (size < features.pageSize) return addNumbersWay(plan, options, features, false);
  const least =
    numbersSize(options) + sizeOf(['lowerdir=,upperdir=12345,workdir=12345', ...optionData(options, features)]);
  if (least < features.pageSize) return addNumbersWay(plan, options, features, true);
  throw new OverlayError({
    errno: e.E2BIG,
    reason: 'options-too-long',
    what: `the options of this mount are ${sizeOf(data)} bytes long, and mount(2) would cut them off after ${features.pageSize - 1}`,
    path: pathString(options.target),
  });
}
