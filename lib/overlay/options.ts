/** The options of an overlay mount: their types, their checks, and what the kernel calls them. Pure. */
import { checkBoolean, checkNames, checkSignal, checkWord, takeOnce } from '../arguments.js';
import { conflictingOptions, invalidArgumentType, invalidArgumentValue, outOfRange, showValue } from '../errors.js';
import type { AccessTimes, MountAttribute, Propagation } from '../mounts/attributes.js';
import { checkNamespace, type Namespace, type NamespaceLike, toTarget } from '../mounts/mount-namespace.js';
import { joinPath, type Path, type PathLike, splitPath, toPath } from '../paths.js';
import { type CheckedIdMap, checkIdMap, type IdMapOption } from './idmap.js';
import { type OptionRow, optionRows, optionTable, overlayOptionNames } from './option-table.js';

/** The kernel takes no more lower layers (OVL_MAX_STACK). */
const MAX_LOWER_LAYERS = 500;
/** Longer values do not pass fsconfig(2). */
const MAX_STRING_BYTES = 255;

export interface OverlayOptions {
  /** The lower layers, the topmost first: 1 to 500 directories; at least 2 without an upperdir. */
  lowerdir: PathLike | readonly PathLike[];
  /**
   * Data-only layers, below all others: their files show only where a metacopy file of a layer above redirects
   * to them (6.5). Up to Linux 6.15 they need `metacopy`, which then goes without saying.
   */
  datadir?: PathLike | readonly PathLike[];
  /** The layer that takes the changes. Left out: a read-only view of the lower layers. */
  upperdir?: PathLike;
  /**
   * An empty directory for the kernel's own use, on the same mount as the upperdir and not inside it. With
   * `create` and an upperdir, it defaults to `<upperdir>.work`.
   */
  workdir?: PathLike;
  /**
   * The directory where the merged tree appears. Left out: a detached mount, which is in no mount table, is
   * reached by its `path`, `/proc/self/fd/N`, and ends with the object (Linux 5.2).
   */
  target?: PathLike;

  /** Metadata changes copy up no data (Linux 4.19). Sent with redirect_dir=on. Default: the kernel's. */
  metacopy?: boolean;
  /** Renamed lower directories (4.10; follow, nofollow: 4.15). Default: the kernel's. */
  redirectDir?: 'on' | 'off' | 'follow' | 'nofollow';
  /** Hard links stay linked when copied up; an upper in use is refused (4.13). Default: the kernel's. */
  index?: boolean;
  /** The mount can be exported by NFS (4.16). Default: the kernel's. */
  nfsExport?: boolean;
  /** Inode numbers that are unique and stay (4.17). Default: the kernel's. */
  xino?: 'on' | 'off' | 'auto';
  /** The file system's UUID (on, off: 5.11; null, auto: 6.6). Default: the kernel's. */
  uuid?: 'on' | 'off' | 'null' | 'auto';
  /** Whether fs-verity digests of lower files are kept in metacopy files and checked (6.6). Default `'off'`. */
  verity?: 'off' | 'on' | 'require';
  /** Nothing is synced, and after a crash the upper is lost (5.10). Default false. */
  volatile?: boolean;
  /** Whether data is synced before metadata at copy-up (7.0, and stable from 6.12 on). Default `'auto'`. */
  fsync?: 'auto' | 'strict';
  /**
   * Marks are kept in `user.overlay.*` instead of `trusted.overlay.*` (5.11). Default: on in a user
   * namespace, which can neither read nor write the latter; else off.
   */
  userxattr?: boolean;
  /**
   * The layers are reached with the credentials of the thread that makes the mount, as they are then, instead
   * of the mounter's (6.15): it needs CAP_SYS_ADMIN. false sends the opposite. Default: nothing sent.
   */
  overrideCreds?: boolean;
  /** Permissions are checked by mode alone, not by the layers' file systems. Default false. */
  defaultPermissions?: boolean;
  /** The SELinux context of all that is in the mount; needs a kernel with SELinux. */
  context?: string;
  /** The SELinux context of the file system itself. */
  fscontext?: string;
  /** The SELinux context of files without one. */
  defcontext?: string;
  /** The SELinux context of the root directory. */
  rootcontext?: string;

