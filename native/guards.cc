// The steps that look at a file or a file system, and the guards that judge what they find.
#include <errno.h>
#include <fcntl.h>
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
      // Other steps find these: news, reserve_target, reserve, remove, apart.
      case Guard::mounts_are_unknown:
      case Guard::target_is_reserved:
      case Guard::directory_is_in_use:
      case Guard::layers_overlap:
        return false;
    }
    return false;
  };
  return is_at_fault() ? fails_by(guard) : 0;
}

// Adds what is above a directory of the upper's mount to above_.
void Execution::find_above(int directory) {
  abi::Statx found;
  char path[3 * Above::most] = "..";
  uint64_t below = 0;
  for (size_t length = 2;; length += 3) {
    const unsigned mask = abi::statx_ino | abi::statx_mnt_id;
    if (sys::statx(directory, path, abi::at_statx_dont_sync, mask, &found) < 0) break;
    // The root of a mount is inside whatever the kernel finds above it on the file system, which no path leads to.
    if (found.mnt_id != above_.mount || found.ino == below) return;
    for (int i = 0; i < above_.count; i++) {
      if (above_.inodes[i] == found.ino) return;  // so are those further up
    }
    if (above_.count == Above::most || length + 4 > sizeof path) break;
    above_.inodes[above_.count++] = below = found.ino;
    memcpy(path + length, "/..", 4);
  }
  above_.is_whole = false;
}

namespace {

// Asks the kernel for an overlay of the two directories as lower layers, which it refuses if one is inside the other.
bool overlap_as_lowers(int one, int other) {
  char layers[64] = "/proc/self/fd/";
  size_t length = strlen(layers);
  length += write_decimal(layers + length, one);
  memcpy(layers + length, ":/proc/self/fd/", 15);
  length += 15;
  length += write_decimal(layers + length, other);
  layers[length] = '\0';
  const int context = sys::fsopen("overlay", abi::fsopen_cloexec);
  if (context < 0) return false;
  sys::fsconfig(context, abi::fsconfig_set_string, "lowerdir", layers, 0);
  const long result = sys::fsconfig(context, abi::fsconfig_cmd_create, nullptr, nullptr, 0);
  sys::close(context);
  return result == -ELOOP;
}

}  // namespace

// apart(upper, work, dirfd, path of a lower layer): fails if upper or work is inside the layer, Guard::layers_overlap.
// The kernel mounts that, and answers ELOOP when a walk of the overlay comes to the directory.
long Execution::check_apart(const Step& step) {
  const int32_t* a = step.a;
  const int upper = descriptor(a[0]), work = descriptor(a[1]);
  const unsigned mask = abi::statx_ino | abi::statx_mnt_id;
  abi::Statx found;
  if (above_.count < 0) {
    if (sys::statx(upper, "", AT_EMPTY_PATH | abi::at_statx_dont_sync, mask, &found) < 0) return 0;
    above_.device = static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor;
    above_.mount = found.mnt_id;
    above_.count = 0;
    find_above(upper);
    find_above(work);
  }
  // A layer that cannot be looked at is another step's fault.
  if (sys::statx(descriptor(a[2]), Text(*this, a[3]), AT_EMPTY_PATH | abi::at_statx_dont_sync, mask, &found) < 0) return 0;
  if ((static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor) != above_.device) return 0;
  for (int i = 0; i < above_.count; i++) {
    if (above_.inodes[i] == found.ino) return fails_by(Guard::layers_overlap);
  }
  if (found.mnt_id == above_.mount && above_.is_whole) return 0;
  Text path(*this, a[3]);
  const char* name = path.size() == 0 ? "." : static_cast<const char*>(path);
  const int lower = sys::openat2(descriptor(a[2]), name, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, 0);
  if (lower < 0) return 0;
  const bool is_apart = !overlap_as_lowers(lower, upper) && !overlap_as_lowers(lower, work);
  sys::close(lower);
  return is_apart ? 0 : fails_by(Guard::layers_overlap);
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
