/** The options of an overlay mount: their types, their checks, and the kernel's names for them. Pure. */
import { checkBoolean, checkNames, checkSignal, checkWord, takeOnce } from '../arguments.js';
import { conflictingOptions, invalidArgumentType, invalidArgumentValue, outOfRange, showValue } from '../errors.js';
import { checkNamespace, type Namespace, toTarget } from '../namespaces/mount-namespace.js';
import { joinPath, type Path, type PathLike, splitPath, toPath } from '../paths.js';
import { either, member, option, text } from '../text.js';
import type { AccessTimes, MountAttribute, Propagation } from './attributes.js';
import { type CheckedIdMap, checkIdMap, type IdMapOption } from './idmap.js';
import { type OptionName, type OptionRow, optionRows, optionTable, overlayOptionNames } from './table.js';
import { checkTmpfsLimits, type TmpfsLimits } from './tmpfs-limits.js';

/** The kernel's limit of lower layers (OVL_MAX_STACK). */
const MAX_LOWER_LAYERS = 500;
/** fsconfig(2) refuses longer values. */
const MAX_STRING_BYTES = 255;

export interface OverlayOptions {
  /** The lower layers, topmost first: 1 to 500 directories. Without an upperdir, the overlay is a read-only view. */
  lowerdir: PathLike | readonly PathLike[];
  /**
   * Data-only layers, below all others (Linux 6.5). Their files appear only where a metacopy file of a layer above
   * redirects to them. Up to Linux 6.15 they need `metacopy`, which the library then adds.
   */
  datadir?: PathLike | readonly PathLike[];
  /** The layer that takes the changes. Without it the mount is a read-only view of the lower layers. */
  upperdir?: PathLike;
  /**
   * An empty directory for the kernel's own use, on the same mount as the upperdir and not inside it. Default with
   * `create` and an upperdir: `<upperdir>.work`.
   */
  workdir?: PathLike;
  /**
   * The directory where the merged tree appears. Without it the mount is detached (Linux 5.2): it is in no mount
   * table, the caller reaches it by its `path`, `/proc/self/fd/N`, and it ends with the object.
   */
  target?: PathLike;

  /** Changes of metadata copy up no data (Linux 4.19). Sent with redirect_dir=on. Default: the kernel's. */
  metacopy?: boolean;
  /** Support for renamed lower directories (4.10; follow, nofollow: 4.15). Default: the kernel's. */
  redirectDir?: 'on' | 'off' | 'follow' | 'nofollow';
  /** Hard links stay linked at copy-up, and the kernel refuses an upperdir in use (4.13). Default: the kernel's. */
  index?: boolean;
  /** NFS can export the mount (4.16). Default: the kernel's. */
  nfsExport?: boolean;
  /** Unique and persistent inode numbers (4.17). Default: the kernel's. */
  xino?: 'on' | 'off' | 'auto';
  /** The file system's UUID (on, off: 5.11; null, auto: 6.6). Default: the kernel's. */
  uuid?: 'on' | 'off' | 'null' | 'auto';
  /** Metacopy files hold fs-verity digests of lower files, and the kernel checks them (6.6). Default `'off'`. */
  verity?: 'off' | 'on' | 'require';
  /** The kernel syncs nothing; a crash loses the upperdir (5.10). Default false. */
  volatile?: boolean;
  /** When copy-up syncs data before metadata (7.0, and stable kernels from 6.12 on). Default `'auto'`. */
  fsync?: 'auto' | 'strict';
  /**
   * The kernel keeps its marks in `user.overlay.*` attributes instead of `trusted.overlay.*` (5.11). Default: true in a
   * user namespace, which can neither read nor write the latter; else false.
   */
  userxattr?: boolean;
  /**
   * The kernel accesses the layers with the credentials that the thread which makes the mount has at that time, instead
   * of the mounter's (6.15). Needs CAP_SYS_ADMIN. false sends the opposite. Default: nothing is sent.
   */
  overrideCreds?: boolean;
  /** The kernel checks permissions by mode alone, without the layers' file systems. Default false. */
  defaultPermissions?: boolean;
  /** The SELinux context of everything in the mount; needs a kernel with SELinux. */
  context?: string;
  /** The SELinux context of the file system itself. */
  fscontext?: string;
  /** The SELinux context of files that have none. */
  defcontext?: string;
  /** The SELinux context of the root directory. */
  rootcontext?: string;