  /** The mount is read-only; the superblock below it is not. Default false. */
  readonly?: boolean;
  /** The superblock is read-only, and with it every mount of it; the mount itself need not be. Default false. */
  readonlySuperblock?: boolean;
  /** Set-user-ID bits and file capabilities are ignored. Default false. */
  nosuid?: boolean;
  /** Device nodes cannot be opened. Default false. */
  nodev?: boolean;
  /** Nothing can be executed. Default false. */
  noexec?: boolean;
  /** Symbolic links are not followed (5.10). Default false. */
  nosymfollow?: boolean;
  /** Access times of directories are not updated. Default false. */
  nodiratime?: boolean;
  /** When access times are updated. Default `'relatime'`. */
  atime?: AccessTimes;
  /**
   * Whether mounts inside it show in other namespaces, mount_namespaces(7). Default: as the mount that the
   * target is in.
   */
  propagation?: Propagation;
  /** What the mount table shows as the source. Default `'overlay'`. */
  source?: string;

  /**
   * Makes what is missing of upperdir, workdir and target, with parents, mode 0755 less the umask; removed
   * again on failure. Default false.
   */
  create?: boolean;
  /**
   * Mounts over what is mounted at the target already, which is refused otherwise: of two promises for one target the
   * second. Two that mount there at the very same moment, a promise and a twin, two threads or two processes, may both
   * find nothing. Default false.
   */
  stack?: boolean;
  /**
   * Shows the layers' files with other owners than they have on disk, and stores new ones likewise (Linux 5.19,
   * which needs CAP_SYS_ADMIN in the initial user namespace): a list of ranges of ids, or the descriptor of a user
   * namespace; for all layers, or `{ lowerdir, upperdir }`. Upper and work get one clone of the directory that
   * holds both. The ids of the mounting user have to be among those that the upper's show as.
   */
  idmap?: IdMapOption;
  /**
   * Mounts without privilege (Linux 5.11): a child process that lives for the call makes a user and a mount
   * namespace, and the mount in them; the descriptor is this process's. It has no `target`. `'keep'` makes the
   * namespaces once and enters them again for later mounts, which is quicker; they hold copies of the mounts
   * that there were, and are let go after ten seconds without use. `'auto'`: only where the process may not
   * mount. Default false.
   */
  rootless?: boolean | 'keep' | 'auto';
  /**
   * With `rootless`: the user's subordinate ids, subuid(5), are ids of the mount too, so that files of theirs can be
   * changed, which are copied up with their owner. A process may not map them itself: newuidmap(1) and newgidmap(1)
   * are run, for each mount, or with `'keep'` once. Nothing else in the library starts a program, but `spawn`.
   * Default false.
   */
  subIds?: boolean;
  /**
   * The mount namespace in which the target is, an absolute path there: `/proc/PID/ns/mnt`, a descriptor, or one
   * from `createNamespace`. The layers are the caller's: the overlay is made here and attached there (setns(2)),
   * by a thread that ends with the call. Joining needs CAP_SYS_ADMIN and CAP_SYS_CHROOT. Default: the caller's.
   */
  namespace?: NamespaceLike;
  /**
   * Refuses an upperdir or workdir that another overlay uses, which the kernel accepts unless `index` is on. The
   * directory is in use until the kernel says that the overlay's superblock is gone. The library knows the overlays that
   * this process has mounted in any way, and from Linux 6.8 on those that the mount table of this namespace shows. It
   * does not see what other processes mount elsewhere, detached or without privilege. Default true.
   */
  exclusive?: boolean;
  /**
   * The options that may fall away instead of an error: where the kernel has no such option, and where it
   * mounts without it, by itself or since a layer lacks something. Names of overlayfs' own options, such as
   * `'verity'`.
   */
  allowDegraded?: readonly OverlayOptionName[];
  /** Gives the mount up: what has not begun never does, what has is undone. */
  signal?: AbortSignal;
}

