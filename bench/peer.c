// What the library is measured beside: the same system calls from C, with nothing around them.
//
//   peer serve   obeys lines on stdin, and answers each with one line
//   peer spin    keeps a CPU busy
//
// Lines, and their answers, all times being nanoseconds:
//
//   sync SETS PAIRS BASE      pairs of mount(2) and umount2(2)                       -> MEDIAN TOTAL
//   handover SETS PAIRS BASE  the same, each call handed to a second thread and back -> MEDIAN TOTAL
//   rootless SETS PAIRS BASE  a clone(2) whose child mounts in namespaces of its own, and close(2)  -> MEDIAN TOTAL
//   mknod COUNT DIRECTORY     whiteouts, one mknod(2) each                           -> TOTAL
//   unmount SETS BASE         what is mounted at their targets, one umount2(2) each  -> TOTAL
//   table                     the mount table, read and split into lines and fields    -> TOTAL
//
// BASE holds the directories 0 to SETS - 1, used in turn, each with lower, upper, work and target in it.
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST_SETS 64

struct set {
  char target[PATH_MAX];
  char options[PATH_MAX];
};

struct call {
  const struct set *set;
  int is_unmount;
};

static int64_t now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

static void perform(struct call call) {
  if (call.is_unmount) {
    if (umount2(call.set->target, 0) != 0) err(1, "umount2 %s", call.set->target);
  } else {
    if (mount("overlay", call.set->target, "overlay", 0, call.set->options) != 0) {
      err(1, "mount %s", call.set->target);
    }
  }
}

// ------------------------------------------------------------------------------------------ the second thread

// To the thread by futex and back by eventfd, on which the first one sleeps as an event loop does: what any
// program has to do that makes the calls without blocking its loop.
static struct call handed_over;
static uint32_t requests;
static int answers = -1;
static int loop = -1;

static void *serve_calls(void *unused) {
  (void)unused;
  for (uint32_t seen = 0;; seen++) {
    while (__atomic_load_n(&requests, __ATOMIC_ACQUIRE) == seen) {
      syscall(SYS_futex, &requests, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    }
    perform(handed_over);
    uint64_t one = 1;
    if (write(answers, &one, sizeof one) != sizeof one) err(1, "eventfd");
  }
  return NULL;
}

static void start_thread(void) {
  if (loop >= 0) return;
  answers = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  loop = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN};
  if (answers < 0 || loop < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, answers, &event) != 0) err(1, "epoll");
  pthread_t thread;
  errno = pthread_create(&thread, NULL, serve_calls, NULL);
  if (errno != 0) err(1, "pthread_create");
}

