// The steps that look at a file or a file system, and the guards that judge what they find.
#include <string.h>
#include <sys/stat.h>

#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

// statfs(path), fstatfs(descriptor); output: f_type, f_flags, f_blocks, f_bavail, f_files, f_ffree.
long Execution::look_at_file_system(const Step& step, long result, const abi::Statfs& found) {
  found_ = {};
  if (result < 0) return result;
  found_.file_system = found.type;
  found_.file_system_flags = found.flags;
  if (step.output == 0) return 0;
  int64_t report[] = {found.type,
                      found.flags,
                      static_cast<int64_t>(found.blocks),
                      static_cast<int64_t>(found.bavail),
                      static_cast<int64_t>(found.files),
                      static_cast<int64_t>(found.ffree)};
  memcpy(block_ + step.output + 8, report, sizeof report);
  return 0;
}

// statx(dirfd, path, flags, mask); output: a StatxReport.
long Execution::look_at_file(const Step& step) {
  const int32_t* a = step.a;
  abi::Statx found;
  found_ = {};
  long result = sys::statx(descriptor(a[0]), Text(*this, a[1]), a[2], static_cast<uint32_t>(a[3]), &found);
  if (result < 0) return result;
  found_.mode = found.mode;
  found_.attributes = found.attributes;
  found_.mount = found.mnt_id;
  found_.is_removed = (found.mask & abi::statx_nlink) && found.nlink == 0;
  if (step.output == 0) return 0;
  const StatxReport report{.mask = found.mask,
                           .mode = found.mode,
                           .inode = found.ino,
                           .device = static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor,
                           .represents = static_cast<uint64_t>(found.rdev_major) << 32 | found.rdev_minor,
                           .size = found.size,
                           .mount = found.mnt_id,
                           .attributes = found.attributes,
                           .links = found.nlink};
  memcpy(block_ + step.output + 8, &report, sizeof report);
  return 0;
}

// guard(the guard, a mount's id in two halves where the guard needs one): judges what the last statx or statfs has
// found.
long Execution::check_guard(const Step& step) const {
  const auto guard = static_cast<Guard>(step.a[0]);
  auto is_at_fault = [&] {
    switch (guard) {
      case Guard::target_is_mount_point:
        return (found_.attributes & abi::statx_attr_mount_root) != 0;
      case Guard::target_is_symlink:
        return (found_.mode & S_IFMT) == S_IFLNK;
      case Guard::mount_is_another:
        return found_.mount != whole(step.a[1], step.a[2]);
      case Guard::directory_is_removed:
        return found_.is_removed;
      case Guard::upperdir_is_immutable:
        return (found_.attributes & (abi::statx_attr_immutable | abi::statx_attr_append)) != 0;
      case Guard::superblock_is_read_only:
        return (found_.file_system_flags & abi::st_rdonly) != 0;
      case Guard::file_system_is_overlay:
        return found_.file_system == abi::overlay_magic;
      case Guard::target_was_replaced:
      case Guard::file_system_is_no_overlay:
        return found_.file_system != abi::overlay_magic;
      // Other steps find these: news, reserve_target, reserve, remove.
      case Guard::mounts_are_unknown:
      case Guard::target_is_reserved:
      case Guard::directory_is_in_use:
        return false;
    }
    return false;
  };
  return is_at_fault() ? fails_by(guard) : 0;
}

// Finds the report of the last statx before this step about the descriptor in the step's first argument.
bool Execution::find_report(const Step& step, StatxReport* report) const {
  for (const Step* look = &step; look-- != steps_;) {
    if (look->call != Call::statx || look->a[0] != step.a[0] || look->output == 0) continue;
    memcpy(report, block_ + look->output + 8, sizeof *report);
    return true;
  }
  return false;
}

}  // namespace overlayfs
