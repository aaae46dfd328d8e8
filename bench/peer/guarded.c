// The system calls that the library makes for the same pair. The target is the directory that was looked at, nobody
// has mounted anything unseen, the mount is writable and whole when it appears, and what is unmounted is that mount.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "peer.h"

// Older headers lack these.
enum {
  NR_LISTMOUNT = 458,
  STATX_UNIQUE_ID = 0x4000,
  SET_STRING = 1, // FSCONFIG_*
  SET_FD = 5,
  CREATE = 6,
  CLOSE_ON_EXEC = 1,             // FSOPEN_, FSMOUNT_
  BOTH_EMPTY_PATHS = 0x04 | 0x40 // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
};

// A part of struct statx, whose unique mount id older headers do not know.
union look {
  struct statx statx;
  struct {
    char before[0x90];
    uint64_t mount_id;
  };
};

static int checked(long result, const char *what) {
  if (result < 0) err(1, "%s", what);
  return (int)result;
}

static int open_directory(const char *path, uint64_t flags) {
  struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC | flags};
  return checked(syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how), path);
}

static void look_at(int directory, const char *path, int flags, unsigned mask, union look *found) {
  checked(syscall(SYS_statx, directory, path, flags, mask, &found->statx), "statx");
}

// Catches up with what others have mounted; of mounts that are known, one call says that there are no newer ones.
static void look_for_newer(uint64_t *last) {
  struct {
    uint32_t size, spare;
    uint64_t mount, after;
  } request = {.size = sizeof request, .mount = UINT64_MAX /* LSMT_ROOT */, .after = *last};
  while (checked(syscall(NR_LISTMOUNT, &request, last, 1, 0), "listmount") > 0) request.after = *last;
}

static int make_overlay(const struct set *set, int upper, int work) {
  int context = checked(syscall(SYS_fsopen, "overlay", CLOSE_ON_EXEC), "fsopen");
  checked(syscall(SYS_fsconfig, context, SET_STRING, "source", "overlay", 0), "source");
  checked(syscall(SYS_fsconfig, context, SET_STRING, "lowerdir+", set->lower, 0), "lowerdir+");
  checked(syscall(SYS_fsconfig, context, SET_FD, "upperdir", NULL, upper), "upperdir");
  checked(syscall(SYS_fsconfig, context, SET_FD, "workdir", NULL, work), "workdir");
  checked(syscall(SYS_fsconfig, context, CREATE, NULL, NULL, 0), "create");
  int mount = checked(syscall(SYS_fsmount, context, CLOSE_ON_EXEC, 0), "fsmount");
  close(context);
  return mount;
}

static void mount_guarded(struct set *set) {
  static uint64_t last;
  union look found;
  int target = open_directory(set->target, O_NOFOLLOW);
  look_at(target, "", AT_EMPTY_PATH, STATX_TYPE, &found);
  int upper = open_directory(set->upper, 0);
  int work = open_directory(set->work, 0);
  look_for_newer(&last);
  int mount = make_overlay(set, upper, work);
  struct statfs superblock;
  checked(fstatfs(mount, &superblock), "fstatfs");
  look_at(mount, "", AT_EMPTY_PATH, STATX_INO | STATX_UNIQUE_ID, &found);
  set->mount_id = last = found.mount_id;
  checked(syscall(SYS_move_mount, mount, "", target, "", BOTH_EMPTY_PATHS), "move_mount");
  for (int i = 0, all[] = {target, upper, work, mount}; i < 4; i++) close(all[i]);
}

static void unmount_guarded(const struct set *set) {
  union look found;
  look_at(AT_FDCWD, set->target, AT_SYMLINK_NOFOLLOW, STATX_UNIQUE_ID, &found);
  if (found.mount_id != set->mount_id) errx(1, "another mount at %s", set->target);
  checked(umount2(set->target, UMOUNT_NOFOLLOW), "umount2");
}

void perform_guarded(struct call call) {
  if (call.is_unmount) unmount_guarded(call.set);
  else mount_guarded(call.set);
}