static void hand_over(struct call call) {
  handed_over = call;
  __atomic_add_fetch(&requests, 1, __ATOMIC_RELEASE);
  syscall(SYS_futex, &requests, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  struct epoll_event event;
  uint64_t count;
  while (epoll_wait(loop, &event, 1, -1) != 1 || read(answers, &count, sizeof count) != sizeof count) continue;
}

// ------------------------------------------------------------------------------------------ what is reported

static int compare(const void *left, const void *right) {
  int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
  return (a > b) - (a < b);
}

static void report_times(int64_t *times, int pairs, int64_t total) {
  qsort(times, (size_t)pairs, sizeof *times, compare);
  int64_t median = (times[(pairs - 1) / 2] + times[pairs / 2]) / 2;
  free(times);
  printf("%lld %lld\n", (long long)median, (long long)total);
}

// ------------------------------------------------------------------------------------------ without privilege

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

static void measure_rootless(const char *base, int set_count, int pairs) {
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

// ------------------------------------------------------------------------------------------ the measurements


static void measure_pairs(void (*make)(struct call), const char *base, int set_count, int pairs) {
  static struct set sets[MOST_SETS];
  if (set_count < 1 || set_count > MOST_SETS || pairs < 1) errx(1, "%d sets, %d pairs", set_count, pairs);
  for (int i = 0; i < set_count; i++) {
    snprintf(sets[i].target, sizeof sets[i].target, "%s/%d/target", base, i);
    snprintf(sets[i].options, sizeof sets[i].options, "lowerdir=%s/%d/lower,upperdir=%s/%d/upper,workdir=%s/%d/work",
             base, i, base, i, base, i);
  }
  int64_t *times = calloc((size_t)pairs, sizeof *times);
  if (times == NULL) err(1, "calloc");

  int64_t begin = now();
  for (int i = 0; i < pairs; i++) {
    const struct set *set = &sets[i % set_count];
    int64_t start = now();
    make((struct call){set, 0});
    make((struct call){set, 1});
    times[i] = now() - start;
  }
  report_times(times, pairs, now() - begin);
}

// Names as bench/ours.ts has them: so many to a directory. Each a node of its own, or all links of the first.
static void measure_whiteouts(const char *directory, int count, int each, int links) {
  // The names are made before the clock starts, as they are for the other side.
  size_t size = strlen(directory) + sizeof "/4294967295/module-4294967295.js";
  char *paths = calloc((size_t)count, size);
  if (paths == NULL) err(1, "calloc");
  for (int i = 0; i < count; i++) {
    snprintf(paths + (size_t)i * size, size, "%s/%u/module-%05u.js", directory, (unsigned)(i / each), (unsigned)i);
  }

  int64_t begin = now();
  for (int i = 0; i < count; i++) {
    const char *path = paths + (size_t)i * size;
    int failed = links && i > 0 ? link(paths, path) : mknod(path, S_IFCHR, 0);
    if (failed) err(1, "%s", path);
  }
  int64_t total = now() - begin;

  free(paths);
  printf("%lld\n", (long long)total);
}

static void measure_unmounts(const char *base, int set_count) {
  int64_t begin = now();
  for (int i = 0; i < set_count; i++) {
    char target[PATH_MAX];
    snprintf(target, sizeof target, "%s/%d/target", base, i);
    if (umount2(target, 0) != 0) err(1, "%s", target);
  }
  printf("%lld\n", (long long)(now() - begin));
}

static void measure_table(void) {
  int64_t begin = now();
  int table = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
  if (table < 0) err(1, "mountinfo");
  size_t room = 1 << 16, size = 0;
  char *text = malloc(room);
  ssize_t got;
  while (text != NULL && (got = read(table, text + size, room - size - 1)) > 0) {
    size += (size_t)got;
    if (room - size < 2) text = realloc(text, room *= 2);
  }
  if (text == NULL) err(1, "malloc");
  close(table);
  text[size] = '\0';
  volatile size_t fields = 0;
  char *line_end, *field_end;
  for (char *line = strtok_r(text, "\n", &line_end); line != NULL; line = strtok_r(NULL, "\n", &line_end)) {
    for (char *field = strtok_r(line, " ", &field_end); field != NULL; field = strtok_r(NULL, " ", &field_end)) {
      fields = fields + 1;
    }
  }
  free(text);
  printf("%lld\n", (long long)(now() - begin));
}

static void serve(void) {
  char line[PATH_MAX + 64], path[PATH_MAX];
  int sets, count, each;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "sync %d %d %4095[^\n]", &sets, &count, path) == 3) {
      measure_pairs(perform, path, sets, count);
    } else if (sscanf(line, "handover %d %d %4095[^\n]", &sets, &count, path) == 3) {
      start_thread();
      measure_pairs(hand_over, path, sets, count);
    } else if (sscanf(line, "rootless %d %d %4095[^\n]", &sets, &count, path) == 3) {
      measure_rootless(path, sets, count);
    } else if (sscanf(line, "mknod %d %d %4095[^\n]", &count, &each, path) == 3) {
      measure_whiteouts(path, count, each, 0);
    } else if (sscanf(line, "link %d %d %4095[^\n]", &count, &each, path) == 3) {
      measure_whiteouts(path, count, each, 1);
    } else if (sscanf(line, "unmount %d %4095[^\n]", &sets, path) == 2) {
      measure_unmounts(path, sets);
    } else if (strcmp(line, "table\n") == 0) {
      measure_table();
    } else {
      errx(1, "not understood: %s", line);
    }
    fflush(stdout);
  }
}

static void spin(void) {
  // No system call: what an unmount waits for is that this CPU enters the kernel, or is idle.
  for (volatile unsigned long turns = 0;;) turns = turns + 1;
}

int main(int argc, char **argv) {
  // Whatever becomes of the process that started this one, it does not stay behind.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (argc == 2 && strcmp(argv[1], "serve") == 0) {
    serve();
  } else if (argc == 2 && strcmp(argv[1], "spin") == 0) {
    spin();
  } else {
    errx(2, "serve, or spin");
  }
  return 0;
}