  /** The mount is read-only, but its superblock is not. Default false. */
  readonly?: boolean;
  /** The superblock is read-only, and so is every mount of it, even without `readonly`. Default false. */
  readonlySuperblock?: boolean;
  /** The kernel ignores set-user-ID bits and file capabilities. Default false. */
  nosuid?: boolean;
  /** Device nodes cannot be opened. Default false. */
  nodev?: boolean;
  /** No program in the mount can be executed. Default false. */
  noexec?: boolean;
  /** The kernel does not follow symbolic links (5.10). Default false. */
  nosymfollow?: boolean;
  /** The kernel does not update access times of directories. Default false. */
  nodiratime?: boolean;
  /** When the kernel updates access times. Default `'relatime'`. */
  atime?: AccessTimes;
  /**
   * True if mounts inside this one appear in other namespaces; see mount_namespaces(7). Default: as the mount that
   * holds the target.
   */
  propagation?: Propagation;
  /** The source that the mount table shows. Default `'overlay'`. */
  source?: string;

  /**
   * Makes the upperdir, workdir and target, with their parents, if they are missing. The upperdir gets the owner, mode,
   * access control lists, other extended attributes and times of the topmost lower layer, because the root of an overlay
   * shows those of its upperdir. A user who cannot give it that owner owns it; its mode then lets nobody in whom the lower
   * layer keeps out. The mode of the workdir is 0700, and that of the others 0755 less the umask. A failed mount removes
   * them again. Default false.
   */
  create?: boolean;
  /**
   * Gives the mount an upperdir and a workdir of its own in memory: a tmpfs that no other process sees, which ends with
   * the mount, after SIGKILL too (tmpfs(5); 5.2, and 6.6 in a user namespace). `size` in bytes and `inodes`, the number
   * of files and directories, are hard limits: a program that exceeds them gets ENOSPC. Their default is half of the
   * memory, as the kernel's. `mount.options.upperdir` leads to the changes while the mount is there. Without a target,
   * the default of `rootless` is then `'auto'`. Default false.
   */
  temporary?: boolean | TmpfsLimits;
  /**
   * Mounts over another mount at the target. Without it the library refuses a target that is a mount point; it refuses
   * the second of two concurrent calls of this process for one target. Two processes that mount there at the very same
   * moment may both find nothing. Default false.
   */
  stack?: boolean;
  /**
   * Shows the layers' files with other owners than they have on disk, and stores new files likewise. The value is a
   * list of ranges of ids, or the descriptor of a user namespace; for all layers, or as `{ lowerdir, upperdir }`. Needs
   * Linux 5.19, and CAP_SYS_ADMIN in the initial user namespace. The upperdir and the workdir get one clone of the
   * directory that holds both. The ids that the map shows for the upperdir must include those of the mounting user.
   */
  idmap?: IdMapOption;
  /**
   * Mounts without privilege (Linux 5.11). A child process makes a user namespace and a mount namespace, makes the
   * mount in them, and ends with the call. This process holds the descriptor of the mount, which has no `target`.
   *
   * `'keep'` makes the user namespace once and enters it again for later mounts, which is quicker. The library keeps it
   * until it has had no use for ten seconds. `'auto'` mounts in namespaces, as `true` does, only if the process may not
   * mount. Default false.
   */
  rootless?: boolean | 'keep' | 'auto';
  /**
   * Adds the user's subordinate ids, subuid(5), to the ids of a `rootless` mount. Files of these ids can then be
   * changed; copy-up keeps their owner. A process may not map them itself, so the library runs newuidmap(1) and
   * newgidmap(1) for each mount, or once with `'keep'`. Apart from this, only `spawn` starts a program. Default false.
   */
  subIds?: boolean;
  /**
   * The mount namespace of the target: `/proc/PID/ns/mnt`, or a descriptor of it. The target is
   * an absolute path there. The paths of the layers are the caller's: a thread that ends with the call makes the
   * overlay in the caller's namespace and attaches it in the other one (setns(2)). Joining a namespace needs
   * CAP_SYS_ADMIN and CAP_SYS_CHROOT. Default: the caller's.
   */
  namespace?: PathLike | number;
  /**
   * Refuses an upperdir or workdir that another overlay uses. The kernel accepts one unless `index` is on. A directory
   * is in use until the kernel reports that the overlay's superblock is gone. The library knows all overlays that this
   * process has mounted, and from Linux 6.8 on those that the mount table of this namespace shows. It does not see
   * overlays that other processes mount in other namespaces, detached, or without privilege. Default true.
   */
  exclusive?: boolean;
  /**
   * The options that the mount may lack without an error. The kernel may not have the option, or may mount without it,
   * by itself or because a layer lacks a feature. The names are those of overlayfs' own options, such as `'verity'`.
   */
  allowDegraded?: readonly OverlayOptionName[];
  /**
   * Aborts the mount. A call that has not begun never begins; one that has begun is undone. The synchronous form checks
   * the signal once, before it begins.
   */
  signal?: AbortSignal;
}

