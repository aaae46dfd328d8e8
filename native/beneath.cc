#include "beneath.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "syscalls.h"

namespace overlayfs {

namespace {

constexpr size_t most_path = 4096;  // PATH_MAX, with the NUL
constexpr uint64_t open_parent = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

// Opens name by name, without symbolic links, for kernels before 5.6 and seccomp filters that refuse openat2(2).
int walk(int root, char* path, uint64_t flags) {
  abi::Statx start;
  constexpr unsigned mask = abi::statx_type | abi::statx_mnt_id;
  long result = sys::statx(root, "", AT_EMPTY_PATH | abi::at_statx_dont_sync, mask, &start);
  if (result < 0) return static_cast<int>(result);
  int fd = root;
  for (char* name = path; name != nullptr;) {
    char* end = name;
    while (*end != '\0' && *end != '/') end++;
    if (*end == '\0') end = nullptr;
    if (end != nullptr) *end = '\0';
    const bool is_dotdot = name[0] == '.' && name[1] == '.' && name[2] == '\0';
    const uint64_t how = end != nullptr ? open_parent : flags | O_NOFOLLOW;
    int next = is_dotdot ? -EXDEV : sys::openat2(fd, name, how, 0, 0);
    if (fd != root) sys::close(fd);
    if (next < 0) return next;
    abi::Statx found;
    result = sys::statx(next, "", AT_EMPTY_PATH | abi::at_statx_dont_sync, mask, &found);
    if (result >= 0 && (found.mnt_id != start.mnt_id || device_of(found) != device_of(start))) result = -EXDEV;
    if (result < 0) {
      sys::close(next);
      return static_cast<int>(result);
    }
    fd = next;
    name = end == nullptr ? nullptr : end + 1;
  }
  return fd;
}

int open_part(int at, const char* path, size_t size, uint64_t flags, bool in_root) {
  char text[most_path];
  memcpy(text, path, size);
  text[size] = '\0';
  const uint64_t resolve = abi::resolve_no_xdev | abi::resolve_no_magiclinks |
                           (in_root ? abi::resolve_in_root : abi::resolve_beneath | abi::resolve_no_symlinks);
  int fd;
  int attempts = 0;
  do {
    fd = sys::openat2(at, text, flags, 0, resolve);
  } while (fd == -EAGAIN && ++attempts < 64);  // a rename elsewhere while the kernel resolved `..`
  return fd == -ENOSYS || fd == -EPERM ? walk(at, text, flags) : fd;
}

}  // namespace

int open_beneath(int root, const char* path, size_t size, uint64_t flags, bool in_root) {
  if (size == 0) return sys::openat2(root, ".", flags, 0, 0);
  const uint64_t parent_flags = in_root ? open_parent & ~static_cast<uint64_t>(O_NOFOLLOW) : open_parent;
  int at = root;
  // The kernel accepts paths of less than PATH_MAX bytes, so a longer one is opened in pieces.
  while (size >= most_path) {
    size_t part = most_path;
    while (part > 0 && path[part - 1] != '/') part--;
    int next = part == 0 ? -ENAMETOOLONG : open_part(at, path, part - 1, parent_flags, in_root);
    if (at != root) sys::close(at);
    if (next < 0) return next;
    at = next;
    path += part;
    size -= part;
  }
  int fd = open_part(at, path, size, flags, in_root);
  if (at != root) sys::close(at);
  return fd;
}

}  // namespace overlayfs
