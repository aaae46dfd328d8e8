/**
 * The kernel's constants that plans carry, under the kernel's names. They are defined only here: the addon passes them
 * through as numbers. Source: include/uapi/linux/{fcntl,mount,stat,openat2,magic,xattr,fs}.h.
 */
import { constants } from 'node:fs';

export const AT_FDCWD = -100;
export const AT_SYMLINK_NOFOLLOW = 0x100;
/** setxattr(2) */
export const XATTR_REPLACE = 2;
/** name_to_handle_at(2) */
export const AT_SYMLINK_FOLLOW = 0x400;
export const AT_REMOVEDIR = 0x200;
/** renameat2(2) */
export const RENAME_NOREPLACE = 1;
/** faccessat2(2); the same bit as AT_REMOVEDIR. */
export const AT_EACCESS = 0x200;
export const AT_EMPTY_PATH = 0x1000;
/** Makes the kernel answer from cached attributes, so that it does not contact a server that may not respond. */
export const AT_STATX_DONT_SYNC = 0x4000;

// O_DIRECTORY and O_NOFOLLOW differ between architectures. Node takes them from the headers of libc.
export const O_DIRECTORY: number = constants.O_DIRECTORY;
export const O_NOFOLLOW: number = constants.O_NOFOLLOW;
export const O_WRONLY = 1;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;
export const O_PATH = 0o10000000;

/** quotactl(2): QCMD(Q_GETQUOTA, PRJQUOTA) */
export const Q_GETPRJQUOTA = (0x800007 << 8) | 2;

/** flock(2) */
export const LOCK_SH = 1;
export const LOCK_EX = 2;
export const LOCK_NB = 4;
export const LOCK_UN = 8;

export const S_ISVTX = 0o1000;
export const S_IFMT = 0o170000;
export const S_IFDIR = 0o040000;
export const S_IFIFO = 0o010000;
export const S_IFCHR = 0o020000;
export const S_IFBLK = 0o060000;
export const S_IFREG = 0o100000;
export const S_IFSOCK = 0o140000;
export const S_IFLNK = 0o120000;

// fsopen(2) and related calls, 5.2
export const FSOPEN_CLOEXEC = 1;
export const FSMOUNT_CLOEXEC = 1;
export const FSPICK_CLOEXEC = 1;
export const FSPICK_EMPTY_PATH = 8;
export const FSCONFIG_SET_FLAG = 0;
export const FSCONFIG_SET_STRING = 1;
export const FSCONFIG_SET_FD = 5;
export const FSCONFIG_CMD_CREATE = 6;
export const FSCONFIG_CMD_RECONFIGURE = 7;
export const MOVE_MOUNT_F_EMPTY_PATH = 0x04;
export const MOVE_MOUNT_T_EMPTY_PATH = 0x40;

export const MOUNT_ATTR_RDONLY = 0x1;
export const MOUNT_ATTR_NOSUID = 0x2;
export const MOUNT_ATTR_NODEV = 0x4;
export const MOUNT_ATTR_NOEXEC = 0x8;
export const MOUNT_ATTR_NOATIME = 0x10;
export const MOUNT_ATTR_STRICTATIME = 0x20;
export const MOUNT_ATTR_NODIRATIME = 0x80;
/** 5.12 */
export const MOUNT_ATTR_IDMAP = 0x100000;
/** 5.14 */
export const MOUNT_ATTR_NOSYMFOLLOW = 0x200000;

// openat2(2)
export const RESOLVE_NO_XDEV = 0x1;
export const RESOLVE_BENEATH = 0x8;
export const RESOLVE_NO_SYMLINKS = 0x04;
export const RESOLVE_IN_ROOT = 0x10;

// mount(2)
export const MS_RDONLY = 1;
export const MS_NOSUID = 2;
export const MS_NODEV = 4;
export const MS_NOEXEC = 8;
export const MS_SYNCHRONOUS = 16;
export const MS_REMOUNT = 32;
export const MS_MANDLOCK = 64;
export const MS_DIRSYNC = 128;
/** 5.10 */
export const MS_NOSYMFOLLOW = 256;
export const MS_NOATIME = 1024;
export const MS_NODIRATIME = 2048;
export const MS_BIND = 4096;
export const MS_SILENT = 32768;
export const MS_RELATIME = 1 << 21;
export const MS_I_VERSION = 1 << 23;
export const MS_STRICTATIME = 1 << 24;
export const MS_LAZYTIME = 1 << 25;

// umount2(2)
export const MNT_FORCE = 1;
export const MNT_DETACH = 2;
export const UMOUNT_NOFOLLOW = 8;

