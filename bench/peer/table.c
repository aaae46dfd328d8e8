// The mount table, read and split into lines and fields.
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "peer.h"

void measure_table(void) {
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
