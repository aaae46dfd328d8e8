/** The record of what the kernel has and the process may do, from which a mount is planned. */

/** `'unknown'` if the process lacks the privilege to ask, or if the kernel tells only when it mounts. */
export type FeatureState = boolean | 'unknown';

/** The options and values of overlayfs in which kernels differ, by the kernel's names. */
export const probedOptions = {
  redirect_dir: ['redirect_dir', 'nofollow'],
  index: ['index', 'off'],
  nfs_export: ['nfs_export', 'off'],
  metacopy: ['metacopy', 'off'],
  xino: ['xino', 'off'],
  uuid: ['uuid', 'off'],
  'uuid=null': ['uuid', 'null'],
  'uuid=auto': ['uuid', 'auto'],
  verity: ['verity', 'off'],
  volatile: ['volatile', null],
  fsync: ['fsync', 'auto'],
  userxattr: ['userxattr', null],
  override_creds: ['override_creds', null],
  default_permissions: ['default_permissions', null],
  'datadir+': ['datadir+', '/'],
  context: ['context', 'system_u:object_r:tmp_t:s0'],
} as const satisfies Readonly<Record<string, readonly [key: string, value: string | null]>>;

export type ProbedOption = keyof typeof probedOptions;

/** The kernel's features and the process's permissions. */
export interface KernelFeatures {
  /** The kernel's release, for messages only: the library decides nothing by it. */
  readonly release: string;
  /** The size of a page. mount(2) takes options of one byte less. */
  readonly pageSize: number;
  /** True if the process is in another user namespace than the initial one, without access to `trusted.*`. */
  readonly userNamespace: boolean;
  /** True if the process may mount an overlay: fsopen(2), which needs CAP_SYS_ADMIN. */
  readonly mayMount: FeatureState;
  /** True if the kernel has the overlay file system, built in or as a module that it can load. */
  readonly overlay: FeatureState;
  /** fsopen(2), fsconfig(2), fsmount(2), move_mount(2) (5.2). */
  readonly mountApi: FeatureState;
  /** True if overlayfs itself reads its options from fsconfig(2) (6.5). */
  readonly fsContext: FeatureState;
  /** `lowerdir+`: layers set one by one, unescaped (6.7, and late 6.6). */
  readonly lowerdirAppend: FeatureState;
  /** Layers by file descriptor (6.13): O_PATH ones too (6.15, and late 6.13 and 6.14), or only readable ones. */
  readonly layerDescriptors: 'path' | 'readable' | false | 'unknown';
  /** For each option of overlayfs, true if the kernel knows it. */
  readonly options: Readonly<Record<ProbedOption, FeatureState>>;
  /** mount_setattr(2) (5.12). */
  readonly mountSetattr: FeatureState;
  /** MOVE_MOUNT_BENEATH (6.5). */
  readonly mountBeneath: FeatureState;
  /** statmount(2) and listmount(2) (6.8). */
  readonly statmount: FeatureState;
  /** open_tree_attr(2) (6.15). */
  readonly openTreeAttr: FeatureState;
  /** FAN_REPORT_MNT: fanotify(7) reports mounts (6.15). */
  readonly mountEvents: FeatureState;
  /** Mount ids that the kernel never reuses, statx(2) (6.8). */
  readonly uniqueMountId: FeatureState;
  /** The overlay module's parameters, which are the defaults of its options: /sys/module/overlay/parameters. */
  readonly defaults: Readonly<Partial<Record<DefaultName, boolean>>>;
}

/** The module's parameters that are defaults of options. */
export const defaultNames = [
  'redirect_dir',
  'redirect_always_follow',
  'index',
  'nfs_export',
  'xino_auto',
  'metacopy',
] as const;
export type DefaultName = (typeof defaultNames)[number];

/**
 * Returns true if verity and data-only layers need metacopy, as they do up to Linux 6.15. Only a mount shows that
 * directly. The library goes by override_creds, which came one release before.
 */
export function needsMetacopy({ options }: KernelFeatures): boolean {
  return options.override_creds === false;
}
