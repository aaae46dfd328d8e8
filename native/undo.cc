// Undoes single steps of a plan.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>

#include "child.h"
#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

// For kernels before listmount(2): reads the table, whose lines begin with a mount's id and its parent's id.
bool has_submounts_in_table(uint64_t id) {
  int table = static_cast<int>(sys::openat2(AT_FDCWD, "/proc/thread-self/mountinfo", O_RDONLY | O_CLOEXEC, 0, 0));
  if (table < 0) return false;
  char text[4096];
  int column = 0;  // columns are separated by spaces
  uint64_t number = 0;
  bool found = false;
  for (long size; !found && (size = sys::read(table, text, sizeof text)) > 0;) {
    for (long i = 0; i < size && !found; i++) {
      if (text[i] == '\n' || text[i] == ' ') {
        found = column == 1 && number == id;
        column = text[i] == '\n' ? 0 : column + 1;
        number = 0;
      } else if (column == 1) {
        number = number * 10 + static_cast<uint64_t>(text[i] - '0');
      }
    }
  }
  sys::close(table);
  return found;
}

bool has_submounts(int mount) {
  abi::Statx found;
  if (sys::statx(mount, "", AT_EMPTY_PATH, abi::statx_mnt_id_unique | abi::statx_mnt_id, &found) < 0) return false;
  if (!(found.mask & abi::statx_mnt_id_unique)) return has_submounts_in_table(found.mnt_id);
  abi::MountIdRequest request{abi::mount_id_request_6_8, 0, found.mnt_id, 0, 0};
  uint64_t first;
  return sys::listmount(&request, &first, 1) > 0;
}

// Unmounts by way of the working directory, which must be the caller's own.
long unmount_from_inside(int root) {
  long result = sys::call(abi::fchdir, root);
  return result < 0 ? result : sys::call(abi::umount2, ".", abi::mnt_detach);
}

// Does the same in a child, which has a working directory of its own.
long unmount_in_child(int root) {
  struct Errand {
    int root;
    long result;
  } errand{root, -ECHILD};  // killed
  Stack stack;
  if (stack.error() != 0) return -stack.error();
  auto main = [](void* data) -> int {
    auto* of = static_cast<Errand*>(data);
    of->result = unmount_from_inside(of->root);
    return 0;
  };
  long pid;
  int pidfd;
  int error = child::make(main, &errand, stack, child::waited_for | CLONE_FILES, &pid, &pidfd);
  if (error != 0) return -error;
  child::reap(pidfd);
  return errand.result;
}

}  // namespace

// Unmounts by a descriptor of the mount's root, which finds the mount even if its path has changed. Refuses if others
// have stacked a mount over it or mounted something inside: umount2(2) would remove their mount too, or instead.
// Nobody can tell those mounts from the ones that a recursive bind has brought along, so that goes with all of them.
long Execution::unmount_by_root(int root, bool is_tree) const {
  if (!is_tree && has_submounts(root)) return -EBUSY;
  if (has_joined_) return unmount_from_inside(root);  // the other namespace may have no /proc, or that of another
  char path[32] = "/proc/self/fd/";
  size_t length = strlen(path);
  length += write_decimal(path + length, root);
  path[length] = '\0';
  long result = sys::umount2(path, abi::mnt_detach);
  return result == -ENOENT ? unmount_in_child(root) : result;  // no /proc
}

long Execution::revert(Step& step) {
  const int32_t* a = step.a;
  switch (step.call) {
    case Call::move_mount:
      return unmount_by_root(descriptor(a[0]), a[5] != 0);
    case Call::mount:
      // If its root was not opened, it is the last mount on the target.
      return a[5] >= made_by && descriptor(a[5]) >= 0 ? unmount_by_root(descriptor(a[5]))
                                   : sys::umount2(Text(*this, a[1]), abi::mnt_detach);
    case Call::unshare:
    case Call::setns:
      return 0;  // its effect ends with the thread
    case Call::mkdirat:
      return is_left_to_others(step) ? 0 : sys::unlinkat(descriptor(a[0]), Text(*this, a[1]), AT_REMOVEDIR);
    case Call::mknodat:
    case Call::whiteout:
      return sys::unlinkat(descriptor(a[0]), Text(*this, a[1]), 0);
    case Call::linkat:
      return sys::unlinkat(descriptor(a[2]), Text(*this, a[3]), 0);
    case Call::renameat2:
      return sys::renameat2(descriptor(a[2]), Text(*this, a[3]), descriptor(a[0]), Text(*this, a[1]),
                            static_cast<uint32_t>(a[4]));
    default:
      return -EOPNOTSUPP;
  }
}

}  // namespace overlayfs
