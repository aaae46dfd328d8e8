// Whiteouts, character devices 0:0: made one or many, alone or in place of something.
#include <fcntl.h>
#include <sys/stat.h>

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

}  // namespace overlayfs
