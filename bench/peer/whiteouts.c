// Whiteouts, one system call each.
#define _GNU_SOURCE
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "peer.h"

// Names as bench/ours.ts has them: so many to a directory. Each a node of its own, or all links of the first.
void measure_whiteouts(const char *directory, int count, int each, int links) {
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
