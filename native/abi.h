// The part of the kernel's interface that the addon and the launcher use: system call numbers, struct layouts, and the
// few constants by which they decide themselves. Distribution headers are older than the supported kernels (Debian 12's
// lack statmount, for one), so nothing here comes from them.
//
// Constants that a plan merely carries (MS_*, MOUNT_ATTR_*, FSCONFIG_* and so on) are not here: they are in
// lib/kernel/constants.ts and pass through as numbers.
#pragma once

#include <stdint.h>

namespace overlayfs::abi {

// Calls added since the unified table (Linux 5.1) have the same number on every architecture.
enum Number : long {
  pidfd_send_signal = 424,  // 5.1
  open_tree = 428,       // 5.2
  move_mount = 429,      // 5.2
  fsopen = 430,          // 5.2
  fsconfig = 431,        // 5.2
  fsmount = 432,         // 5.2
  fspick = 433,          // 5.2
  close_range = 436,     // 5.9
  openat2 = 437,         // 5.6
  quotactl_fd = 443,     // 5.14
  faccessat2 = 439,      // 5.8
  mount_setattr = 442,   // 5.12
  fchmodat2 = 452,       // 6.6
  statmount = 457,       // 6.8
  listmount = 458,       // 6.8
  getxattrat = 464,      // 6.13
  listxattrat = 465,     // 6.13
  open_tree_attr = 467,  // 6.15
#if defined(__x86_64__)
  read = 0,
  write = 1,
  close = 3,
  lseek = 8,
  mmap = 9,
  munmap = 11,
  mremap = 25,
  pread64 = 17,
  pwrite64 = 18,
  sendfile = 40,
  ftruncate = 77,
  fchown = 93,
  umask = 95,
  getegid = 108,
  geteuid = 107,
  lsetxattr = 189,
  llistxattr = 195,
  fsetxattr = 190,
  lremovexattr = 198,
  fremovexattr = 199,
  fchownat = 260,
  symlinkat = 266,
  utimensat = 280,
  sync = 162,
  syncfs = 306,
  copy_file_range = 326,  // 4.5
  fchmod = 91,
  fchmodat = 268,
  rt_sigprocmask = 14,
  rt_sigaction = 13,
  rt_sigqueueinfo = 129,
  signalfd4 = 289,
  clone = 56,
  wait4 = 61,
  kill = 62,
  setgroups = 116,
  setresuid = 117,
  setresgid = 119,
  keyctl = 250,
  memfd_create = 319,    // 3.17
  execveat = 322,        // 3.19
  waitid = 247,
  execve = 59,
  exit = 60,
  exit_group = 231,
  socket = 41,
  sendto = 44,
  fcntl = 72,
  getpid = 39,
  setpgid = 109,
  getppid = 110,
  getpgid = 121,
  prctl = 157,
  seccomp = 317,
  capget = 125,
  capset = 126,
  chroot = 161,
  ppoll = 271,
  dup3 = 292,
  pipe2 = 293,
  getdents64 = 217,
  statfs = 137,
  fstatfs = 138,
  mount = 165,
  umount2 = 166,
  pivot_root = 155,
  flock = 73,
  kcmp = 312,
  fsync = 74,
  sethostname = 170,
  chdir = 80,
  fchdir = 81,
  unshare = 272,
  setns = 308,           // 3.0
  eventfd2 = 290,
  epoll_create1 = 291,
  epoll_ctl = 233,
  epoll_pwait = 281,
  fanotify_init = 300,
  fanotify_mark = 301,
  inotify_init1 = 294,
  inotify_add_watch = 254,
  ustat = 136,
  ioctl = 16,
  setxattr = 188,
  getxattr = 191,
  lgetxattr = 192,
  fgetxattr = 193,
  flistxattr = 196,
  futex = 202,
  openat = 257,
  mkdirat = 258,
  mknodat = 259,
  unlinkat = 263,
  linkat = 265,
  readlinkat = 267,
  name_to_handle_at = 303,
  open_by_handle_at = 304,
  renameat2 = 316,       // 3.15
  statx = 332,           // 4.11
#elif defined(__aarch64__)
  inotify_init1 = 26,
  inotify_add_watch = 27,
  ustat = -1,            // the kernel has none there
  read = 63,
  sethostname = 161,
  write = 64,
  close = 57,
  lseek = 62,
  mmap = 222,
  munmap = 215,
  mremap = 216,
  pread64 = 67,
  pwrite64 = 68,
  sendfile = 71,
  ftruncate = 46,
  fchown = 55,
  umask = 166,
  getegid = 177,
  geteuid = 175,
  lsetxattr = 6,
  llistxattr = 12,
  fsetxattr = 7,
  lremovexattr = 15,
  fremovexattr = 16,
  fchownat = 54,
  symlinkat = 36,
  utimensat = 88,
  sync = 81,
  syncfs = 267,
  copy_file_range = 285,  // 4.5
  fchmod = 52,
  fchmodat = 53,
  rt_sigprocmask = 135,
  rt_sigaction = 134,
  rt_sigqueueinfo = 138,
  signalfd4 = 74,
  clone = 220,
  wait4 = 260,
  kill = 129,
  setgroups = 159,
  setresuid = 147,
  setresgid = 149,
  keyctl = 219,
  memfd_create = 279,    // 3.17
  execveat = 281,        // 3.19
  waitid = 95,
  execve = 221,
  exit = 93,
  exit_group = 94,
  socket = 198,
  sendto = 206,
  fcntl = 25,
  getpid = 172,
  setpgid = 154,
  getpgid = 155,
  getppid = 173,
  prctl = 167,
  seccomp = 277,
  capget = 90,
  capset = 91,
  chroot = 51,
  ppoll = 73,
  dup3 = 24,
  pipe2 = 59,
  getdents64 = 61,
  statfs = 43,
  fstatfs = 44,
  mount = 40,
  umount2 = 39,
  pivot_root = 41,
  flock = 32,
  kcmp = 272,
  fsync = 82,
  chdir = 49,
  fchdir = 50,
  unshare = 97,
  setns = 268,
  eventfd2 = 19,
  epoll_create1 = 20,
  epoll_ctl = 21,
  epoll_pwait = 22,
  fanotify_init = 262,
  fanotify_mark = 263,
  ioctl = 29,
  setxattr = 5,
  getxattr = 8,
  lgetxattr = 9,
  fgetxattr = 10,
  flistxattr = 13,
  futex = 98,
  openat = 56,
  mkdirat = 34,
  mknodat = 33,
  unlinkat = 35,
  linkat = 37,
  readlinkat = 78,
  name_to_handle_at = 264,
  open_by_handle_at = 265,
  renameat2 = 276,
  statx = 291,
#else
#error "overlayfs has no system call numbers for this architecture yet: add them to native/abi.h"
#endif
};

// ioctl(2), struct fsxattr of linux/fs.h
struct FsXattr {
  uint32_t flags;
  uint32_t extent_size;
  uint32_t extents;
  uint32_t project;
  uint32_t copy_extent_size;
  uint8_t padding[8];
};
constexpr unsigned fs_ioc_fsgetxattr = 0x801c581f;
constexpr unsigned fs_ioc_fssetxattr = 0x401c5820;
constexpr uint32_t fs_xflag_projinherit = 0x200;
constexpr unsigned long fs_ioc_setflags = 0x40086602;

// unix(7)
struct UnixAddress {
  uint16_t family;
  char path[108];
};
constexpr int af_unix = 1;
constexpr int sock_dgram_cloexec = 2 | 02000000;

// openat2(2)
struct OpenHow {
  uint64_t flags;
  uint64_t mode;
  uint64_t resolve;
};
constexpr uint64_t resolve_cached = 0x20;  // RESOLVE_CACHED, 5.12

// mount_setattr(2)
struct MountAttr {
  uint64_t attr_set;
  uint64_t attr_clr;
  uint64_t propagation;
  uint64_t userns_fd;
};

// statx(2); the fields behind stx_mnt_id are not read here.
struct StatxTimestamp {
  int64_t tv_sec;
  uint32_t tv_nsec;
  int32_t reserved;
};

struct Statx {
  uint32_t mask;
  uint32_t blksize;
  uint64_t attributes;
  uint32_t nlink;
  uint32_t uid;
  uint32_t gid;
  uint16_t mode;
  uint16_t spare0;
  uint64_t ino;
  uint64_t size;
  uint64_t blocks;
  uint64_t attributes_mask;
  StatxTimestamp atime, btime, ctime, mtime;
  uint32_t rdev_major;
  uint32_t rdev_minor;
  uint32_t dev_major;
  uint32_t dev_minor;
  uint64_t mnt_id;       // STATX_MNT_ID, 5.8; STATX_MNT_ID_UNIQUE, 6.8
  uint64_t spare[13];
};
static_assert(sizeof(Statx) == 256);

// statfs(2) on 64-bit architectures
struct Statfs {
  int64_t type;
  int64_t bsize;
  uint64_t blocks, bfree, bavail, files, ffree;
  int32_t fsid[2];
  int64_t namelen;
  int64_t frsize;
  int64_t flags;
  int64_t spare[4];
};
static_assert(sizeof(Statfs) == 120);

// listmount(2), statmount(2)
struct MountIdRequest {
  uint32_t size;  // up to the namespace if the request names none: all that 6.8 knows
  uint32_t spare;
  uint64_t mount_id;
  uint64_t parameter;
  uint64_t namespace_id;  // 6.11
};
static_assert(sizeof(MountIdRequest) == 32);
constexpr uint32_t mount_id_request_6_8 = 24;  // MNT_ID_REQ_SIZE_VER0

// statmount(2): the strings follow; the 32-bit fields that are named after them hold their offsets
struct Statmount {
  uint32_t size;
  uint32_t mnt_opts;
  uint64_t mask;
  uint32_t sb_dev_major;
  uint32_t sb_dev_minor;
  uint64_t sb_magic;
  uint32_t sb_flags;
  uint32_t fs_type;
  uint64_t mnt_id;
  uint64_t mnt_parent_id;
  uint32_t mnt_id_old;
  uint32_t mnt_parent_id_old;
  uint64_t mnt_attr;
  uint64_t mnt_propagation;
  uint64_t mnt_peer_group;
  uint64_t mnt_master;
  uint64_t propagate_from;
  uint32_t mnt_root;
  uint32_t mnt_point;
  uint64_t mnt_ns_id;
  uint32_t fs_subtype;  // 6.13
  uint32_t sb_source;   // 6.13
  uint64_t more[48];
};
static_assert(sizeof(Statmount) == 512);
constexpr uint32_t statmount_sb_basic = 0x1;
constexpr uint32_t statmount_root = 0x8;        // STATMOUNT_*
constexpr uint32_t statmount_point = 0x10;
constexpr uint32_t statmount_type = 0x20;
constexpr uint32_t statmount_options = 0x80;    // 6.11
constexpr uint32_t statmount_subtype = 0x100;   // 6.13
constexpr uint32_t statmount_source = 0x200;    // 6.13
constexpr uint64_t listmount_root = UINT64_MAX; // LSMT_ROOT

// ioctl_nsfs(2): returns the id of a mount namespace, 6.11
constexpr unsigned long ns_get_mntns_id = 0x8008b705;
// Returns a descriptor of the next or the previous mount namespace: NS_MNT_GET_NEXT, NS_MNT_GET_PREV, 6.12
constexpr unsigned long ns_mnt_get_next = 0x8010b70b;
constexpr unsigned long ns_mnt_get_previous = 0x8010b70c;
struct MountNamespaceInfo {
  uint32_t size;
  uint32_t mount_count;
  uint64_t id;
};

// epoll_ctl(2)
struct EpollEvent {
  uint32_t events;
  uint64_t data;
#if defined(__x86_64__)
} __attribute__((packed));
static_assert(sizeof(EpollEvent) == 12);
#else
};
static_assert(sizeof(EpollEvent) == 16);
#endif
constexpr int epoll_ctl_add = 1;
constexpr int epoll_ctl_del = 2;
constexpr uint32_t epoll_in = 0x1;
constexpr uint32_t epoll_oneshot = 1U << 30;
constexpr int epoll_cloexec = 02000000;  // O_CLOEXEC, the same on both architectures
constexpr int eventfd_cloexec = 02000000;

