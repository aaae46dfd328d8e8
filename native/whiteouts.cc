// Whiteouts, character devices 0:0: made one or many, alone or in place of something.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <string>
#include <vector>

#include "plan.h"
#include "syscalls.h"

namespace overlayfs {

// All whiteouts of a plan share an inode where that can be, as overlayfs itself does it: a link costs the
// file system less than an inode. Where it cannot (another file system, none that links, no link left), this
// one gets an inode of its own, which those after it share.
long Execution::make_whiteout(int dirfd, const char* name) {
  if (whiteout_source_.dirfd >= 0 &&
      sys::linkat(whiteout_source_.dirfd, whiteout_source_.name, dirfd, name, 0) == 0) {
    return 0;
  }
  long result = sys::mknodat(dirfd, name, S_IFCHR, 0);
  if (result == 0) whiteout_source_ = {dirfd, name};
  return result;
}

static bool is_directory(int dirfd, const char* name) {
  abi::Statx found;
  return sys::statx(dirfd, name, AT_SYMLINK_NOFOLLOW, abi::statx_type, &found) == 0 &&
         (found.mode & S_IFMT) == S_IFDIR;
}

// The whiteout is made aside and exchanged with what is in its place, so that the name is never free. Only
// then does it show what was there: a link from before could have been another thing by now.
long replace_with_whiteout(int dirfd, const char* name, const char* aside, bool recursive) {
  long result = sys::mknodat(dirfd, aside, S_IFCHR, 0);
  if (result < 0) return result;
  // Looked at before, so that what is refused never shows. What has been exchanged decides all the same.
  if (!recursive && is_directory(dirfd, name)) {
    sys::unlinkat(dirfd, aside, 0);
    return -EISDIR;
  }

  result = sys::renameat2(dirfd, aside, dirfd, name, abi::rename_exchange);
  if (result == -ENOENT) {
    result = sys::renameat2(dirfd, aside, dirfd, name, abi::rename_noreplace);
    if (result == 0) return 0;
  }
  if (result < 0) {
    sys::unlinkat(dirfd, aside, 0);
    return result;
  }

  result = sys::unlinkat(dirfd, aside, 0);
  if (result != -EISDIR && result != -EPERM) return result;
  if (!is_directory(dirfd, aside)) return result;
  result = recursive ? remove_tree(dirfd, aside) : -EISDIR;
  if (result < 0) {  // back to where it was, or what is left of it
    sys::renameat2(dirfd, aside, dirfd, name, abi::rename_exchange);
    sys::unlinkat(dirfd, aside, 0);
  }
  return result;
}

namespace {

constexpr int open_directory = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
constexpr size_t entries_size = 32768;

struct Level {
  std::string name;  // in the directory above
  uint64_t device, inode;
};

long identify(int fd, Level* level) {
  abi::Statx found;
  long result = sys::statx(fd, "", AT_EMPTY_PATH, abi::statx_ino, &found);
  if (result < 0) return result;
  level->device = static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor;
  level->inode = found.ino;
  return 0;
}

bool is_dot_or_dotdot(const char* name) {
  return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

}  // namespace

long sweep_whiteouts(int dirfd, const char* path) {
  int directory = sys::openat2(dirfd, path, open_directory, 0, 0);
  if (directory < 0) return directory;
  auto* entries = static_cast<char*>(malloc(entries_size));
  if (entries == nullptr) abort();
  long result;
  while ((result = sys::getdents64(directory, entries, entries_size)) > 0) {
    for (long offset = 0; offset < result;) {
      auto* entry = reinterpret_cast<abi::Dirent*>(entries + offset);
      offset += entry->reclen;
      abi::Statx found;
      if (sys::statx(directory, entry->name, AT_SYMLINK_NOFOLLOW, abi::statx_type, &found) == 0 &&
          (found.mode & S_IFMT) == S_IFCHR && found.rdev_major == 0 && found.rdev_minor == 0) {
        sys::unlinkat(directory, entry->name, 0);
      }
    }
  }
  free(entries);
  sys::close(directory);
  return result;
}

// One descriptor, however deep the tree: the way up is "..", and what is found there has to be the directory
// that the way down came from.
long remove_tree(int dirfd, const char* name) {
  long result = sys::unlinkat(dirfd, name, AT_REMOVEDIR);
  if (result != -ENOTEMPTY && result != -EEXIST) return result;

  int at = sys::openat2(dirfd, name, open_directory, 0, 0);
  if (at < 0) return at;
  std::vector<Level> levels(1);
  result = identify(at, &levels[0]);

  auto* entries = static_cast<char*>(malloc(entries_size));
  if (entries == nullptr) abort();

  while (result >= 0) {
    result = sys::getdents64(at, entries, entries_size);
    if (result < 0) break;
    if (result == 0) {  // empty now: up, and away with it
      if (levels.size() == 1) break;
      Level above;
      int up = sys::openat2(at, "..", open_directory, 0, 0);
      result = up < 0 ? up : identify(up, &above);
      sys::close(at);
      at = up;
      const Level& expected = levels[levels.size() - 2];
      if (result >= 0 && (above.device != expected.device || above.inode != expected.inode)) result = -ESTALE;
      if (result >= 0) result = sys::unlinkat(at, levels.back().name.c_str(), AT_REMOVEDIR);
      levels.pop_back();
      continue;
    }
    long size = result;
    for (long offset = 0; offset < size && result >= 0;) {
      auto* entry = reinterpret_cast<abi::Dirent*>(entries + offset);
      offset += entry->reclen;
      if (is_dot_or_dotdot(entry->name)) continue;
      result = sys::unlinkat(at, entry->name, 0);
      if (result != -EISDIR && result != -EPERM) continue;
      long not_removed = result;
      result = sys::unlinkat(at, entry->name, AT_REMOVEDIR);
      if (result == -ENOTDIR) result = not_removed;
      if (result != -ENOTEMPTY && result != -EEXIST) continue;

      int down = sys::openat2(at, entry->name, open_directory, 0, abi::resolve_no_xdev);
      if (down < 0) {
        result = down;
        break;
      }
      levels.push_back({entry->name, 0, 0});
      sys::close(at);
      at = down;
      result = identify(at, &levels.back());
      break;
    }
  }
  free(entries);
  if (at >= 0) sys::close(at);
  if (result < 0) return result;
  return sys::unlinkat(dirfd, name, AT_REMOVEDIR);
}

}  // namespace overlayfs
