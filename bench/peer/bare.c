// The two system calls alone.
#include <sys/mount.h>

#include "peer.h"

void perform_bare(struct call call) {
  if (call.is_unmount) {
    if (umount2(call.set->target, 0) != 0) err(1, "umount2 %s", call.set->target);
  } else if (mount("overlay", call.set->target, "overlay", 0, call.set->options) != 0) {
    err(1, "mount %s", call.set->target);
  }
}

void measure_unmounts(const char *base, int set_count) {
  int64_t begin = now();
  for (int i = 0; i < set_count; i++) {
    char target[PATH_MAX];
    snprintf(target, sizeof target, "%s/%d/target", base, i);
    if (umount2(target, 0) != 0) err(1, "%s", target);
  }
  printf("%lld\n", (long long)(now() - begin));
}
