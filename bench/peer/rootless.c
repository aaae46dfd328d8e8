// A mount without privilege: a clone(2) that shares memory, whose child mounts in namespaces of its own.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "peer.h"

// Both processes use the memory, one at a time.
static struct {
  const char *base;
  int number;
  char uid_map[64], gid_map[64];
  int mount;
  int failed; // the line
} one_shot;

#define STEP(call)               \
  do {                           \
    if ((call) < 0) {            \
      one_shot.failed = __LINE__; \
      return 0;                  \
    }                            \
  } while (0)

static int write_file(const char *path, const char *text) {
  int file = open(path, O_WRONLY | O_CLOEXEC);
  if (file < 0) return -1;
  ssize_t written = write(file, text, strlen(text));
  close(file);
  return written < 0 ? -1 : 0;
}

static int set_layer(int context, const char *key, const char *name) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%d/%s", one_shot.base, one_shot.number, name);
  int layer = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (layer < 0) return -1;
  long result = syscall(SYS_fsconfig, context, 5, key, NULL, layer); // FSCONFIG_SET_FD
  close(layer);
  return (int)result;
}

static int mount_in_child(void *unused) {
  (void)unused;
  STEP(write_file("/proc/self/setgroups", "deny"));
  STEP(write_file("/proc/self/uid_map", one_shot.uid_map));
  STEP(write_file("/proc/self/gid_map", one_shot.gid_map));
  int context = (int)syscall(SYS_fsopen, "overlay", 1);
  STEP(context);
  STEP(set_layer(context, "lowerdir+", "lower"));
  STEP(set_layer(context, "upperdir", "upper"));
  STEP(set_layer(context, "workdir", "work"));
  STEP(syscall(SYS_fsconfig, context, 0, "userxattr", NULL, 0));   // FSCONFIG_SET_FLAG
  STEP(syscall(SYS_fsconfig, context, 6, NULL, NULL, 0));          // FSCONFIG_CMD_CREATE
  STEP(one_shot.mount = (int)syscall(SYS_fsmount, context, 1, 0));
  close(context);
  return 0;
}

void measure_rootless(const char *base, int set_count, int pairs) {
  static char stack[64 * 1024] __attribute__((aligned(16)));
  int64_t *times = calloc((size_t)pairs, sizeof *times);
  if (times == NULL) err(1, "calloc");
  snprintf(one_shot.uid_map, sizeof one_shot.uid_map, "%d %d 1", (int)geteuid(), (int)geteuid());
  snprintf(one_shot.gid_map, sizeof one_shot.gid_map, "%d %d 1", (int)getegid(), (int)getegid());
  int64_t begin = now();
  for (int i = 0; i < pairs; i++) {
    int64_t start = now();
    one_shot.base = base;
    one_shot.number = i % set_count;
    one_shot.failed = 0;
    int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWUSER | CLONE_NEWNS;
    int pid = clone(mount_in_child, stack + sizeof stack, flags, NULL);
    if (pid < 0) err(1, "clone");
    if (waitpid(pid, NULL, __WALL) != pid) err(1, "waitpid");
    if (one_shot.failed != 0) errx(1, "rootless: line %d", one_shot.failed);
    close(one_shot.mount);
    times[i] = now() - start;
  }
  report_times(times, pairs, now() - begin);
}
