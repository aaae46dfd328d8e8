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

/** The options that are overlayfs' own, in the order in which they are sent. */
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

const kernelOptionEntries: readonly (readonly [name: string, option: KernelOption])[] = Object.entries(kernelOptions);

/** The booleans that are attributes of the mount, not of the overlay. */
export const mountBooleans = ['readonly', 'nosuid', 'nodev', 'noexec', 'nosymfollow', 'nodiratime'] as const;
const atimeWords = ['relatime', 'noatime', 'strictatime'] as const;
const howBooleans = ['create', 'stack'] as const;

const names: ReadonlySet<string> = new Set([
  'lowerdir',
  'upperdir',
  'workdir',
  'target',
  ...Object.keys(kernelOptions),
  ...mountBooleans,
  'atime',
  'source',
  ...howBooleans,
  'signal',
]);

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
  readonly attributes: ReadonlySet<(typeof mountBooleans)[number]>;
  readonly atime: (typeof atimeWords)[number];
  readonly source: string;
  readonly create: boolean;
  readonly stack: boolean;
  readonly signal: AbortSignal | undefined;
}

const noAttributes: CheckedOptions['attributes'] = new Set();

function checkLowerdir(value: unknown): Path[] {
  if (value === undefined) {
    throw invalidArgumentType('lowerdir', 'one path or a list of paths, the topmost layer first', value);
  }
  if (!Array.isArray(value)) return [toPath(value, 'lowerdir')];
  if (value.length === 0 || value.length > MAX_LOWER_LAYERS) {
    throw outOfRange('lowerdir', `a list of 1 to ${MAX_LOWER_LAYERS} paths`, `${value.length} paths`);
  }
  return value.map((path, i) => toPath(path, `lowerdir[${i}]`));
}

function checkSource(value: unknown): string {
  if (value === undefined) return 'overlay';
  if (typeof value !== 'string') throw invalidArgumentType('source', 'a string', value);
  if (value === '' || value.includes('\0') || Buffer.byteLength(value) > MAX_STRING_BYTES) {
    throw invalidArgumentValue('source', value, `must be 1 to ${MAX_STRING_BYTES} bytes without NUL`);
  }
  return value;
}

function checkKernelOptions(options: Readonly<Record<string, unknown>>): CheckedOptions['overlay'] {
  const checked: (readonly [string, string | null])[] = [];
  for (const [name, option] of kernelOptionEntries) {
    const value = options[name];
    if (value === undefined) continue;
    if (option.form === 'word') {
      checked.push([option.kernel, checkWord(value, name, option.words) as string]);
    } else if (option.form === 'switch') {
      checked.push([option.kernel, checkBoolean(value, name) ? 'on' : 'off']);
    } else if (checkBoolean(value, name)) {
      checked.push([option.kernel, null]);
    }
  }
  return checked;
}

function checkAttributes(options: Readonly<Record<string, unknown>>): CheckedOptions['attributes'] {
  let attributes: Set<(typeof mountBooleans)[number]> | undefined;
  for (const name of mountBooleans) {
    if (!checkBoolean(options[name], name)) continue;
    attributes ??= new Set();
    attributes.add(name);
  }
  return attributes ?? noAttributes;
}

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
  checkNames(options, names);
  const lowerdir = checkLowerdir(options.lowerdir);
  if (options.target === undefined) {
    throw invalidArgumentType('target', 'the directory to mount on', options.target);
  }
  const target = toPath(options.target, 'target');
  const upperdir = options.upperdir === undefined ? undefined : toPath(options.upperdir, 'upperdir');
  let workdir = options.workdir === undefined ? undefined : toPath(options.workdir, 'workdir');
  const create = checkBoolean(options.create, 'create') ?? false;

  if (upperdir !== undefined && workdir === undefined) {
    if (!create) {
      throw conflictingOptions(
        `"upperdir" needs a "workdir": an empty directory on the same file system. Received no workdir with the upperdir '${options.upperdir}'`,
        'add one, or pass `create: true` to have <upperdir>.work made',
      );
    }
    workdir = defaultWorkdir(upperdir);
  }
  if (workdir !== undefined && upperdir === undefined) {
    throw conflictingOptions(
      `"workdir" is of no use without an "upperdir", and the kernel would ignore it. Received the workdir '${options.workdir}'`,
      'leave it out, or add the upperdir',
    );
  }
  if (upperdir === undefined && lowerdir.length < 2) {
    throw conflictingOptions(
      'One "lowerdir" alone is no overlay: without an "upperdir" there must be at least 2 of them',
      'add an upperdir and a workdir, or a second lowerdir; for a plain view of one directory, a bind mount will do',
    );
  }
  const record = options as unknown as Readonly<Record<string, unknown>>;
  return {
    lowerdir,
    upperdir,
    workdir,
    target,
    overlay: checkKernelOptions(record),
    userxattr: options.userxattr,
    attributes: checkAttributes(record),
    atime: checkWord(options.atime, 'atime', atimeWords) ?? 'relatime',
    source: checkSource(options.source),
    create,
    stack: checkBoolean(options.stack, 'stack') ?? false,
    signal: checkSignal(options.signal),
  };
}
