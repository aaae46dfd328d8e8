// The peer of the library: system calls from C, with nothing around them.
//
//   peer serve   obeys lines on stdin, and answers each with one line
//   peer spin    keeps a CPU busy
//
// Lines, and their answers, all times being nanoseconds:
//
//   sync SETS PAIRS BASE              pairs of mount(2) and umount2(2)                        -> MEDIAN TOTAL
//   guarded SETS PAIRS BASE           pairs of the calls that the library makes               -> MEDIAN TOTAL
//   handover SETS PAIRS BASE          as sync, each call handed to a second thread and back    -> MEDIAN TOTAL
//   guarded-handover SETS PAIRS BASE  as guarded, handed over likewise                         -> MEDIAN TOTAL
//   rootless SETS PAIRS BASE          a clone(2) whose child mounts, and close(2)              -> MEDIAN TOTAL
//   mknod COUNT EACH DIRECTORY        whiteouts, one mknod(2) each                             -> TOTAL
//   link COUNT EACH DIRECTORY         whiteouts, links of the first                            -> TOTAL
//   unmount SETS BASE                 what is mounted at their targets, one umount2(2) each    -> TOTAL
//   walk DIRECTORY                    a tree: getdents64(2), statx(2), flistxattr(2)           -> TOTAL ENTRIES
//   table                             the mount table, read and split                          -> TOTAL
//
// BASE holds the directories 0 to SETS - 1, used in turn, each with lower, upper, work and target in it.
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "peer.h"

static const struct {
  const char *name;
  void (*perform)(struct call);
} pair_kinds[] = {
    {"sync", perform_bare},
    {"guarded", perform_guarded},
    {"handover", hand_over_bare},
    {"guarded-handover", hand_over_guarded},
};

static int obey_pairs(const char *line) {
  char name[32], base[PATH_MAX];
  int sets, pairs;
  if (sscanf(line, "%31s %d %d %4095[^\n]", name, &sets, &pairs, base) != 4) return 0;
  for (size_t i = 0; i < sizeof pair_kinds / sizeof *pair_kinds; i++) {
    if (strcmp(name, pair_kinds[i].name) != 0) continue;
    measure_pairs(pair_kinds[i].perform, base, sets, pairs);
    return 1;
  }
  return 0;
}

static void serve(void) {
  char line[PATH_MAX + 64], path[PATH_MAX];
  int sets, count, each;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (obey_pairs(line)) {
      // answered
    } else if (sscanf(line, "rootless %d %d %4095[^\n]", &sets, &count, path) == 3) {
      measure_rootless(path, sets, count);
    } else if (sscanf(line, "mknod %d %d %4095[^\n]", &count, &each, path) == 3) {
      measure_whiteouts(path, count, each, 0);
    } else if (sscanf(line, "link %d %d %4095[^\n]", &count, &each, path) == 3) {
      measure_whiteouts(path, count, each, 1);
    } else if (sscanf(line, "unmount %d %4095[^\n]", &sets, path) == 2) {
      measure_unmounts(path, sets);
    } else if (sscanf(line, "walk %4095[^\n]", path) == 1) {
      measure_walk(path);
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
