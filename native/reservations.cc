// The steps that read and write the record of directories in use (in_use.h).
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "in_use.h"
#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

// Opens a directory by a path that may lead through file systems that do not answer. `is_patient`: waits for them;
// otherwise, the kernel must have all of the path in its cache.
int open_in_cache(const char* path, bool is_patient) {
  const int flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  const int cached = sys::openat2(AT_FDCWD, path, flags, 0, abi::resolve_cached);
  return cached < 0 && is_patient ? sys::openat2(AT_FDCWD, path, flags, 0, 0) : cached;
}

}  // namespace

// Comes before a child is made, since the child shares this process's memory and takes none.
void Execution::prepare_reservation() {
  for (int i = 0; i < header().count && reservation_ == nullptr; i++) {
    const Call call = steps_[i].call;
    const bool is_in_child = (header().flags & in_child) != 0;
    if (call == Call::reserve || call == Call::reserve_target || (call == Call::remove && is_in_child)) {
      reservation_ = directories_in_use.prepare(is_in_child);
    }
  }
}

void Execution::end_reservation() {
  if (reservation_ == nullptr) return;
  directories_in_use.end(reservation_);
  reservation_ = nullptr;
}

// reserve(directory, role, against whom, the step that would have made it or 0): as InUse::reserve. Fails if an overlay
// uses the directory, or may use it: Guard::directory_is_in_use. use_of() says which it is.
long Execution::reserve(const Step& step) {
  const int32_t* a = step.a;
  DirectoryKey key;
  long result = find_key(descriptor(a[0]), "", 0, &key);
  if (result < 0) return result;
  const bool is_new = a[3] >= made_by && steps_[a[3] - made_by].result >= 0;
  const auto role = static_cast<Role>(a[1]);
  const bool is_reserved = directories_in_use.reserve(reservation_, key, role, static_cast<Against>(a[2]), is_new);
  return is_reserved ? 0 : fails_by(Guard::directory_is_in_use);
}

// Returns whether another plan of this process now uses an upper or work directory that this plan made. Otherwise
// reserves it, so that no other plan uses it while it is removed.
bool Execution::is_left_to_others(const Step& making) {
  for (int i = 0; i < header().count; i++) {
    const Step& step = steps_[i];
    if (step.call != Call::reserve || step.a[2] == 0 || step.a[3] < made_by || &steps_[step.a[3] - made_by] != &making) {
      continue;
    }
    DirectoryKey key;
    if (find_key(descriptor(making.a[0]), Text(*this, making.a[1]), 0, &key) < 0) return false;
    return !directories_in_use.reserve(reservation_, key, static_cast<Role>(step.a[1]), Against::everybody, true);
  }
  return false;
}

// reserve_target(directory): reserves the directory, which this plan has opened, as a target. Fails if it is a mount
// point, Guard::target_is_mount_point, or if InUse::reserve_target does, Guard::target_is_reserved.
long Execution::reserve_target(const Step& step) {
  abi::Statx found;
  DirectoryKey key;
  long result = find_key(descriptor(step.a[0]), "", 0, &key, &found);
  if (result < 0) return result;
  if (found.attributes & abi::statx_attr_mount_root) return fails_by(Guard::target_is_mount_point);
  // The key includes the mount, since one directory can be a target in several namespaces at once.
  key.device = found.mnt_id | UINT64_C(1) << 63;
  return directories_in_use.reserve_target(reservation_, key) ? 0 : fails_by(Guard::target_is_reserved);
}

// record(root): the overlay whose directories this plan has reserved is mounted. An earlier statx of this descriptor
// has found its id and device.
long Execution::record(const Step& step) {
  StatxReport report;
  if (!find_report(step, &report)) return -EINVAL;
  directories_in_use.is_mounted(reservation_, report.mount, report.device, descriptor(step.a[0]));
  return 0;
}

// sees(target, directory, role, id of the mount in two halves, its device in two halves, whether to wait): another
// program's overlay at this target uses the directory. Fails with EAGAIN if the directory can only be found by a wait.
long Execution::see_use(const Step& step) {
  const int32_t* a = step.a;
  const int directory = open_in_cache(Text(*this, a[1]), a[7] != 0);
  if (directory < 0) return a[7] != 0 ? directory : -EAGAIN;
  DirectoryKey key;
  long result = find_key(directory, "", 0, &key);
  sys::close(directory);
  if (result < 0) return result;
  const uint64_t mount = whole(a[3], a[4]);
  // Without the root, the record has no watch, and lets the kernel decide.
  const int root = open_in_cache(Text(*this, a[0]), false);
  abi::Statx found{};
  const int flags = AT_EMPTY_PATH | abi::at_statx_dont_sync;
  const bool is_there =
      root >= 0 && sys::statx(root, "", flags, abi::statx_mnt_id_unique, &found) == 0 && found.mnt_id == mount;
  directories_in_use.sees(key, static_cast<Role>(a[2]), mount, whole(a[5], a[6]), is_there ? root : -1);
  if (root >= 0) sys::close(root);
  return 0;
}

// use_of(dirfd, path): asks the record for the use of a directory. The result is a Usage; output: the user.
long Execution::ask_use(const Step& step) {
  DirectoryKey key;
  long result = find_key(descriptor(step.a[0]), Text(*this, step.a[1]), 0, &key);
  if (result < 0) return result;
  InUse::User user{};
  const Usage usage = directories_in_use.ask(key, &user);
  if (step.output != 0) memcpy(block_ + step.output + 8, &user, sizeof user);
  return static_cast<long>(usage);
}

// forget(dirfd, path, id of the mount in two halves, its device in two halves): as InUse::forget.
long Execution::forget_use(const Step& step) {
  DirectoryKey key;
  long result = find_key(descriptor(step.a[0]), Text(*this, step.a[1]), 0, &key);
  if (result < 0) return result;
  directories_in_use.forget(key, whole(step.a[2], step.a[3]), whole(step.a[4], step.a[5]));
  return 0;
}

}  // namespace overlayfs