/** Overlayfs' own options besides the layers: those that a kernel can lack. */
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

/** An option as the caller named it and as the kernel wants it: a value where it takes one. */
export interface NamedOption {
  readonly name: OverlayOptionName;
  readonly kernel: string;
  readonly value: string | null;
}

/** Options that have passed the checks. */
export interface CheckedOptions {
  readonly lowerdir: readonly Path[];
  readonly datadir: readonly Path[];
  readonly upperdir: Path | undefined;
  readonly workdir: Path | undefined;
  /** Undefined: detached. */
  readonly target: Path | undefined;
  readonly rootless: boolean | 'keep' | 'auto';
  readonly subIds: boolean;
  readonly idmap: CheckedIdMap | undefined;
  /** Overlayfs' own options, those that the caller named. */
  readonly overlay: readonly NamedOption[];
  /** Undefined where the caller leaves it to the library. */
  readonly userxattr: boolean | undefined;
  readonly attributes: readonly MountAttribute[];
  readonly atime: AccessTimes;
  readonly readonlySuperblock: boolean;
  readonly propagation: Propagation | undefined;
  readonly source: string;
  readonly create: boolean;
  readonly stack: boolean;
  readonly namespace: Namespace | undefined;
  readonly exclusive: boolean;
  readonly allowDegraded: readonly OverlayOptionName[];
  readonly signal: AbortSignal | undefined;
  /** Whether nothing but lowerdir, upperdir, workdir and target was given. */
  readonly isPlain: boolean;
}

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
  const words = overlayOptionNames as OverlayOptionName[];
  return Array.from(value, (word, i) => checkWord(word ?? null, `${name}[${i}]`, words) as OverlayOptionName);
}

function checkRootless(value: unknown, name: string): CheckedOptions['rootless'] {
  if (typeof value === 'boolean') return value;
  if (typeof value !== 'string') throw invalidArgumentType(name, "true, false, 'keep' or 'auto'", value);
  return checkWord(value, name, ['keep', 'auto']) as 'keep' | 'auto';
}

/** Checks of single options, by name; only what the caller names is looked at. */
type Check = (draft: Draft, value: unknown, name: string) => void;

/** An option of overlayfs' own: a text to send, null for the bare word, undefined for nothing. */
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

const wordsOf = (name: 'atime' | 'propagation'): readonly string[] => optionTable[name].words;

/** The options besides the paths, which have checks of their own below. */
const otherChecks: ReadonlyMap<string, Check> = new Map<string, Check>([
  ...overlayOptionNames.map((name): [string, Check] => [name, overlayCheck]),
  ...Object.entries(optionTable).flatMap(([name, { form }]): [string, Check][] =>
    form === 'attribute' ? [[name, attributeCheck]] : [],
  ),
  ['datadir', (draft, value) => (draft.datadir = checkLayers(value, 'datadir'))],
  ['atime', (draft, value, name) => (draft.atime = checkWord(value, name, wordsOf(name as 'atime')) as Draft['atime'])],
  [
    'propagation',
    (draft, value, name) =>
      (draft.propagation = checkWord(value, name, wordsOf(name as 'propagation')) as Draft['propagation']),
  ],
  ['source', (draft, value, name) => (draft.source = checkText(value, name))],
  ['readonlySuperblock', (draft, value, name) => (draft.readonlySuperblock = checkBoolean(value, name) ?? false)],
  ['create', (draft, value, name) => (draft.create = checkBoolean(value, name) ?? false)],
  ['stack', (draft, value, name) => (draft.stack = checkBoolean(value, name) ?? false)],
  ['namespace', (draft, value, name) => (draft.namespace = checkNamespace(value, name))],
  ['exclusive', (draft, value, name) => (draft.exclusive = checkBoolean(value, name) ?? true)],
  ['allowDegraded', (draft, value, name) => (draft.allowDegraded = checkDegradable(value, name))],
  ['idmap', (draft, value, name) => (draft.idmap = checkIdMap(value, name))],
  ['rootless', (draft, value, name) => (draft.rootless = checkRootless(value, name))],
  ['subIds', (draft, value, name) => (draft.subIds = checkBoolean(value, name) ?? false)],
  ['signal', (draft, value, name) => (draft.signal = checkSignal(value, name))],
]);

