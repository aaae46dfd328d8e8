/**
 * The options of an overlay mount as one table: the caller's name, the kernel's name, the values, and the first kernel.
 * Checks and plans follow it, and docs/options.md is made from it.
 */

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
  | { readonly form: 'word'; readonly words: readonly string[]; readonly firstOf?: Readonly<Record<string, string>> }
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
  readonly default: string;
  readonly about: string;
};

export const optionTable = {
  lowerdir: {
    form: 'paths',
    kernel: 'lowerdir',
    first: '3.18; several: 4.0',
    default: 'required',
    about: 'the lower layers, the topmost first: 1 to 500 with the data-only ones, at least 2 without an upperdir',
  },
  datadir: {
    form: 'paths',
    kernel: 'datadir+',
    first: '6.5',
    default: 'none',
    about: 'data-only layers below all others: their files show only where a metacopy file redirects to them',
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
    default: 'with `create`: `<upperdir>.work`',
    about: "an empty directory for the kernel's own use, on the same mount as the upperdir and not inside it",
  },
  target: {
    form: 'path',
    default: 'none: a detached mount (5.2)',
    about: 'the directory where the merged tree appears',
  },

  redirectDir: {
    form: 'word',
    words: ['on', 'off', 'follow', 'nofollow'],
    firstOf: { follow: '4.15', nofollow: '4.15' },
    kernel: 'redirect_dir',
    first: '4.10',
    default: "the module's; with `metacopy`: on; with `userxattr`: nofollow",
    about: 'whether lower directories can be renamed, by a mark that says where they came from',
  },
  index: {
    form: 'switch',
    kernel: 'index',
    first: '4.13',
    default: "the module's; with `nfsExport`: on",
    about: 'hard links stay linked when copied up, and an upper in use is refused',
  },
  nfsExport: {
    form: 'switch',
    kernel: 'nfs_export',
    first: '4.16',
    default: "the module's",
    about: 'the mount can be exported by NFS',
  },
  metacopy: {
    form: 'switch',
    kernel: 'metacopy',
    first: '4.19',
    default: "the module's",
    about: 'a change of metadata copies no data up',
  },
  uuid: {
    form: 'word',
    words: ['on', 'off', 'null', 'auto'],
    firstOf: { null: '6.6', auto: '6.6' },
    kernel: 'uuid',
    first: '5.11',
    default: 'auto (before 6.6: on)',
    about: "where the file system's UUID comes from",
  },
  xino: {
    form: 'word',
    words: ['on', 'off', 'auto'],
    kernel: 'xino',
    first: '4.17',
    default: "the module's",
    about: 'inode numbers that are unique and stay, for layers on several file systems',
  },
  verity: {
    form: 'word',
    words: ['off', 'on', 'require'],
    kernel: 'verity',
    first: '6.6',
    default: 'off',
    about: 'whether the fs-verity digests of lower files are kept in metacopy files and checked',
  },
  volatile: {
    form: 'flag',
    kernel: 'volatile',
    first: '5.10',
    default: 'false',
    about: 'nothing is synced: after a crash the upper is lost, and after an unmount it is not mounted again as it is',
  },
  fsync: {
    form: 'word',
    words: ['auto', 'strict'],
    kernel: 'fsync',
    first: '7.0, and stable kernels from 6.12 on',
    default: 'auto',
    about: 'whether data is synced before metadata when files are copied up',
  },
  userxattr: {
    form: 'flag',
    kernel: 'userxattr',
    first: '5.11',
    default: 'true in a user namespace, else false',
    about: 'marks are kept in `user.overlay.*` instead of `trusted.overlay.*`',
  },
  overrideCreds: {
    form: 'flag',
    off: 'nooverride_creds',
    kernel: 'override_creds',
    first: '6.15',
    default: 'false',
    about: "the layers are reached with the credentials of the thread that sets this, not with the mounter's",
  },
  defaultPermissions: {
    form: 'flag',
    kernel: 'default_permissions',
    first: '4.0',
    default: 'false',
    about: "permissions are checked by mode alone, not by the layers' file systems",
  },
  context: {
    form: 'text',
    kernel: 'context',
    first: '3.18, with SELinux',
    default: 'none',
    about: 'the SELinux context of all that is in the mount',
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

  readonly: { form: 'attribute', default: 'false', about: 'the mount is read-only; the superblock below it is not' },
  readonlySuperblock: {
    form: 'boolean',
    default: 'false',
    about: 'the superblock is read-only, and with it every mount of it',
  },
  nosuid: { form: 'attribute', default: 'false', about: 'set-user-ID bits and file capabilities are ignored' },
  nodev: { form: 'attribute', default: 'false', about: 'device nodes cannot be opened' },
  noexec: { form: 'attribute', default: 'false', about: 'nothing can be executed' },
  nosymfollow: { form: 'attribute', first: '5.10', default: 'false', about: 'symbolic links are not followed' },
  nodiratime: { form: 'attribute', default: 'false', about: 'access times of directories are not updated' },
  atime: {
    form: 'word',
    words: ['relatime', 'noatime', 'strictatime'],
    default: 'relatime',
    about: 'when access times are updated',
  },
  propagation: {
    form: 'word',
    words: ['private', 'shared', 'slave', 'unbindable'],
    default: "the target's parent mount's",
    about: 'whether mounts inside it show in other namespaces, mount_namespaces(7)',
  },
  source: { form: 'text', default: '`overlay`', about: 'what the mount table shows as the source' },

  create: {
    form: 'boolean',
    default: 'false',
    about: 'makes what is missing of upperdir, workdir and target, mode 0755, with parents; removed again on failure',
  },
  stack: { form: 'boolean', default: 'false', about: 'allows a target that is a mount point already' },
  exclusive: {
    form: 'boolean',
    default: 'true',
    about:
      'refuses an upperdir or workdir that another overlay uses: one that this process has mounted, or that this mount namespace shows',
  },
  idmap: {
    form: 'object',
    first: '5.19',
    default: 'none',
    about:
      "the layers' files show with other owners: `[{ inside, outside, size }]` or the descriptor of a user namespace; `{ lowerdir, upperdir }` for one of the two",
  },
  rootless: {
    form: 'object',
    first: '5.11',
    default: 'false',
    about:
      'true: mounts without privilege and without a target; `keep`: the same, in namespaces that are kept for the next; `auto`: where the process may not mount',
  },
  subIds: {
    form: 'object',
    default: 'false',
    about:
      "with `rootless`: the user's subordinate ids are mapped too, by newuidmap(1) and newgidmap(1), which are run for it",
  },
  namespace: {
    form: 'namespace',
    first: '5.2',
    default: "the caller's",
    about: "the mount namespace in which the target is: the path of one or a descriptor; the layers are the caller's",
  },
  allowDegraded: {
    form: 'names',
    default: 'none',
    about: 'the options that may fall away, where the kernel or a layer lacks something, instead of an error',
  },
  signal: {
    form: 'object',
    default: 'none',
    about: 'an AbortSignal: what has not begun never does, what has is undone',
  },
} as const satisfies Readonly<Record<string, OptionRow>>;

export type OptionName = keyof typeof optionTable;

/** The rows, for a look-up by a name that may not be an option. */
export const optionRows: Readonly<Record<string, OptionRow | undefined>> = optionTable;

/** The options of overlayfs itself besides the layers. A kernel can lack any of them. */
export const overlayOptionNames = (Object.keys(optionTable) as OptionName[]).filter(
  (name) => 'kernel' in optionTable[name] && !['paths', 'path'].includes(optionTable[name].form),
);
