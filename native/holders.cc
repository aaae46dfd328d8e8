// Finds the files of a mount that a process holds, in a directory of links (/proc/PID/fd, /proc/PID/map_files). Such a
// directory may have thousands of links, and a step for each would cost more than its statx(2).
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "plan.h"
#include "syscalls.h"

namespace overlayfs {

namespace {

constexpr size_t entries_size = 32768;

bool is_among(uint64_t id, const char* ids, size_t size) {
  for (size_t at = 0; at + sizeof id <= size; at += sizeof id) {
    if (memcmp(ids + at, &id, sizeof id) == 0) return true;
  }
  return false;
}

// A file system among the ids: the highest bit tells it from a mount.
uint64_t device_of(const abi::Statx& found) {
  return uint64_t{1} << 63 | static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor;
}

}  // namespace

long names_on_mounts(int dirfd, const char* path, uint32_t mask, const char* ids, size_t ids_size, char* names,
                     size_t room) {
  int directory = sys::openat2(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0);
  if (directory < 0) return directory;
  auto* entries = static_cast<char*>(malloc(entries_size));
  if (entries == nullptr) abort();
  long result, refused = 0;
  size_t used = 0;
  while ((result = sys::getdents64(directory, entries, entries_size)) > 0) {
    for (long offset = 0; offset < result;) {
      auto* entry = reinterpret_cast<abi::Dirent*>(entries + offset);
      offset += entry->reclen;
      if (entry->name[0] == '.') continue;
      abi::Statx found;
      long looked = sys::statx(directory, entry->name, abi::at_statx_dont_sync, mask, &found);
      if (looked == -EPERM || looked == -EACCES) refused = looked;
      if (looked < 0) continue;
      if (!is_among(found.mnt_id, ids, ids_size) && !is_among(device_of(found), ids, ids_size)) continue;
      size_t size = strlen(entry->name) + 1;
      if (used + size > room) break;
      memcpy(names + used, entry->name, size);
      used += size;
    }
  }
  free(entries);
  sys::close(directory);
  if (used > 0) return static_cast<long>(used);
  return result < 0 ? result : refused;
}

}  // namespace overlayfs
