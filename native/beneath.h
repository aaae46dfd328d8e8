// Opens entries below a directory, and helpers for the entries of directories.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "abi.h"

namespace overlayfs {

inline bool is_dot_or_dotdot(const char* name, size_t size) {
  return size != 0 && size <= 2 && name[0] == '.' && name[size - 1] == '.';
}
inline bool is_dot_or_dotdot(const char* name) {
  return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

inline uint64_t device_of(const abi::Statx& found) {
  return static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor;
}

// Opens a path of this size, which needs no NUL and may be longer than PATH_MAX; an empty one is the directory itself.
// Follows no symbolic link and enters no other mount. With `in_root`, links and `..` resolve as if the directory were
// the root directory. Returns the descriptor, or minus the errno.
int open_beneath(int root, const char* path, size_t size, uint64_t flags, bool in_root = false);

}  // namespace overlayfs