/** Overlayfs' own options besides the layers. A kernel can lack any of them. */
export type OverlayOptionName =
  | 'redirectDir'
  | 'index'
  | 'nfsExport'
  | 'metacopy'
  | 'uuid'
  | 'xino'
  | 'verity'
  | 'volatile'
  | 'fsync'
  | 'userxattr'
  | 'overrideCreds'
  | 'defaultPermissions'
  | 'context'
  | 'fscontext'
  | 'defcontext'
  | 'rootcontext';

/** An option with the caller's name, the kernel's name, and its value, or null if it takes none. */
export interface NamedOption {
  readonly name: OverlayOptionName;
  readonly kernel: string;
  readonly value: string | null;
}

/** In the options of the helper of mount(8): see `layersApart` in CheckedOptions. */
export const LAYERS_APART = Symbol('layersApart');

/** Options that have passed the checks. */
export interface CheckedOptions {
  readonly lowerdir: readonly Path[];
  readonly datadir: readonly Path[];
  /** True if the mount table is to show each of these layers by an option of its own, as mount(8) gave them. */
  readonly layersApart: boolean;
  readonly upperdir: Path | undefined;
  readonly workdir: Path | undefined;
  /** Undefined for a detached mount. */
  readonly target: Path | undefined;
  readonly rootless: boolean | 'keep' | 'auto';
  readonly subIds: boolean;
  readonly idmap: CheckedIdMap | undefined;
  /** The options of overlayfs itself that the caller named. */
  readonly overlay: readonly NamedOption[];
  /** Undefined if the caller leaves it to the library. */
  readonly userxattr: boolean | undefined;
  readonly attributes: readonly MountAttribute[];
  readonly atime: AccessTimes;
  readonly readonlySuperblock: boolean;
  readonly propagation: Propagation | undefined;
  readonly source: string;
  readonly create: boolean;
  readonly temporary: TmpfsLimits | undefined;
  readonly stack: boolean;
  readonly namespace: Namespace | undefined;
  readonly exclusive: boolean;
  readonly allowDegraded: readonly OverlayOptionName[];
  readonly signal: AbortSignal | undefined;
  /** True if the caller gave no option besides lowerdir, upperdir, workdir and target. */
  readonly isPlain: boolean;
}

/** Returns true if the mount takes changes: in a directory, or in memory. */
export const hasUpper = ({ upperdir, temporary }: Pick<CheckedOptions, 'upperdir' | 'temporary'>): boolean =>
  upperdir !== undefined || temporary !== undefined;

type Draft = { -readonly [Name in keyof CheckedOptions]: CheckedOptions[Name] };

const none: readonly never[] = [];

function checkLayers(value: unknown, name: 'lowerdir' | 'datadir'): Path[] {
  if (!Array.isArray(value)) return [toPath(value, name)];
  if (value.length === 0 || value.length > MAX_LOWER_LAYERS) {
    throw outOfRange(name, `a list of 1 to ${MAX_LOWER_LAYERS} paths`, `${value.length} paths`);
  }
  return Array.from(value, (path, i) => toPath(path, `${name}[${i}]`));
}

