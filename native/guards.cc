// The steps that look at a file or a file system, and fail if it is not as the plan expects.
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

// statfs(path, refused f_flags, refused f_type, wanted f_type or 0), fstatfs(descriptor, …); output: f_type, f_flags,
// f_blocks, f_bavail, f_files, f_ffree. EROFS: it has a refused flag; EPERM: it is of the refused type; ESTALE: it is
// not of the wanted type.
long Execution::check_statfs(const Step& step, long result, const abi::Statfs& found) {
  if (result < 0) return result;
  if (step.output != 0) {
    int64_t report[] = {found.type,
                        found.flags,
                        static_cast<int64_t>(found.blocks),
                        static_cast<int64_t>(found.bavail),
                        static_cast<int64_t>(found.files),
                        static_cast<int64_t>(found.ffree)};
    memcpy(block_ + step.output + 8, report, sizeof report);
  }
  if (step.a[3] != 0 && found.type != static_cast<int64_t>(static_cast<uint32_t>(step.a[3]))) return -ESTALE;
  if (found.flags & static_cast<uint32_t>(step.a[1])) return -EROFS;
  return step.a[2] != 0 && found.type == static_cast<int64_t>(static_cast<uint32_t>(step.a[2])) ? -EPERM : 0;
}

// statx(dirfd, path, flags, mask, refused attributes, wanted mount id in two halves or 0, wanted S_IFMT or 0 or minus a
// refused one); output: see below. ENOTDIR: it is of another type; ELOOP: it is of the refused type; EBUSY: it has a
// refused attribute; ESTALE: it is on another mount; ENOENT: the step has no output, asks for the number of links, and
// finds none, so the file has been removed.
long Execution::check_statx(const Step& step) {
  const int32_t* a = step.a;
  abi::Statx found;
  long result = sys::statx(descriptor(a[0]), Text(*this, a[1]), a[2], static_cast<uint32_t>(a[3]), &found);
  if (result < 0) return result;
  if (step.output != 0) {
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
  }
  int type = found.mode & S_IFMT;
  if (a[7] > 0 && type != a[7]) return -ENOTDIR;
  if (a[7] < 0 && type == -a[7]) return -ELOOP;
  if (found.attributes & static_cast<uint32_t>(a[4])) return -EBUSY;
  if (step.output == 0 && (a[3] & found.mask & abi::statx_nlink) && found.nlink == 0) return -ENOENT;
  const uint64_t wanted = whole(a[5], a[6]);
  return wanted != 0 && wanted != found.mnt_id ? -ESTALE : 0;
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
