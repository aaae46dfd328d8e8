// One thin function a system call. Each returns the kernel's answer: the result, or minus the errno. A call that a
// signal interrupted before it did anything is repeated.
#pragma once

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

#include "abi.h"

namespace overlayfs::sys {

template <typename... Args>
inline long call(abi::Number number, Args... args) {
  for (;;) {
    long result = ::syscall(number, args...);
    if (result >= 0) return result;
    if (errno != EINTR) return -errno;
  }
}

inline int openat2(int dirfd, const char* path, uint64_t flags, uint64_t mode, uint64_t resolve) {
  abi::OpenHow how{flags, mode, resolve};
  // Below a root, the kernel gives up at ".." if anything on the machine is mounted or renamed meanwhile, openat2(2).
  constexpr int TRIES = 1000;
  long result;
  int tries = 0;
  do result = call(abi::openat2, dirfd, path, &how, sizeof how);
  while (result == -EAGAIN && resolve != 0 && ++tries < TRIES);
  // A seccomp filter that does not know the call answers with these errnos. openat(2) does the same if there are no
  // RESOLVE_ flags.
  if ((result == -ENOSYS || result == -EPERM) && resolve == 0) {
    result = call(abi::openat, dirfd, path, static_cast<int>(flags), static_cast<unsigned>(mode));
  }
  return static_cast<int>(result);
}

// Never repeated after EINTR: Linux has released the descriptor by then.
inline void close(int fd) { ::syscall(abi::close, fd); }

inline long read(int fd, void* buffer, size_t size) { return call(abi::read, fd, buffer, size); }

inline size_t page_size() {
  static size_t size = 0;  // every thread that finds it out finds the same
  size_t known = __atomic_load_n(&size, __ATOMIC_RELAXED);
  if (known == 0) __atomic_store_n(&size, known = static_cast<size_t>(sysconf(_SC_PAGESIZE)), __ATOMIC_RELAXED);
  return known;
}

inline int fsopen(const char* type, unsigned flags) {
  return static_cast<int>(call(abi::fsopen, type, flags));
}

inline long fsconfig(int fd, unsigned command, const char* key, const void* value, int aux) {
  return call(abi::fsconfig, fd, command, key, value, aux);
}

inline int fsmount(int fd, unsigned flags, unsigned attributes) {
  return static_cast<int>(call(abi::fsmount, fd, flags, attributes));
}

inline int open_tree(int dirfd, const char* path, unsigned flags) {
  return static_cast<int>(call(abi::open_tree, dirfd, path, flags));
}

inline long move_mount(int from, const char* from_path, int to, const char* to_path, unsigned flags) {
  return call(abi::move_mount, from, from_path, to, to_path, flags);
}

inline long mount_setattr(int dirfd, const char* path, unsigned flags, abi::MountAttr attributes) {
  return call(abi::mount_setattr, dirfd, path, flags, &attributes, sizeof attributes);
}

inline long mount(const char* source, const char* target, const char* type, unsigned long flags,
                  const void* data) {
  return call(abi::mount, source, target, type, flags, data);
}

inline long umount2(const char* target, int flags) { return call(abi::umount2, target, flags); }

inline long fstatfs(int fd, abi::Statfs* to) { return call(abi::fstatfs, fd, to); }

inline long statfs(const char* path, abi::Statfs* to) { return call(abi::statfs, path, to); }

inline long statx(int dirfd, const char* path, int flags, unsigned mask, abi::Statx* to) {
  return call(abi::statx, dirfd, path, flags, mask, to);
}

inline long listmount(const abi::MountIdRequest* request, uint64_t* ids, size_t count) {
  return call(abi::listmount, request, ids, count, 0U);
}

inline long statmount(const abi::MountIdRequest* request, abi::Statmount* to, size_t size) {
  return call(abi::statmount, request, to, size, 0U);
}

// Returns 0 if a superblock has the device number, EINVAL if none has.
inline long ustat(uint64_t device) {
  uint64_t report[8];
  const uint64_t major = device >> 32, minor = device & 0xffffffff;
  return call(abi::ustat, (minor & 0xff) | major << 8 | (minor & ~uint64_t{0xff}) << 12, report);
}

inline long mkdirat(int dirfd, const char* path, unsigned mode) {
  return call(abi::mkdirat, dirfd, path, mode);
}

inline long mknodat(int dirfd, const char* path, unsigned mode, unsigned device) {
  return call(abi::mknodat, dirfd, path, mode, device);
}

inline long linkat(int from, const char* from_path, int to, const char* to_path, int flags) {
  return call(abi::linkat, from, from_path, to, to_path, flags);
}

inline long unlinkat(int dirfd, const char* path, int flags) {
  return call(abi::unlinkat, dirfd, path, flags);
}

inline long renameat2(int from, const char* from_path, int to, const char* to_path, unsigned flags) {
  return call(abi::renameat2, from, from_path, to, to_path, flags);
}

inline long setxattr(const char* path, const char* name, const void* value, size_t size, int flags) {
  return call(abi::setxattr, path, name, value, size, flags);
}

inline long lgetxattr(const char* path, const char* name, void* value, size_t size) {
  return call(abi::lgetxattr, path, name, value, size);
}

inline long getxattr(const char* path, const char* name, void* value, size_t size) {
  return call(abi::getxattr, path, name, value, size);
}

inline long faccessat2(int dirfd, const char* path, int mode, int flags) {
  return call(abi::faccessat2, dirfd, path, mode, flags);
}

inline long readlinkat(int dirfd, const char* path, void* target, size_t size) {
  return call(abi::readlinkat, dirfd, path, target, size);
}

inline long name_to_handle_at(int dirfd, const char* path, abi::FileHandle* to, int* mount_id, int flags) {
  return call(abi::name_to_handle_at, dirfd, path, to, mount_id, flags);
}

inline int open_by_handle_at(int mount, const abi::FileHandle* handle, int flags) {
  return static_cast<int>(call(abi::open_by_handle_at, mount, handle, flags));
}

// Returns 0 if the two threads have one table of descriptors, a positive number if they do not.
inline int kcmp_files(int one, int other) {
  constexpr int kcmp_type_files = 2;
  return static_cast<int>(call(abi::kcmp, one, other, kcmp_type_files, 0, 0));
}

inline long getdents64(int fd, void* buffer, size_t size) {
  return call(abi::getdents64, fd, buffer, size);
}

}  // namespace overlayfs::sys
