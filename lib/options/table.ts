/**
 * The options of an overlay mount as one table: the caller's name, the kernel's name, the values, and the first kernel.
 * Checks and plans follow it, and docs/options.md is made from it.
 */
import { option, type Text, text } from '../text.js';

/** The form in which the caller gives an option, and in which the plan sends it if the kernel takes it as text. */
export type OptionForm =
  /** One path or a list of paths. */
  | { readonly form: 'paths' }
  | { readonly form: 'namespace' }
  | { readonly form: 'path' }
  /** Sent as the bare word for true; as nothing, or as a word of its own, for false. */
  | { readonly form: 'flag'; readonly off?: string }
  /** Sent as `=on` for true, as `=off` for false. */
  | { readonly form: 'switch' }
  | {
      readonly form: 'word';
      readonly words: readonly string[];
      /** The first kernel that has a value, if the option came before. */
      readonly firstOf?: Readonly<Record<string, string>>;
      /** The value that asks for no more than a kernel without the option does. For a switch it is `off`. */
      readonly neutral?: string;
    }
  | { readonly form: 'text' }
  /** An attribute of the mount. The plan sets it by flags. */
  | { readonly form: 'attribute' }
  /** An option of the library, not of the kernel. */
  | { readonly form: 'boolean' }
  | { readonly form: 'names' }
  /** A value that text cannot express. */
  | { readonly form: 'object' };

export type OptionRow = OptionForm & {
  /** The kernel's name, if the kernel takes the option as text. */
  readonly kernel?: string;
  /** The first mainline kernel that has it. */
  readonly first?: string;
  /** The values that the kernel can drop without an error. The library reads them back from the mount table. */
  readonly droppable?: readonly string[];
  readonly default: Text;
  readonly about: Text;
};

