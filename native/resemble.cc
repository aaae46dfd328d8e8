// Gives a new directory the attributes of another, as a copy-up does.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

bool begins(const char* text, const char* with) {
  while (*with != '\0' && *text == *with) text++, with++;
  return *with == '\0';
}

// overlayfs' own attributes and labels of security modules describe one directory only; copy-up leaves both out.
bool is_copied(const char* name, bool has_owner) {
  if (begins(name, "trusted.overlay.") || begins(name, "user.overlay.") || begins(name, "security.")) return false;
  // The entries of an access control list count for its owner.
  return has_owner || !begins(name, "system.");
}

constexpr const char* access_list = "system.posix_acl_access";
constexpr const char* default_list = "system.posix_acl_default";

// A user namespace shows every id that it lacks as this one, which it may have too: user_namespaces(7).
bool is_unknown(unsigned id) {
  constexpr unsigned overflow_id = 65534, initial = 0xeffffffd;  // PROC_USER_INIT_INO
  abi::Statx space;
  if (id != overflow_id) return false;
  return sys::statx(AT_FDCWD, "/proc/self/ns/user", 0, 0x100, &space) < 0 || space.ino != initial;
}

// A file system, or a user without privilege, may not take an attribute.
[[gnu::noinline]] void copy_attributes(int from, int to, bool has_owner) {
  char names[1024], value[1024];
  const long size = sys::call(abi::flistxattr, from, names, sizeof names);
  for (const char* name = names; name < names + size; name += strlen(name) + 1) {
    if (!is_copied(name, has_owner)) continue;
    const long length = sys::call(abi::fgetxattr, from, name, value, sizeof value);
    if (length >= 0) sys::call(abi::fsetxattr, to, name, value, length, 0);
  }
}

}  // namespace

// resemble(dirfd, path of the new directory, the step that makes it, path of the other directory, whether to give it
// the owner): gives it owner, mode, attributes and times. If it cannot have the owner, it gets no mode that lets
// anybody in whom the other directory keeps out. Does nothing if the step did not make it.
long Execution::resemble(const Step& step) {
  const int32_t* a = step.a;
  if (steps_[a[2] - made_by].result < 0) return 0;
  constexpr int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
  const int to = sys::openat2(descriptor(a[0]), Text(*this, a[1]), flags | O_NOFOLLOW, 0, 0);
  if (to < 0) return to;
  abi::Statx found;
  constexpr unsigned basic_stats = 0x7ff;  // STATX_BASIC_STATS
  // A directory that cannot be looked at is another step's fault, and one that cannot be read shows no attributes.
  long result = 0;
  if (sys::statx(descriptor(a[0]), Text(*this, a[3]), 0, basic_stats, &found) >= 0) {
    // The directory above may have passed on a list of its own.
    for (const char* list : {access_list, default_list}) sys::call(abi::fremovexattr, to, list);
    const bool has_group = a[4] != 0 && !is_unknown(found.gid) && sys::call(abi::fchown, to, -1, found.gid) >= 0;
    const bool has_owner = has_group && !is_unknown(found.uid) && sys::call(abi::fchown, to, found.uid, -1) >= 0;
    const int from = sys::openat2(descriptor(a[0]), Text(*this, a[3]), flags, 0, 0);
    if (from >= 0) {
      copy_attributes(from, to, has_owner);
      sys::close(from);
    }
    unsigned mode = found.mode & 07777;
    // The one who mounts owns it then, and others count as others.
    if (!has_owner) mode = 0700 | (mode & 01007) | (has_group ? mode & 02070 : mode & (mode & 07) << 3);
    // Without its list, the bits of the group are the list's mask, and the list may keep out some of the others.
    if (sys::getxattr(Text(*this, a[3]), access_list, nullptr, 0) > 0 &&
        sys::call(abi::fgetxattr, to, access_list, nullptr, 0) <= 0) {
      mode &= ~077u;
    }
    result = sys::call(abi::fchmod, to, mode);
    const int64_t times[] = {found.atime.tv_sec, found.atime.tv_nsec, found.mtime.tv_sec, found.mtime.tv_nsec};
    if (result >= 0) sys::call(abi::utimensat, to, nullptr, times, 0);
  }
  sys::close(to);
  return result < 0 ? result : 0;
}

}  // namespace overlayfs