// statx(2)
export const STATX_TYPE = 0x1;
export const STATX_NLINK = 0x4;
export const STATX_INO = 0x100;
export const STATX_SIZE = 0x200;
/** 5.8 */
export const STATX_MNT_ID = 0x1000;
/** 6.8 */
export const STATX_MNT_ID_UNIQUE = 0x4000;
/** 5.8 */
export const STATX_ATTR_MOUNT_ROOT = 0x2000;
export const STATX_ATTR_IMMUTABLE = 0x10;
export const STATX_ATTR_APPEND = 0x20;

// statfs(2)
export const ST_RDONLY = 1;
export const OVERLAYFS_SUPER_MAGIC = 0x794c7630;

// access(2)
export const W_OK = 2;
export const X_OK = 1;

/** 6.5 */
export const MOVE_MOUNT_BENEATH = 0x200;
// fanotify(7)
export const FAN_CLOEXEC = 0x1;
export const FAN_NONBLOCK = 0x2;
/** 6.15, like the next three */
export const FAN_REPORT_MNT = 0x4000;
export const FAN_MARK_MNTNS = 0x110;
export const FAN_MNT_ATTACH = 0x01000000;
export const FAN_MNT_DETACH = 0x02000000;
export const FAN_MARK_ADD = 0x1;
export const FAN_Q_OVERFLOW = 0x4000;

// poll(2)
export const POLLIN = 0x1;
export const POLLPRI = 0x2;

// statmount(2): 6.8, unless a comment names a later kernel
export const STATMOUNT_SB_BASIC = 0x1;
export const STATMOUNT_MNT_BASIC = 0x2;
export const STATMOUNT_PROPAGATE_FROM = 0x4;
export const STATMOUNT_MNT_ROOT = 0x8;
export const STATMOUNT_MNT_POINT = 0x10;
export const STATMOUNT_FS_TYPE = 0x20;
/** 6.11 */
export const STATMOUNT_MNT_OPTS = 0x80;
/** 6.13 */
export const STATMOUNT_FS_SUBTYPE = 0x100;
/** 6.13 */
export const STATMOUNT_SB_SOURCE = 0x200;

// A superblock's flags, the same as those of mount(2)
export const SB_RDONLY = 1;
export const SB_SYNCHRONOUS = 16;
export const SB_DIRSYNC = 128;
export const SB_LAZYTIME = 1 << 25;

// open_tree(2), 5.2
export const OPEN_TREE_CLONE = 1;
export const OPEN_TREE_CLOEXEC: number = O_CLOEXEC;
export const AT_RECURSIVE = 0x8000;

// mount(2), propagation
export const MS_REC = 1 << 14;
export const MS_UNBINDABLE = 1 << 17;
export const MS_PRIVATE = 1 << 18;
export const MS_SLAVE = 1 << 19;
export const MS_SHARED = 1 << 20;

// unshare(2), setns(2)
export const CLONE_FS = 0x200;
export const CLONE_NEWNS = 0x20000;
export const CLONE_NEWUTS = 0x4000000;
export const CLONE_NEWIPC = 0x8000000;
export const CLONE_NEWUSER = 0x10000000;
export const CLONE_NEWPID = 0x20000000;
export const CLONE_NEWNET = 0x40000000;

// ioctl_iflags(2): no copy on write
export const FS_NOCOW_FL = 0x800000;

// statfs(2): file systems that matter when they hold a layer
export const EXT4_SUPER_MAGIC = 0xef53;
export const TMPFS_MAGIC = 0x01021994;
export const BTRFS_SUPER_MAGIC = 0x9123683e;
export const PROC_SUPER_MAGIC = 0x9fa0;
export const HUGETLBFS_MAGIC = 0x958458f6;
export const DEBUGFS_MAGIC = 0x64626720;
export const TRACEFS_MAGIC = 0x74726163;
export const BPF_FS_MAGIC = 0xcafe4a11;
export const BINFMTFS_MAGIC = 0x42494e4d;
export const AUTOFS_SUPER_MAGIC = 0x187;
export const MSDOS_SUPER_MAGIC = 0x4d44;
export const EXFAT_SUPER_MAGIC = 0x2011bab0;
export const NTFS3_SUPER_MAGIC = 0x7366746e;
export const NFS_SUPER_MAGIC = 0x6969;
export const CIFS_SUPER_MAGIC = 0xff534d42;
export const SMB2_SUPER_MAGIC = 0xfe534d42;
export const V9FS_MAGIC = 0x01021997;
export const CEPH_SUPER_MAGIC = 0x00c36400;
export const AFS_SUPER_MAGIC = 0x5346414f;
export const FUSE_SUPER_MAGIC = 0x65735546;
