// Makes whiteouts, which are character devices 0:0. A whiteout can replace an existing file.
#include <fcntl.h>
#include <sys/stat.h>

#include "plan.h"
#include "syscalls.h"

namespace overlayfs {

// The whiteouts of a plan share an inode if possible, as those of overlayfs do: a link costs the file system less than
// an inode. If the link fails (another file system, one without links, too many links), this whiteout gets an inode of
// its own, which the next ones share.
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

// Makes the whiteout under the name ASIDE and exchanges it with the file, so that the name is never free. Only the
// exchange shows reliably which file was there.
long replace_with_whiteout(int dirfd, const char* name, const char* aside, bool recursive) {
  long result = sys::mknodat(dirfd, aside, S_IFCHR, 0);
  if (result < 0) return result;
  // Checks first, so that a refused whiteout is never visible. The exchanged entry is checked again below.
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
  if (result < 0) {  // moves the entry, or the rest of it, back to its place
    sys::renameat2(dirfd, aside, dirfd, name, abi::rename_exchange);
    sys::unlinkat(dirfd, aside, 0);
  }
  return result;
}

}  // namespace overlayfs