export const optionTable = {
  lowerdir: {
    form: 'paths',
    kernel: 'lowerdir',
    first: '3.18; several: 4.0',
    default: 'required',
    about: 'the lower layers, topmost first: 1 to 500 including data-only layers',
  },
  datadir: {
    form: 'paths',
    kernel: 'datadir+',
    first: '6.5',
    default: 'none',
    about: 'data-only layers below all others: their files appear only where a metacopy file redirects to them',
  },
  upperdir: {
    form: 'path',
    kernel: 'upperdir',
    first: '3.18',
    default: 'none: a read-only view',
    about: 'the layer that takes the changes',
  },
  workdir: {
    form: 'path',
    kernel: 'workdir',
    first: '3.18',
    default: text`with ${option('create')}: \`<upperdir>.work\``,
    about: 'an empty directory for the kernel, on the same mount as the upperdir and not inside it',
  },
  target: {
    form: 'path',
    default: 'none: a detached mount (5.2)',
    about: 'the directory where the merged tree appears',
  },

  redirectDir: {
    form: 'word',
    words: ['on', 'off', 'follow', 'nofollow'],
    neutral: 'off',
    firstOf: { follow: '4.15', nofollow: '4.15' },
    kernel: 'redirect_dir',
    first: '4.10',
    droppable: ['on', 'follow'],
    default: text`that of the module; with ${option('metacopy')}: on; with ${option('userxattr')}: nofollow`,
    about: 'whether lower directories can be renamed: a mark in the upper records where they came from',
  },
  index: {
    form: 'switch',
    kernel: 'index',
    first: '4.13',
    droppable: ['on'],
    default: text`that of the module; with ${option('nfsExport')}: on`,
    about: 'keeps hard links linked when they are copied up, and refuses an upperdir in use',
  },
  nfsExport: {
    form: 'switch',
    kernel: 'nfs_export',
    first: '4.16',
    droppable: ['on'],
    default: 'that of the module',
    about: 'allows the mount to be exported by NFS',
  },
  metacopy: {
    form: 'switch',
    kernel: 'metacopy',
    first: '4.19',
    droppable: ['on'],
    default: 'that of the module',
    about: 'copies only metadata up when only metadata changes',
  },
  uuid: {
    form: 'word',
    words: ['on', 'off', 'null', 'auto'],
    firstOf: { null: '6.6', auto: '6.6' },
    kernel: 'uuid',
    first: '5.11',
    droppable: ['on', 'off'],
    default: 'auto (before 6.6: on)',
    about: 'the source of the UUID of the file system',
  },
  xino: {
    form: 'word',
    words: ['on', 'off', 'auto'],
    neutral: 'off',
    kernel: 'xino',
    first: '4.17',
    droppable: ['on'],
    default: 'that of the module',
    about: 'gives unique and persistent inode numbers when the layers are on several file systems',
  },
  verity: {
    form: 'word',
    words: ['off', 'on', 'require'],
    neutral: 'off',
    kernel: 'verity',
    first: '6.6',
    droppable: ['on', 'require'],
    default: 'off',
    about: 'whether metacopy files keep the fs-verity digests of lower files, which the kernel then checks',
  },
  volatile: {
    form: 'flag',
    kernel: 'volatile',
    first: '5.10',
    default: 'false',
    about:
      'syncs nothing: after a crash the upperdir is lost, and it cannot be mounted again unless the mark in the workdir is removed',
  },
  fsync: {
    form: 'word',
    words: ['auto', 'strict'],
    kernel: 'fsync',
    first: '7.0, and stable kernels from 6.12 on',
    default: 'auto',
    about: 'whether the kernel syncs data before metadata when it copies files up',
  },
  userxattr: {
    form: 'flag',
    kernel: 'userxattr',
    first: '5.11',
    default: 'true in a user namespace, else false',
    about: 'keeps marks in `user.overlay.*` attributes instead of `trusted.overlay.*`',
  },
  overrideCreds: {
    form: 'flag',
    off: 'nooverride_creds',
    kernel: 'override_creds',
    first: '6.15',
    default: 'false',
    about: 'accesses the layers with the credentials of the thread that sets the option, not with those of the mounter',
  },
  defaultPermissions: {
    form: 'flag',
    kernel: 'default_permissions',
    first: '4.0',
    default: 'false',
    about: 'checks permissions by mode only, not by the file systems of the layers',
  },
  context: {
    form: 'text',
    kernel: 'context',
    first: '3.18, with SELinux',
    default: 'none',
    about: 'the SELinux context of all files in the mount',
  },
  fscontext: {
    form: 'text',
    kernel: 'fscontext',
    first: '3.18, with SELinux',
    default: 'none',
    about: 'the SELinux context of the file system itself',
  },
  defcontext: {
    form: 'text',
    kernel: 'defcontext',
    first: '3.18, with SELinux',
    default: 'none',
    about: 'the SELinux context of files without one',
  },
  rootcontext: {
    form: 'text',
    kernel: 'rootcontext',
    first: '3.18, with SELinux',
    default: 'none',
    about: 'the SELinux context of the root directory',
  },

  readonly: { form: 'attribute', default: 'false', about: 'makes the mount read-only, but not its superblock' },
  readonlySuperblock: {
    form: 'boolean',
    default: 'false',
    about: 'makes the superblock read-only, and with it every mount of it',
  },
  nosuid: { form: 'attribute', default: 'false', about: 'ignores set-user-ID bits and file capabilities' },
  nodev: { form: 'attribute', default: 'false', about: 'refuses to open device nodes' },
  noexec: {
    form: 'attribute',
    default: 'false',
    about: 'refuses to execute files; noexec of a layer does not apply to the overlay',
  },
  nosymfollow: { form: 'attribute', first: '5.10', default: 'false', about: 'does not follow symbolic links' },
  nodiratime: { form: 'attribute', default: 'false', about: 'does not update access times of directories' },
  atime: {
    form: 'word',
    words: ['relatime', 'noatime', 'strictatime'],
    default: 'relatime',
    about: 'when the kernel updates access times',
  },
  propagation: {
    form: 'word',
    words: ['private', 'shared', 'slave', 'unbindable'],
    default: 'that of the parent mount of the target',
    about: 'whether mounts inside it appear in other namespaces, mount_namespaces(7)',
  },
  source: { form: 'text', default: '`overlay`', about: 'the source that the mount table shows' },

  create: {
    form: 'boolean',
    default: 'false',
    about:
      'creates missing directories for upperdir, workdir and target, with parents; the upperdir gets the attributes of the topmost lower layer; removes them again on failure',
  },
  temporary: {
    form: 'object',
    first: '5.2; in a user namespace: 6.6',
    default: 'false',
    about:
      "true, or `{ size, inodes }`: an upperdir and a workdir in memory, in a tmpfs of the mount's own with this hard limit; all changes end with the mount",
  },
  stack: { form: 'boolean', default: 'false', about: 'allows a target that is already a mount point' },
  exclusive: {
    form: 'boolean',
    default: 'true',
    about:
      'refuses an upperdir or workdir that another overlay uses, if this process has mounted that overlay or this mount namespace shows it',
  },
  idmap: {
    form: 'object',
    first: '5.19',
    default: 'none',
    about:
      'shows the files of the layers with other owners: `[{ container, host, size }]` or the descriptor of a user namespace; `{ lowerdir, upperdir }` for one of the two',
  },
  rootless: {
    form: 'object',
    first: '5.11',
    default: 'false',
    about:
      'true: mounts without privilege and without a target; `keep`: the same, and keeps the namespaces for the next mount; `auto`: only if the process may not mount',
  },
  subIds: {
    form: 'object',
    default: 'false',
    about: text`with ${option('rootless')}: maps the subordinate ids of the user too, by newuidmap(1) and newgidmap(1)`,
  },
  namespace: {
    form: 'namespace',
    first: '5.2',
    default: 'that of the caller',
    about: 'the mount namespace of the target, by path or descriptor; the layers are those of the caller',
  },
  allowDegraded: {
    form: 'names',
    default: 'none',
    about: 'options that the mount may lack, instead of an error, if the kernel or a layer does not support them',
  },
  signal: {
    form: 'object',
    default: 'none',
    about: 'an AbortSignal: a mount that has not begun does not begin, and one that has begun is undone',
  },
} as const satisfies Readonly<Record<string, OptionRow>>;

export type OptionName = keyof typeof optionTable;

/** The names of the options of overlayfs itself besides the layers. */
type OwnName = {
  [N in OptionName]: (typeof optionTable)[N] extends { readonly kernel: string }
    ? (typeof optionTable)[N]['form'] extends 'path' | 'paths'
      ? never
      : N
    : never;
}[OptionName];

/** The rows, for a look-up by a name that may not be an option. */
export const optionRows: Readonly<Record<string, OptionRow | undefined>> = optionTable;

/** The options of overlayfs itself besides the layers. A kernel can lack any of them. */
export const overlayOptionNames = (Object.keys(optionTable) as OptionName[]).filter(
  (name): name is OwnName => 'kernel' in optionTable[name] && !['paths', 'path'].includes(optionTable[name].form),
);

/** Returns the first kernel that has an option, or a value of it. */
export const firstKernel = (row: OptionRow, value: string | null | undefined): string =>
  (row.form === 'word' && row.firstOf?.[value ?? '']) || (row.first ?? '?');
