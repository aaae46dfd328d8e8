// Pairs of a mount and its unmount, timed one by one.
#include "peer.h"

static int compare(const void *left, const void *right) {
  int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
  return (a > b) - (a < b);
}

void report_times(int64_t *times, int count, int64_t total) {
  qsort(times, (size_t)count, sizeof *times, compare);
  int64_t median = (times[(count - 1) / 2] + times[count / 2]) / 2;
  free(times);
  printf("%lld %lld\n", (long long)median, (long long)total);
}

static void name_set(struct set *set, const char *base, int number) {
  snprintf(set->lower, sizeof set->lower, "%s/%d/lower", base, number);
  snprintf(set->upper, sizeof set->upper, "%s/%d/upper", base, number);
  snprintf(set->work, sizeof set->work, "%s/%d/work", base, number);
  snprintf(set->target, sizeof set->target, "%s/%d/target", base, number);
  snprintf(set->options, sizeof set->options, "lowerdir=%s,upperdir=%s,workdir=%s", set->lower, set->upper, set->work);
}

void measure_pairs(void (*perform)(struct call), const char *base, int set_count, int pairs) {
  static struct set sets[MOST_SETS];
  if (set_count < 1 || set_count > MOST_SETS || pairs < 1) errx(1, "%d sets, %d pairs", set_count, pairs);
  for (int i = 0; i < set_count; i++) name_set(&sets[i], base, i);
  int64_t *times = calloc((size_t)pairs, sizeof *times);
  if (times == NULL) err(1, "calloc");

  int64_t begin = now();
  for (int i = 0; i < pairs; i++) {
    struct set *set = &sets[i % set_count];
    int64_t start = now();
    perform((struct call){set, 0});
    perform((struct call){set, 1});
    times[i] = now() - start;
  }
  report_times(times, pairs, now() - begin);
}