// name_to_handle_at(2), open_by_handle_at(2): followed by the handle's bytes
constexpr unsigned max_handle_size = 128;
struct FileHandle {
  uint32_t size;
  int32_t type;
  uint8_t bytes[max_handle_size];
};

// getdents64(2): followed by the name, NUL-terminated
struct Dirent {
  uint64_t ino;
  int64_t off;
  uint16_t reclen;
  uint8_t type;
  char name[1];
};

// Constants that libc's headers may lack.
constexpr int fsconfig_set_string = 1;    // FSCONFIG_SET_STRING
constexpr int fsconfig_cmd_create = 6;    // FSCONFIG_CMD_CREATE
constexpr int fsopen_cloexec = 1;         // FSOPEN_CLOEXEC
constexpr int fsmount_cloexec = 1;        // FSMOUNT_CLOEXEC
constexpr int open_tree_clone = 1;        // OPEN_TREE_CLONE
constexpr int at_recursive = 0x8000;      // AT_RECURSIVE
constexpr int move_mount_from_empty_path = 0x4;  // MOVE_MOUNT_F_EMPTY_PATH
constexpr int move_mount_to_symlinks = 0x10;     // MOVE_MOUNT_T_SYMLINKS
constexpr uint64_t mount_attr_rdonly = 0x1;      // MOUNT_ATTR_RDONLY
constexpr uint64_t mount_attr_nosuid = 0x2;      // MOUNT_ATTR_NOSUID
constexpr uint64_t mount_attr_nodev = 0x4;       // MOUNT_ATTR_NODEV
constexpr uint64_t mount_attr_noexec = 0x8;      // MOUNT_ATTR_NOEXEC
constexpr int mnt_detach = 2;             // MNT_DETACH, umount2(2)
constexpr int clone_pidfd = 0x1000;       // CLONE_PIDFD, clone(2), 5.2
constexpr int p_pidfd = 3;                // P_PIDFD, waitid(2), 5.4
constexpr unsigned rename_noreplace = 1;  // RENAME_NOREPLACE, renameat2(2)
constexpr unsigned rename_exchange = 2;   // RENAME_EXCHANGE
constexpr unsigned statx_type = 0x1;      // STATX_TYPE
constexpr unsigned statx_mode = 0x2;      // STATX_MODE
constexpr unsigned statx_nlink = 0x4;     // STATX_NLINK
constexpr unsigned statx_mtime = 0x40;    // STATX_MTIME
constexpr unsigned statx_gid = 0x10;      // STATX_GID
constexpr unsigned statx_ino = 0x100;     // STATX_INO
constexpr unsigned statx_btime = 0x800;   // STATX_BTIME
constexpr unsigned statx_size = 0x200;    // STATX_SIZE
constexpr unsigned statx_blocks = 0x400;  // STATX_BLOCKS
constexpr unsigned statx_mnt_id = 0x1000; // STATX_MNT_ID, 5.8
constexpr unsigned statx_mnt_id_unique = 0x4000;  // STATX_MNT_ID_UNIQUE, 6.8
constexpr uint64_t statx_attr_immutable = 0x10;     // STATX_ATTR_IMMUTABLE
constexpr uint64_t statx_attr_append = 0x20;        // STATX_ATTR_APPEND
constexpr uint64_t statx_attr_mount_root = 0x2000;  // STATX_ATTR_MOUNT_ROOT, 5.8
// openat2(2)
constexpr uint64_t resolve_no_xdev = 0x01;
constexpr uint64_t resolve_no_magiclinks = 0x02;
constexpr uint64_t resolve_no_symlinks = 0x04;
constexpr uint64_t resolve_beneath = 0x08;
constexpr uint64_t resolve_in_root = 0x10;
constexpr unsigned long ficlone = 0x40049409;  // FICLONE, ioctl_ficlone(2)
constexpr int64_t st_rdonly = 0x1;                  // ST_RDONLY, statfs(2)
constexpr int64_t overlay_magic = 0x794c7630;       // OVERLAYFS_SUPER_MAGIC
constexpr int at_statx_dont_sync = 0x4000;  // AT_STATX_DONT_SYNC

}  // namespace overlayfs::abi
