// The same pairs by libmount, the library behind mount(8) and umount(8): a context for each call.
//
// Obeys the line "sync SETS PAIRS BASE" as bench/peer/main.c does.
#include <libmount/libmount.h>
#include <signal.h>
#include <sys/prctl.h>

#include "../peer/peer.h"

static void require(int result, const char *what, const char *target) {
  if (result != 0) errx(1, "%s %s: %d", what, target, result);
}

static void perform(struct call call) {
  const char *target = call.set->target;
  struct libmnt_context *context = mnt_new_context();
  if (context == NULL) err(1, "mnt_new_context");
  require(mnt_context_set_target(context, target), "target", target);
  if (call.is_unmount) {
    require(mnt_context_umount(context), "umount", target);
  } else {
    require(mnt_context_set_fstype(context, "overlay"), "fstype", target);
    require(mnt_context_set_source(context, "overlay"), "source", target);
    require(mnt_context_set_options(context, call.set->options), "options", target);
    require(mnt_context_mount(context), "mount", target);
  }
  mnt_free_context(context);
}

int main(void) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  char line[PATH_MAX + 64], base[PATH_MAX];
  int sets, pairs;
  while (fgets(line, sizeof line, stdin) != NULL) {
    if (sscanf(line, "sync %d %d %4095[^\n]", &sets, &pairs, base) != 3) errx(1, "not understood: %s", line);
    measure_pairs(perform, base, sets, pairs);
    fflush(stdout);
  }
  return 0;
}