function checkText(value: unknown, name: string): string {
  if (typeof value !== 'string') throw invalidArgumentType(name, 'a string', value);
  if (value === '' || value.includes('\0') || Buffer.byteLength(value) > MAX_STRING_BYTES) {
    throw invalidArgumentValue(name, value, `must be 1 to ${MAX_STRING_BYTES} bytes without NUL`);
  }
  return value;
}

function checkDegradable(value: unknown, name: string): OverlayOptionName[] {
  if (!Array.isArray(value)) throw invalidArgumentType(name, 'a list of option names', value);
  // Does not compile if the table has a name that the type lacks.
  const words: readonly OverlayOptionName[] = overlayOptionNames;
  return Array.from(value, (word, i) => checkWord(word ?? null, `${name}[${i}]`, words) as OverlayOptionName);
}

function checkRootless(value: unknown, name: string): CheckedOptions['rootless'] {
  if (typeof value === 'boolean') return value;
  if (typeof value !== 'string') throw invalidArgumentType(name, "true, false, 'keep' or 'auto'", value);
  return checkWord(value, name, ['keep', 'auto']) as 'keep' | 'auto';
}

function checkTemporary(value: unknown, name: string): TmpfsLimits | undefined {
  if (typeof value === 'boolean') return value ? {} : undefined;
  return checkTmpfsLimits(value, name);
}

/** Checks one option. The library calls it only for options that the caller names. */
type Check = (draft: Draft, value: unknown, name: string) => void;

/** Returns the text to send for an option of overlayfs, null for the bare word, or undefined to send nothing. */
function toSent(row: OptionRow, value: unknown, name: string): string | null | undefined {
  switch (row.form) {
    case 'word':
      return checkWord(value, name, row.words) as string;
    case 'switch':
      return checkBoolean(value, name) ? 'on' : 'off';
    case 'text':
      return checkText(value, name);
    default:
      return checkBoolean(value, name) ? null : undefined;
  }
}

const overlayCheck: Check = (draft, value, name) => {
  const row = optionRows[name] as OptionRow;
  const sent = toSent(row, value, name);
  if (name === 'userxattr') draft.userxattr = sent === null;
  let kernel = row.kernel as string;
  if (sent === undefined) {
    const off = row.form === 'flag' ? row.off : undefined;
    if (off === undefined) return;
    kernel = off;
  }
  draft.overlay = [...draft.overlay, { name: name as OverlayOptionName, kernel, value: sent ?? null }];
};

const attributeCheck: Check = (draft, value, name) => {
  if (checkBoolean(value, name)) draft.attributes = [...draft.attributes, name as MountAttribute];
};

const booleanCheck: Check = (draft, value, name) => {
  // Does not compile if CheckedOptions lacks an option of this form.
  draft[name as NameOf<'boolean'>] = checkBoolean(value, name) as boolean;
};

type NameOf<Form extends OptionRow['form']> = {
  [N in OptionName]: (typeof optionTable)[N]['form'] extends Form ? N : never;
}[OptionName];

type PlainPath = 'lowerdir' | 'upperdir' | 'workdir' | 'target';

/** The checks of options whose form does not decide them. Does not compile if one lacks its check. */
const ownChecks: Readonly<
  Record<Exclude<OptionName, OverlayOptionName | NameOf<'attribute' | 'boolean'> | PlainPath>, Check>
> = {
  datadir: (draft, value) => (draft.datadir = checkLayers(value, 'datadir')),
  atime: (draft, value, name) => (draft.atime = checkWord(value, name, optionTable.atime.words) as AccessTimes),
  propagation: (draft, value, name) =>
    (draft.propagation = checkWord(value, name, optionTable.propagation.words) as Propagation),
  source: (draft, value, name) => (draft.source = checkText(value, name)),
  namespace: (draft, value, name) => (draft.namespace = checkNamespace(value, name)),
  allowDegraded: (draft, value, name) => (draft.allowDegraded = checkDegradable(value, name)),
  idmap: (draft, value, name) => (draft.idmap = checkIdMap(value, name)),
  rootless: (draft, value, name) => (draft.rootless = checkRootless(value, name)),
  subIds: (draft, value, name) => (draft.subIds = checkBoolean(value, name) ?? false),
  temporary: (draft, value, name) => (draft.temporary = checkTemporary(value, name)),
  signal: (draft, value, name) => (draft.signal = checkSignal(value, name)),
};

