/** The options of an overlay mount: their types, their checks, and what the kernel calls them. Pure. */
import { checkBoolean, checkNames, checkSignal, checkWord } from '../arguments.js';
import { conflictingOptions, invalidArgumentType, invalidArgumentValue, outOfRange } from '../errors.js';
import { joinPath, type Path, type PathLike, splitPath, toPath } from '../paths.js';

/** The kernel takes no more lower layers (OVL_MAX_STACK). */
export const MAX_LOWER_LAYERS = 500;
/** Longer values do not pass fsconfig(2). */
const MAX_STRING_BYTES = 255;

export interface OverlayOptions {
  /** The lower layers, the topmost first: 1 to 500 directories; at least 2 without an upperdir. */
  lowerdir: PathLike | readonly PathLike[];
  /** The layer that takes the changes. Left out: a read-only view of the lower layers. */
  upperdir?: PathLike;
  /**
   * An empty directory for the kernel's own use, on the same mount as the upperdir and not inside it. With
   * `create` and an upperdir, it defaults to `<upperdir>.work`.
   */
  workdir?: PathLike;
  /** The directory where the merged tree appears. */
  target: PathLike;

  /** Metadata changes copy up no data (Linux 4.19). Default: the kernel's. */
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
  /** Nothing is synced, and after a crash the upper is lost (5.10). Default false. */
  volatile?: boolean;
  /**
   * Marks are kept in `user.overlay.*` instead of `trusted.overlay.*` (5.11). Default: on where the process
   * is in a user namespace, which may not write the latter, and there is an upperdir; else off.
   */
  userxattr?: boolean;
  /** Permissions are checked by mode alone, not by the layers' file systems. Default false. */
  defaultPermissions?: boolean;

  /** The mount is read-only; the superblock below it is not. Default false. */
  readonly?: boolean;
  /** Set-user-ID bits are ignored. Default false. */
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
  atime?: 'relatime' | 'noatime' | 'strictatime';
  /** What the mount table shows as the source. Default `'overlay'`. */
  source?: string;

  /**
   * Makes what is missing of upperdir, workdir and target, with parents, mode 0755 less the umask; removed
   * again on failure. Default false.
   */
  create?: boolean;
  /** Mounts over what is mounted at the target already, which is refused otherwise. Default false. */
  stack?: boolean;
  /** Gives the mount up: what has not begun never does, what has is undone. */
  signal?: AbortSignal;
}

type KernelOption =
  /** true: the bare word; false: nothing */
  | { readonly kernel: string; readonly form: 'flag' }
  /** true: `=on`; false: `=off` */
  | { readonly kernel: string; readonly form: 'switch' }
  | { readonly kernel: string; readonly form: 'word'; readonly words: readonly string[] };

/** The options that are overlayfs' own, and what the kernel calls them. */
export const kernelOptions = {
  redirectDir: { kernel: 'redirect_dir', form: 'word', words: ['on', 'off', 'follow', 'nofollow'] },
  index: { kernel: 'index', form: 'switch' },
  nfsExport: { kernel: 'nfs_export', form: 'switch' },
  metacopy: { kernel: 'metacopy', form: 'switch' },
  uuid: { kernel: 'uuid', form: 'word', words: ['on', 'off', 'null', 'auto'] },
  xino: { kernel: 'xino', form: 'word', words: ['on', 'off', 'auto'] },
  volatile: { kernel: 'volatile', form: 'flag' },
  userxattr: { kernel: 'userxattr', form: 'flag' },
  defaultPermissions: { kernel: 'default_permissions', form: 'flag' },
} as const satisfies Readonly<Record<string, KernelOption>>;

/** The booleans that are attributes of the mount, not of the overlay. */
export const mountBooleans = ['readonly', 'nosuid', 'nodev', 'noexec', 'nosymfollow', 'nodiratime'] as const;
export type MountBoolean = (typeof mountBooleans)[number];
const atimeWords = ['relatime', 'noatime', 'strictatime'] as const;

/** Options that have passed the checks. */
export interface CheckedOptions {
  readonly lowerdir: readonly Path[];
  readonly upperdir: Path | undefined;
  readonly workdir: Path | undefined;
  readonly target: Path;
  /** As the kernel wants them: its name, and a value where it takes one. */
  readonly overlay: readonly (readonly [name: string, value: string | null])[];
  /** Undefined where the caller leaves it to the library. */
  readonly userxattr: boolean | undefined;
  readonly attributes: readonly MountBoolean[];
  readonly atime: (typeof atimeWords)[number];
  readonly source: string;
  readonly create: boolean;
  readonly stack: boolean;
  readonly signal: AbortSignal | undefined;
}

type Draft = { -readonly [Name in keyof CheckedOptions]: CheckedOptions[Name] };

const none: readonly never[] = [];

function checkLowerdir(value: unknown): Path[] {
  if (!Array.isArray(value)) return [toPath(value, 'lowerdir')];
  if (value.length === 0 || value.length > MAX_LOWER_LAYERS) {
    throw outOfRange('lowerdir', `a list of 1 to ${MAX_LOWER_LAYERS} paths`, `${value.length} paths`);
  }
  return value.map((path, i) => toPath(path, `lowerdir[${i}]`));
}