const optionNames: ReadonlySet<string> = new Set(Object.keys(optionTable));

/** `<upperdir>.work`, beside the upper. */
function defaultWorkdir(upperdir: Path): Path {
  const [parent, name] = splitPath(upperdir);
  const work = typeof name === 'string' ? `${name}.work` : Buffer.concat([name, Buffer.from('.work')]);
  return parent === '.' ? work : joinPath(parent, work);
}

/** The caller's options as they are now. */
export function takeOptions(options: OverlayOptions): OverlayOptions {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalidArgumentType('options', 'an object with at least a lowerdir', options);
  }
  return takeOnce(options, optionNames);
}

/**
 * Throws a TypeError or RangeError that names the option, its value and what would be right. The options are
 * plain ones, from takeOptions.
 */
export function checkOptions(given: OverlayOptions): CheckedOptions {
  const draft: Draft = {
    lowerdir: none,
    datadir: none,
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
    stack: false,
    namespace: undefined,
    exclusive: true,
    allowDegraded: none,
    signal: undefined,
    isPlain: true,
  };
  for (const name of Object.keys(given)) {
    // The paths by themselves: a look-up by name costs more than their checks.
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

/** What one option asks of the others. What was given is shown, and not gone by: it inherits from Object.prototype. */
function checkTogether(draft: Draft, { lowerdir, target, upperdir, workdir }: OverlayOptions): void {
  if (draft.lowerdir.length === 0) {
    throw invalidArgumentType('lowerdir', 'one path or a list of paths, the topmost layer first', lowerdir);
  }
  if (draft.rootless !== false && draft.idmap !== undefined) {
    throw conflictingOptions(
      '"idmap" cannot go with "rootless": the file system of a layer belongs to the initial user namespace, and only with privilege there can its owners be mapped',
      'leave one of the two out',
    );
  }
  if (draft.rootless !== false && draft.target !== undefined) {
    throw conflictingOptions(
      `"target" cannot go with "rootless": without privilege a mount cannot be attached. Received the target ${showValue(target)}`,
      'leave `target` out and use the `path` of the mount; programs see it at a place of their own by `spawn`',
    );
  }
  if (draft.rootless === false && draft.subIds) {
    throw conflictingOptions(
      '"subIds" is of no use without "rootless": a mount with privilege knows all ids',
      'leave it out, or add `rootless`',
    );
  }
  if (draft.namespace !== undefined) {
    if (draft.target === undefined) {
      throw conflictingOptions(
        '"namespace" is of no use without a "target": a detached mount is in no namespace',
        'leave it out, or add `target`',
      );
    }
    draft.target = toTarget(draft.target, draft.namespace);
  }
  const layers = draft.lowerdir.length + draft.datadir.length;
  if (layers > MAX_LOWER_LAYERS) {
    throw outOfRange('datadir', `at most ${MAX_LOWER_LAYERS} layers with those of "lowerdir"`, `${layers} layers`);
  }
  if (draft.upperdir === undefined) {
    if (draft.workdir !== undefined) {
      throw conflictingOptions(
        `"workdir" is of no use without an "upperdir", and the kernel would ignore it. Received the workdir ${showValue(workdir)}`,
        'leave it out, or add `upperdir`',
      );
    }
    if (layers < 2) {
      throw conflictingOptions(
        `One "lowerdir" alone is no overlay: without an "upperdir" there must be at least 2. Received ${showValue(lowerdir)}`,
        'add `upperdir` and `workdir`, or a second `lowerdir`; for a plain view of one directory, a bind mount will do',
      );
    }
  } else if (draft.workdir === undefined) {
    if (!draft.create) {
      throw conflictingOptions(
        `"upperdir" needs a "workdir": an empty directory on the same file system. Received only the upperdir ${showValue(upperdir)}`,
        'add one, or pass `create: true` to have <upperdir>.work made',
      );
    }
    draft.workdir = defaultWorkdir(draft.upperdir);
  }
}
