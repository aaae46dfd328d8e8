// The steps of a plan: the system call behind each, and what it writes to the step's output.
#include <errno.h>
#include <string.h>
#include <time.h>

#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

// The system calls whose refusal by a seccomp filter the library names. With arguments that are all wrong they do nothing.
#define OVERLAYFS_PROBED(X) \
  X(openat2) X(fsopen) X(fsconfig) X(fsmount) X(fspick) X(open_tree) X(open_tree_attr) X(move_mount) \
  X(mount_setattr) X(mount) X(umount2) X(unshare) X(setns) X(statmount) X(listmount) X(statx) X(statfs) \
  X(fstatfs) X(fanotify_init) X(fanotify_mark) X(name_to_handle_at) X(open_by_handle_at) X(faccessat2) \
  X(mkdirat) X(mknodat) X(linkat) X(symlinkat) X(unlinkat) X(renameat2) X(readlinkat) X(utimensat) X(fchmod) \
  X(fchown) X(fchownat) X(ftruncate) X(flock) X(fsync) X(syncfs) X(setxattr) X(getxattr) \
  X(lgetxattr) X(fgetxattr) X(lsetxattr) X(fsetxattr) X(lremovexattr) X(fremovexattr) X(flistxattr) \
  X(llistxattr) X(fchmodat) X(chdir) X(fchdir) X(chroot) X(pivot_root) X(sethostname) X(capget) \
  X(capset) X(setgroups) X(setresuid) X(setresgid) X(signalfd4) X(setpgid) X(memfd_create) X(sendfile) X(execveat)