function checkSource(value: unknown): string {
  if (typeof value !== 'string') throw invalidArgumentType('source', 'a string', value);
  if (value === '' || value.includes('\0') || Buffer.byteLength(value) > MAX_STRING_BYTES) {
    throw invalidArgumentValue('source', value, `must be 1 to ${MAX_STRING_BYTES} bytes without NUL`);
  }
  return value;
}

/** What to do with the value of an option, by name. Only what the caller names is looked at. */
type Check = (draft: Draft, value: unknown, name: string) => void;

function kernelCheck({ kernel, ...option }: KernelOption): Check {
  return (draft, value, name) => {
    let sent: string | null;
    if (option.form === 'word') {
      sent = checkWord(value, name, option.words) as string;
    } else if (option.form === 'switch') {
      sent = checkBoolean(value, name) ? 'on' : 'off';
    } else {
      const isSet = checkBoolean(value, name);
      if (name === 'userxattr') draft.userxattr = isSet;
      if (!isSet) return;
      sent = null;
    }
    draft.overlay = [...draft.overlay, [kernel, sent]];
  };
}

const attributeCheck: Check = (draft, value, name) => {
  if (checkBoolean(value, name)) draft.attributes = [...draft.attributes, name as MountBoolean];
};

/** The options that are not in all mounts' calls. */
const otherChecks: ReadonlyMap<string, Check> = new Map<string, Check>([
  ...Object.entries(kernelOptions).map(([name, option]): [string, Check] => [name, kernelCheck(option)]),
  ...mountBooleans.map((name): [string, Check] => [name, attributeCheck]),
  ['atime', (draft, value, name) => (draft.atime = checkWord(value, name, atimeWords) ?? 'relatime')],
  ['source', (draft, value) => (draft.source = checkSource(value))],
  ['create', (draft, value, name) => (draft.create = checkBoolean(value, name) ?? false)],
  ['stack', (draft, value, name) => (draft.stack = checkBoolean(value, name) ?? false)],
  ['signal', (draft, value, name) => (draft.signal = checkSignal(value, name))],
]);

/** The names of all options. */
export const optionNames: ReadonlySet<string> = new Set([
  'lowerdir',
  'upperdir',
  'workdir',
  'target',
  ...otherChecks.keys(),
]);

/** `<upperdir>.work`, beside the upper. */
function defaultWorkdir(upperdir: Path): Path {
  const [parent, name] = splitPath(upperdir);
  const work = typeof name === 'string' ? `${name}.work` : Buffer.concat([name, Buffer.from('.work')]);
  return parent === '.' ? work : joinPath(parent, work);
}

/** Throws a TypeError or RangeError that names the option, its value and what would be right. */
export function checkOptions(options: OverlayOptions): CheckedOptions {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalidArgumentType('options', 'an object with at least lowerdir and target', options);
  }
  const draft: Draft = {
    lowerdir: none,
    upperdir: undefined,
    workdir: undefined,
    target: '',
    overlay: none,
    userxattr: undefined,
    attributes: none,
    atime: 'relatime',
    source: 'overlay',
    create: false,
    stack: false,
    signal: undefined,
  };
  for (const name in options) {
    // The paths by themselves: a look-up by name costs more than their checks.
    switch (name) {
      case 'lowerdir':
        if (options.lowerdir !== undefined) draft.lowerdir = checkLowerdir(options.lowerdir);
        break;
      case 'upperdir':
        if (options.upperdir !== undefined) draft.upperdir = toPath(options.upperdir, name);
        break;
      case 'workdir':
        if (options.workdir !== undefined) draft.workdir = toPath(options.workdir, name);
        break;
      case 'target':
        if (options.target !== undefined) draft.target = toPath(options.target, name);
        break;
      default:
        checkOther(draft, options, name);
    }
  }
  checkTogether(draft, options);
  return draft;
}

function checkOther(draft: Draft, options: OverlayOptions, name: string): void {
  const value = options[name as keyof OverlayOptions];
  const check = otherChecks.get(name);
  if (check === undefined) checkNames(options, optionNames);
  else if (value !== undefined) check(draft, value, name);
}

/** What one option asks of the others. */
function checkTogether(draft: Draft, { lowerdir, target, upperdir, workdir }: OverlayOptions): void {
  if (lowerdir === undefined) {
    throw invalidArgumentType('lowerdir', 'one path or a list of paths, the topmost layer first', lowerdir);
  }
  if (target === undefined) throw invalidArgumentType('target', 'the directory to mount on', target);
  if (draft.upperdir === undefined) {
    if (draft.workdir !== undefined) {
      throw conflictingOptions(
        `"workdir" is of no use without an "upperdir", and the kernel would ignore it. Received the workdir '${workdir}'`,
        'leave it out, or add the upperdir',
      );
    }
    if (draft.lowerdir.length < 2) {
      throw conflictingOptions(
        `One "lowerdir" alone is no overlay: without an "upperdir" there must be at least 2. Received '${lowerdir}'`,
        'add an upperdir and a workdir, or a second lowerdir; for a plain view of one directory, a bind mount will do',
      );
    }
  } else if (draft.workdir === undefined) {
    if (!draft.create) {
      throw conflictingOptions(
        `"upperdir" needs a "workdir": an empty directory on the same file system. Received only the upperdir '${upperdir}'`,
        'add one, or pass `create: true` to have <upperdir>.work made',
      );
    }
    draft.workdir = defaultWorkdir(draft.upperdir);
  }
}
