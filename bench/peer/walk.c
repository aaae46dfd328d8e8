// A walk of a directory tree, by the calls that the library makes for its changes.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "peer.h"

struct entry {
  ino_t inode;
  off_t offset;
  unsigned short size;
  unsigned char type;
  char name[];
};

static long entries;

static int open_directory(int at, const char *name) {
  struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_NO_XDEV};
  int fd = (int)syscall(SYS_openat2, at, name, &how, sizeof how);
  if (fd < 0) err(1, "%s", name);
  return fd;
}

static void look(int at, const char *name, int flags) {
  struct statx found;
  if (statx(at, name, flags, STATX_BASIC_STATS | STATX_MNT_ID, &found) != 0) err(1, "%s", name);
  entries++;
}

static void walk(int fd) {
  char buffer[32768], list[1024];
  look(fd, "", AT_EMPTY_PATH);
  flistxattr(fd, list, sizeof list);
  for (long size; (size = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0;) {
    for (long at = 0; at < size;) {
      const struct entry *entry = (const struct entry *)(buffer + at);
      at += entry->size;
      if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) continue;
      if (entry->type == DT_DIR) {
        int inner = open_directory(fd, entry->name);
        walk(inner);
        close(inner);
      } else {
        look(fd, entry->name, AT_SYMLINK_NOFOLLOW);
      }
    }
  }
}

void measure_walk(const char *directory) {
  int64_t begin = now();
  entries = 0;
  int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) err(1, "%s", directory);
  walk(fd);
  close(fd);
  printf("%lld %ld\n", (long long)(now() - begin), entries);
}