/** The checks of all options but the paths, which checkOptions checks itself. */
const otherChecks: ReadonlyMap<string, Check> = new Map<string, Check>([
  ...overlayOptionNames.map((name): [string, Check] => [name, overlayCheck]),
  ...Object.entries(optionTable).flatMap(([name, { form }]): [string, Check][] => {
    if (form === 'attribute') return [[name, attributeCheck]];
    return form === 'boolean' ? [[name, booleanCheck]] : [];
  }),
  ...Object.entries(ownChecks),
]);

/** Does not compile if OverlayOptions lacks an option of the table. */
const optionNames: ReadonlySet<keyof OverlayOptions> = new Set(Object.keys(optionTable) as OptionName[]);

/** Returns `<upperdir>.work`, beside the upperdir. */
function defaultWorkdir(upperdir: Path): Path {
  const [parent, name] = splitPath(upperdir);
  const work = typeof name === 'string' ? `${name}.work` : Buffer.concat([name, Buffer.from('.work')]);
  return parent === '.' ? work : joinPath(parent, work);
}

/** Returns a copy of the caller's options as they are now. */
export function takeOptions(options: OverlayOptions): OverlayOptions {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalidArgumentType('options', 'an object with at least a lowerdir', options);
  }
  return takeOnce(options, optionNames);
}

/**
 * Checks the options that takeOptions returned. Throws a TypeError or RangeError that names the option, its value and
 * the values that are allowed.
 */
export function checkOptions(given: OverlayOptions & { readonly [LAYERS_APART]?: boolean }): CheckedOptions {
  const layersApart = given[LAYERS_APART] ?? false;
  const draft: Draft = {
    lowerdir: none,
    datadir: none,
    layersApart,
    upperdir: undefined,
    workdir: undefined,
    target: undefined,
    rootless: false,
    subIds: false,
    idmap: undefined,
    overlay: none,
    userxattr: undefined,
    attributes: none,
    atime: 'relatime',
    readonlySuperblock: false,
    propagation: undefined,
    source: 'overlay',
    create: false,
    temporary: undefined,
    stack: false,
    namespace: undefined,
    exclusive: true,
    allowDegraded: none,
    signal: undefined,
    isPlain: !layersApart,
  };
  for (const name of Object.keys(given)) {
    // A look-up of the check by name would cost more than the checks of the paths.
    switch (name) {
      case 'lowerdir':
        if (given.lowerdir !== undefined) draft.lowerdir = checkLayers(given.lowerdir, name);
        break;
      case 'upperdir':
        if (given.upperdir !== undefined) draft.upperdir = toPath(given.upperdir, name);
        break;
      case 'workdir':
        if (given.workdir !== undefined) draft.workdir = toPath(given.workdir, name);
        break;
      case 'target':
        if (given.target !== undefined) draft.target = toPath(given.target, name);
        break;
      default:
        draft.isPlain = false;
        checkOther(draft, given, name);
    }
  }
  checkTogether(draft, given);
  return draft;
}

function checkOther(draft: Draft, options: OverlayOptions, name: string): void {
  const value = options[name as keyof OverlayOptions];
  const check = otherChecks.get(name);
  if (check === undefined) checkNames(options, optionNames);
  else if (value !== undefined) check(draft, value, name);
}

/**
 * Checks the options against each other. Raw values appear in messages only, because the object that holds them
 * inherits from Object.prototype.
 */
function checkTogether(draft: Draft, given: OverlayOptions): void {
  if (draft.lowerdir.length === 0) {
    throw invalidArgumentType('lowerdir', 'one path or a list of paths, the topmost layer first', given.lowerdir);
  }
  if (isLone(draft)) addEmptyUpper(draft);
  if (draft.temporary !== undefined) checkTemporaryTogether(draft, given);
  checkPlace(draft, given.target);
  checkLayersTogether(draft, given);
}

