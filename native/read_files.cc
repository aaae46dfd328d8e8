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
long read_file(const FileRecord& record, const char* path, uint8_t* to) {
  int fd = open_beneath(record.root, path, record.path_size, open_flags | large_file);
  // Something else is there by now.
  if (fd == -ENOENT || fd == -ELOOP || fd == -ENOTDIR || fd == -ENXIO || fd == -EISDIR) return -ESTALE;
  if (fd < 0) return fd;
  abi::Statx found;
  constexpr unsigned mask = abi::statx_type | abi::statx_ino | abi::statx_size | abi::statx_mtime;
  long result = sys::statx(fd, "", AT_EMPTY_PATH, mask, &found);
  if (result >= 0) {
    const bool is_same = (found.mode & S_IFMT) == S_IFREG && found.ino == record.inode && found.size == record.file_size &&
                         found.mtime.tv_sec == record.mtime && found.mtime.tv_nsec == record.mtime_ns;
    if (!is_same) result = -ESTALE;
  }
  for (uint64_t done = 0; result >= 0 && done < record.data_size;) {
    result = sys::call(abi::pread64, fd, to + done, static_cast<size_t>(record.data_size - done),
                       static_cast<int64_t>(record.offset + done));
    if (result == 0) result = -ESTALE;
    if (result > 0) done += static_cast<uint64_t>(result);
  }
  sys::close(fd);
  return result < 0 ? result : 0;
}

}  // namespace

uint64_t room_for_files(const char* batch, size_t size) {
  uint64_t room = 0;
  for (const char* at = batch; at < batch + size;) {
    FileRecord record;
    memcpy(&record, at, sizeof record);
    room += record.bytes_size + record.data_size;
    at += record.size;
  }
  return room;
}

long read_files(const char* batch, size_t size, uint8_t* to, uint64_t* done) {
  *done = 0;
  for (const char* at = batch; at < batch + size; ++*done) {
    FileRecord record;
    memcpy(&record, at, sizeof record);
    const char* bytes = at + sizeof record;
    memcpy(to, bytes, record.bytes_size);
    to += record.bytes_size;
    if (record.root >= 0) {
      long result = read_file(record, bytes + record.bytes_size, to);
      if (result < 0) return result;
      to += record.data_size;
    }
    at += record.size;
  }
  return 0;
}

// read_files(batch); output: the place of the data, and the number of records that are done.
long Execution::read_files(const Step& step) {
  Text batch(*this, step.a[0]);
  uint8_t* to = add_data(step, room_for_files(batch, batch.size()));
  uint64_t done;
  long result = overlayfs::read_files(batch, batch.size(), to, &done);
  memcpy(block_ + step.output + 16, &done, sizeof done);
  return result;
}

}  // namespace overlayfs
