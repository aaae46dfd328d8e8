// The C peers share this. All times are nanoseconds.
#pragma once
#include <err.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MOST_SETS 64

// The layer set BASE/NUMBER.
struct set {
  char lower[PATH_MAX], upper[PATH_MAX], work[PATH_MAX], target[PATH_MAX];
  char options[3 * PATH_MAX + 64]; // as mount(2) takes them
  uint64_t mount_id;          // the id of the mount there, if the peer asks for it
};

struct call {
  struct set *set;
  int is_unmount;
};

static inline int64_t now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

// Mounts and unmounts each set in turn; prints the median pair and the total.
void measure_pairs(void (*perform)(struct call), const char *base, int set_count, int pairs);
// Prints the median and the total, and frees the times.
void report_times(int64_t *times, int count, int64_t total);

void perform_bare(struct call call);    // mount(2), umount2(2)
void perform_guarded(struct call call); // the calls that the library makes
// The same two, each handed to a second thread and back.
void hand_over_bare(struct call call);
void hand_over_guarded(struct call call);

void measure_rootless(const char *base, int set_count, int pairs);
void measure_whiteouts(const char *directory, int count, int each, int links);
void measure_walk(const char *directory);
void measure_unmounts(const char *base, int set_count);
void measure_table(void);