/** True for a read-only view of one directory. */
const isLone = ({ lowerdir, datadir, upperdir, workdir, temporary }: Draft): boolean =>
  lowerdir.length + datadir.length === 1 && upperdir === undefined && workdir === undefined && temporary === undefined;

/** The kernel takes no overlay of one layer. It gets an upper in memory that stays empty. */
function addEmptyUpper(draft: Draft): void {
  if (draft.idmap !== undefined) {
    throw conflictingOptions(
      text`without ${option('upperdir')}, ${option('idmap')} needs at least 2 paths in ${option('lowerdir')}`,
      either(text`add ${option('upperdir')} and ${option('workdir')}`, text`add a second ${option('lowerdir')}`),
    );
  }
  draft.temporary = {};
  draft.isPlain = false;
  if (!draft.attributes.includes('readonly')) draft.attributes = [...draft.attributes, 'readonly'];
}

/** Checks what cannot go with layers in memory, and chooses the namespaces of the mount. */
function checkTemporaryTogether(draft: Draft, given: OverlayOptions): void {
  for (const name of ['upperdir', 'workdir', 'idmap'] as const) {
    if (draft[name] === undefined) continue;
    const why = name === 'idmap' ? 'a map for an upperdir in memory is not supported' : 'the mount makes its own';
    throw conflictingOptions(
      text`${option('temporary')} and ${option(name)} exclude each other: ${why}`,
      'leave one of the two out',
    );
  }
  if (given.rootless === undefined && draft.target === undefined) draft.rootless = 'auto';
}

/** Checks the options that say where and in which namespaces the library mounts. */
function checkPlace(draft: Draft, target: PathLike | undefined): void {
  if (draft.rootless !== false && draft.idmap !== undefined) {
    throw conflictingOptions(
      text`${option('idmap')} and ${option('rootless')} exclude each other: mapping the owners of a layer needs privilege in the initial user namespace`,
      'leave one of the two out',
    );
  }
  if (draft.rootless !== false && draft.target !== undefined) {
    throw conflictingOptions(
      text`${option('target')} and ${option('rootless')} exclude each other: a mount cannot be attached without privilege. Received the target ${showValue(target)}`,
      text`leave ${option('target')} out and use the ${member('path')} of the mount, or show it to a program with ${member('spawn')}`,
    );
  }
  if (draft.rootless === false && draft.subIds) {
    throw conflictingOptions(
      text`${option('subIds')} has no effect without ${option('rootless')}: a mount with privilege has all ids`,
      either('leave it out', text`add ${option('rootless')}`),
    );
  }
  if (draft.namespace !== undefined) {
    if (draft.target === undefined) {
      throw conflictingOptions(
        text`${option('namespace')} has no effect without ${option('target')}: a detached mount is in no namespace`,
        either('leave it out', text`add ${option('target')}`),
      );
    }
    draft.target = toTarget(draft.target, draft.namespace);
  }
}

function checkLayersTogether(draft: Draft, { upperdir, workdir }: OverlayOptions): void {
  const layers = draft.lowerdir.length + draft.datadir.length;
  if (layers > MAX_LOWER_LAYERS) {
    throw outOfRange(
      'datadir',
      text`at most ${String(MAX_LOWER_LAYERS)} layers together with ${option('lowerdir')}`,
      `${layers} layers`,
    );
  }
  if (draft.upperdir === undefined) {
    if (draft.workdir !== undefined) {
      throw conflictingOptions(
        text`${option('workdir')} has no effect without ${option('upperdir')}: the kernel would ignore it. Received the workdir ${showValue(workdir)}`,
        either('leave it out', text`add ${option('upperdir')}`),
      );
    }
  } else if (draft.workdir === undefined) {
    if (!draft.create) {
      throw conflictingOptions(
        text`${option('upperdir')} needs ${option('workdir')}, an empty directory on the same file system. Received only the upperdir ${showValue(upperdir)}`,
        either('add one', text`pass ${option('create', true)} to create <upperdir>.work`),
      );
    }
    draft.workdir = defaultWorkdir(draft.upperdir);
  }
}