long number_of(const char* name) {
#define OVERLAYFS_NUMBER(call) \
  if (strcmp(name, #call) == 0) return abi::call;
  OVERLAYFS_PROBED(OVERLAYFS_NUMBER)
#undef OVERLAYFS_NUMBER
  return -1;
}

}  // namespace


// notify(address, message): sends a datagram to a socket at a path, or to an abstract one, which begins with '@'.
long Execution::notify(Step& step) {
  Text address(*this, step.a[0]);
  Text message(*this, step.a[1]);
  abi::UnixAddress to{abi::af_unix, {}};
  if (address.size() == 0 || address.size() >= sizeof to.path) return -ENAMETOOLONG;
  memcpy(to.path, address, address.size());
  if (to.path[0] == '@') to.path[0] = 0;
  auto length = static_cast<uint32_t>(offsetof(abi::UnixAddress, path) + address.size());
  long fd = sys::call(abi::socket, abi::af_unix, abi::sock_dgram_cloexec, 0);
  if (fd < 0) return fd;
  long result = sys::call(abi::sendto, fd, static_cast<const char*>(message), message.size(), 0, &to, length);
  sys::close(static_cast<int>(fd));
  return result;
}

long Execution::run(Step& step) {
  const int32_t* a = step.a;
  auto fd = [&](int i) { return descriptor(a[i]); };
  auto unsigned_at = [&](int i) { return static_cast<uint32_t>(a[i]); };
  switch (step.call) {
    case Call::openat2:
      return sys::openat2(fd(0), Text(*this, a[1]), unsigned_at(2), 0, unsigned_at(3));
    case Call::close: {
      Step* maker = a[0] >= made_by ? &steps_[a[0] - made_by] : nullptr;
      if (maker != nullptr) {
        close_result(*maker);
      } else {
        sys::close(a[0]);
      }
      return 0;
    }
    case Call::read:
      return sys::read(fd(0), block_ + step.output + 8, static_cast<size_t>(a[1]));
    case Call::fsopen:
      return sys::fsopen(Text(*this, a[0]), unsigned_at(1));
    case Call::fsconfig:
      return sys::fsconfig(fd(0), unsigned_at(1), Text(*this, a[2]), Text(*this, a[3]), fd(4));
    case Call::fsmount:
      return sys::fsmount(fd(0), unsigned_at(1), unsigned_at(2));
    case Call::fspick:
      return sys::call(abi::fspick, fd(0), static_cast<const char*>(Text(*this, a[1])), unsigned_at(2));
    case Call::fstatfs: {
      abi::Statfs found;
      long result = sys::fstatfs(fd(0), &found);
      return look_at_file_system(step, result, found);
    }
    case Call::statfs: {
      abi::Statfs found;
      long result = sys::statfs(Text(*this, a[0]), &found);
      return look_at_file_system(step, result, found);
    }
    case Call::statx:
      return look_at_file(step);
    case Call::guard:
      return check_guard(step);
    case Call::mount_setattr:
      return sys::mount_setattr(fd(0), Text(*this, a[1]), unsigned_at(2),
                                {unsigned_at(3), unsigned_at(4), unsigned_at(5),
                                 static_cast<uint64_t>(fd(6))});
    case Call::open_tree:
      return sys::open_tree(fd(0), Text(*this, a[1]), unsigned_at(2));
    case Call::move_mount:
      remember_mount(step);
      return sys::move_mount(fd(0), Text(*this, a[1]), fd(2), Text(*this, a[3]), unsigned_at(4));
    case Call::mount: {
      Text data(*this, a[4]);
      // The kernel would cut off what exceeds a page, and use the rest.
      if (data.size() >= sys::page_size()) return -E2BIG;
      return sys::mount(Text(*this, a[0]), Text(*this, a[1]), Text(*this, a[2]), unsigned_at(3),
                        static_cast<const char*>(data));
    }
    case Call::umount2:
      return sys::umount2(Text(*this, a[0]), a[1]);
    case Call::mkdirat:
      return sys::mkdirat(fd(0), Text(*this, a[1]), unsigned_at(2));
    case Call::resemble:
      return resemble(step);
    case Call::mknodat:
      return sys::mknodat(fd(0), Text(*this, a[1]), unsigned_at(2), unsigned_at(3));
    case Call::linkat:
      return sys::linkat(fd(0), Text(*this, a[1]), fd(2), Text(*this, a[3]), a[4]);
    case Call::unlinkat:
      // unlinkat(dirfd, path, flags, a step): does nothing if that step failed.
      if (a[3] >= made_by && steps_[a[3] - made_by].result < 0) return 0;
      return sys::unlinkat(fd(0), Text(*this, a[1]), a[2]);
    case Call::renameat2:
      return sys::renameat2(fd(0), Text(*this, a[1]), fd(2), Text(*this, a[3]), unsigned_at(4));
    case Call::setxattr: {
      Text value(*this, a[2]);
      return sys::setxattr(Text(*this, a[0]), Text(*this, a[1]), static_cast<const char*>(value),
                           value.size(), a[3]);
    }
    // These write the value to the output, as far as there is room.
    case Call::getxattr:
      return sys::getxattr(Text(*this, a[0]), Text(*this, a[1]), block_ + step.output + 8, unsigned_at(2));
    case Call::lgetxattr:
      return sys::lgetxattr(Text(*this, a[0]), Text(*this, a[1]), block_ + step.output + 8, unsigned_at(2));
    case Call::readlinkat:
      return sys::readlinkat(fd(0), Text(*this, a[1]), block_ + step.output + 8, unsigned_at(2));
    case Call::faccessat2:
      return sys::faccessat2(fd(0), Text(*this, a[1]), a[2], a[3]);
    case Call::name_to_handle_at:
      return get_handle(step);
    case Call::open_by_handle_at:
      return open_handle(step);
    case Call::reserve:
      return reserve(step);
    case Call::reserve_target:
      return reserve_target(step);
    case Call::apart:
      return check_apart(step);
    case Call::record:
      return record(step);
    case Call::sees:
      return see_use(step);
    case Call::use_of:
      return ask_use(step);
    case Call::forget:
      return forget_use(step);
    case Call::news:
      return check_news(step);
    case Call::seen:
      return see_mounts(step);
    case Call::whiteout:
      return make_whiteout(fd(0), Text(*this, a[1]));
    case Call::replace:
      return replace_with_whiteout(fd(0), Text(*this, a[1]), Text(*this, a[2]), a[3] != 0);
    // remove(dirfd, path, only what the kernel makes, limit, room for a path, whether directories in use are spared, a
    // step): does nothing if that step failed; output: the path of the entry that could not be removed
    case Call::remove:
      if (a[6] >= made_by && steps_[a[6] - made_by].result < 0) return 0;
      return remove_tree(fd(0), Text(*this, a[1]),
                         {.opens_up = true,
                          .only_kernels = a[2] != 0,
                          .spares_used = a[5] != 0,
                          .asker = reservation_,
                          .limit = unsigned_at(3),
                          .path = reinterpret_cast<char*>(block_) + step.output + 8,
                          .room = static_cast<size_t>(a[4])});
    case Call::scan:
      return scan(step);
    case Call::write_tree:
      return write_tree(step);
    // A plan on the caller's thread would move that thread for good.
    case Call::unshare:
      return may_change_namespaces() ? sys::call(abi::unshare, unsigned_at(0)) : -EDEADLK;
    case Call::setns: {
      if (!may_change_namespaces()) return -EDEADLK;
      long result = sys::call(abi::setns, fd(0), a[1]);
      if (result >= 0 && (header().flags & own_thread) && !(header().flags & in_child)) has_joined_ = true;
      return result;
    }
    case Call::write:
      return write_file(step);
    case Call::userns:
      return make_user_namespace(step);
    case Call::userns_by:
      return make_user_namespace_by_programs(step);
    case Call::userns_own:
      return make_own_user_namespace(step);
    case Call::chdir:
      return sys::call(abi::chdir, static_cast<const char*>(Text(*this, a[0])));
    // pivot(mount): makes it the root of the mount namespace, without the other mounts. They stay below it where the
    // kernel does not exchange the root: in an initial RAM file system, or under a seccomp filter.
    case Call::pivot: {
      long result = sys::call(abi::fchdir, fd(0));
      if (result < 0 || sys::call(abi::pivot_root, ".", ".") < 0) return result;
      return sys::umount2(".", abi::mnt_detach);
    }
    case Call::flock:
      return sys::call(abi::flock, fd(0), a[1]);
    case Call::fsync:
      return sys::call(abi::fsync, fd(0));
    // set_project(fd, project id): gives it to a directory, and to what is made in it.
    case Call::set_project: {
      abi::FsXattr attributes;
      long result = sys::call(abi::ioctl, fd(0), abi::fs_ioc_fsgetxattr, &attributes);
      if (result < 0) return result;
      attributes.flags |= abi::fs_xflag_projinherit;
      attributes.project = unsigned_at(1);
      return sys::call(abi::ioctl, fd(0), abi::fs_ioc_fssetxattr, &attributes);
    }
    // set_flags(fd, FS_*_FL): ioctl_iflags(2)
    case Call::set_flags: {
      unsigned flags = unsigned_at(1);
      return sys::call(abi::ioctl, fd(0), abi::fs_ioc_setflags, &flags);
    }
    // quotactl_fd(fd, command, id); output: struct if_dqblk
    case Call::quotactl_fd:
      return sys::call(abi::quotactl_fd, fd(0), unsigned_at(1), unsigned_at(2), block_ + step.output + 8);
    case Call::fchownat:
      return sys::call(abi::fchownat, fd(0), static_cast<const char*>(Text(*this, a[1])), unsigned_at(2),
                       unsigned_at(3), a[4]);
    case Call::fanotify_init:
      return sys::call(abi::fanotify_init, unsigned_at(0), unsigned_at(1));
    case Call::listmount:
      return list_mounts(step);
    case Call::statmount:
      return get_mount(step);
    // Probes for the call: without arguments it fails.
    case Call::open_tree_attr:
      return sys::call(abi::open_tree_attr, -1, nullptr, 0U, nullptr, 0L);
    case Call::fanotify_mark:
      return sys::call(abi::fanotify_mark, fd(0), unsigned_at(1), static_cast<uint64_t>(unsigned_at(2)), fd(3), nullptr);
    case Call::read_file:
      return read_file(step);
    case Call::walk:
      return walk(step);
    case Call::examine:
      return examine(step);
    case Call::compare:
      return compare(step);
    case Call::read_files:
      return read_files(step);
    case Call::hash:
      return hash(step);
    case Call::mount_ids:
      return read_mount_ids(step);
    case Call::mount_table:
      return read_mount_table(step);
    case Call::mount_of:
      return read_mount_of(step);
    case Call::namespace_tables:
      return read_namespace_tables(step);
    // Done before the plan is performed (native/poller.h).
    case Call::wait_for:
      return 0;
    case Call::notify:
      return notify(step);
    // probe(name): what the kernel says to arguments that are all wrong. Only a seccomp filter refuses such a call.
    // ENODATA: a name that the list above lacks.
    case Call::probe: {
      long number = number_of(Text(*this, a[0]));
      return number < 0 ? -ENODATA : sys::call(static_cast<abi::Number>(number), -1L, -1L, -1L, -1L, -1L, -1L);
    }
    // exit_after(milliseconds, code): ends the process, unless it has ended by then.
    case Call::exit_after: {
      timespec left{a[0] / 1000, a[0] % 1000 * 1000000};
      sys::call(abi::ppoll, nullptr, 0, &left, nullptr, 0);
      return sys::call(abi::exit_group, a[1]);
    }
  }
  return -ENOSYS;
}
// scan(dirfd, path, mask, ids of 64 bits each, room for names, thread, leader); output: the names. Nothing is scanned if
// the thread has the same table of descriptors as its leader.
long Execution::scan(const Step& step) {
  if (step.a[5] != 0 && sys::kcmp_files(step.a[5], step.a[6]) == 0) return 0;
  Text ids(*this, step.a[3]);
  return names_on_mounts(descriptor(step.a[0]), Text(*this, step.a[1]), static_cast<uint32_t>(step.a[2]), ids,
                         ids.size(), reinterpret_cast<char*>(block_) + step.output + 8,
                         static_cast<size_t>(step.a[4]));
}

// Makes room in the data for what a step has found, and writes its place to the step's output.
uint8_t* Execution::add_data(const Step& step, size_t size) {
  size_t offset = (data_.size() + 7) & ~size_t{7};
  data_.resize(offset + size);
  uint32_t place[] = {static_cast<uint32_t>(offset), static_cast<uint32_t>(size)};
  memcpy(block_ + step.output + 8, place, sizeof place);
  return data_.data() + offset;
}

// name_to_handle_at(dirfd, path, flags); output: the handle's type, its size, its bytes.
long Execution::get_handle(const Step& step) {
  abi::FileHandle handle{abi::max_handle_size, 0, {}};
  int mount_id;
  long result = sys::name_to_handle_at(descriptor(step.a[0]), Text(*this, step.a[1]), &handle, &mount_id, step.a[2]);
  if (result < 0) return result;
  uint8_t* to = block_ + step.output + 8;
  uint64_t head[] = {static_cast<uint32_t>(handle.type), handle.size};
  memcpy(to, head, sizeof head);
  memcpy(to + sizeof head, handle.bytes, handle.size);
  return 0;
}

// open_by_handle_at(a descriptor on its file system, type, bytes, flags)
long Execution::open_handle(const Step& step) {
  Text bytes(*this, step.a[2]);
  if (bytes.size() > abi::max_handle_size) return -EINVAL;
  abi::FileHandle handle{static_cast<uint32_t>(bytes.size()), step.a[1], {}};
  memcpy(handle.bytes, static_cast<const char*>(bytes), bytes.size());
  return sys::open_by_handle_at(descriptor(step.a[0]), &handle, step.a[3]);
}

// statmount(id in two halves, mask, room); output: struct statmount. Without arguments it fails.
long Execution::get_mount(const Step& step) {
  const uint64_t id = whole(step.a[0], step.a[1]);
  abi::MountIdRequest request{abi::mount_id_request_6_8, 0, id, static_cast<uint32_t>(step.a[2]), 0};
  auto* to = step.output == 0 ? nullptr : reinterpret_cast<abi::Statmount*>(block_ + step.output + 8);
  return sys::statmount(&request, to, static_cast<size_t>(step.a[3]));
}

}  // namespace overlayfs
