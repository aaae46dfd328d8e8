#include "read_files.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "abi.h"
#include "beneath.h"
#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

// O_LARGEFILE is 0 in libc's headers, and openat2(2) does not add it.
#if defined(__aarch64__)
constexpr uint64_t large_file = 0400000;
#else
constexpr uint64_t large_file = 0100000;
#endif
constexpr uint64_t open_flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;

// The directory of the last file: the next one is mostly in it too.
class Parent {
 public:
  ~Parent() { close(); }

  // Returns a descriptor, or minus the errno.
  int open(int root, const char* path, uint32_t size) {
    if (size == 0) return root;
    if (fd_ >= 0 && root == root_ && size == size_ && memcmp(path, path_, size) == 0) return fd_;
    close();
    fd_ = open_beneath(root, path, size, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    root_ = root;
    path_ = path;
    size_ = size;
    return fd_;
  }

 private:
  void close() {
    if (fd_ >= 0) sys::close(fd_);
    fd_ = -1;
  }

  int fd_ = -1, root_ = -1;
  const char* path_ = nullptr;
  uint32_t size_ = 0;
};

// Returns -ESTALE if the file is not as the walk has seen it.
long check_file(int fd, const FileRecord& record) {
  abi::Statx found;
  constexpr unsigned mask = abi::statx_type | abi::statx_ino | abi::statx_size | abi::statx_mtime;
  const long result = sys::statx(fd, "", AT_EMPTY_PATH, mask, &found);
  if (result < 0) return result;
  const bool is_same = (found.mode & S_IFMT) == S_IFREG && found.ino == record.inode && found.size == record.file_size &&
                       found.mtime.tv_sec == record.mtime && found.mtime.tv_nsec == record.mtime_ns;
  return is_same ? 0 : -ESTALE;
}

long read_file(const FileRecord& record, const char* path, Parent& parent, uint8_t* to) {
  uint32_t slash = record.path_size;
  while (slash > 0 && path[slash - 1] != '/') slash--;
  int fd = parent.open(record.root, path, slash == 0 ? 0 : slash - 1);
  if (fd >= 0) fd = open_beneath(fd, path + slash, record.path_size - slash, open_flags | large_file);
  // Something else is there by now.
  if (fd == -ENOENT || fd == -ELOOP || fd == -ENOTDIR || fd == -ENXIO || fd == -EISDIR) return -ESTALE;
  if (fd < 0) return fd;
  long result = 0;
  for (uint64_t done = 0; result >= 0 && done < record.data_size;) {
    result = sys::call(abi::pread64, fd, to + done, static_cast<size_t>(record.data_size - done),
                       static_cast<int64_t>(record.offset + done));
    if (result == 0) result = -ESTALE;
    if (result > 0) done += static_cast<uint64_t>(result);
  }
  // The bytes count only if this is the file that the walk has seen, unchanged. A pipe in its place cannot be read.
  const long check = check_file(fd, record);
  if (check < 0) result = check;
  sys::close(fd);
  return result < 0 ? result : 0;
}

}  // namespace

long read_files(const char* batch, size_t size, uint8_t* to, uint64_t* done) {
  *done = 0;
  Parent parent;
  for (const char* at = batch; at < batch + size; ++*done) {
    FileRecord record;
    memcpy(&record, at, sizeof record);
    long result = read_file(record, at + sizeof record, parent, to + record.at);
    if (result < 0) return result;
    memset(to + record.at + record.data_size, 0, record.padding);
    at += record.size;
  }
  return 0;
}

// read_files(batch) fills the buffer that the caller has lent. Output: the number of records that are done.
long Execution::read_files(const Step& step) {
  Text batch(*this, step.a[0]);
  uint64_t done;
  long result = overlayfs::read_files(batch, batch.size(), lent_[0].at, &done);
  memcpy(block_ + step.output + 8, &done, sizeof done);
  return result;
}

}  // namespace overlayfs
