// Reads the data of files into one block, between bytes that are there already: the pieces of an archive.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace overlayfs {

// A batch is a sequence of these. After each come the bytes that go before the file's data, the path and a NUL; then
// padding to a multiple of 8 bytes. lib/layers/read-files.ts writes them.
struct FileRecord {
  uint32_t size;         // with what follows
  int32_t root;          // the descriptor below which the path is; -1: no file, only the bytes
  uint32_t bytes_size;
  uint32_t path_size;    // without the NUL
  uint64_t offset;       // the place of the part that is read
  uint64_t data_size;
  // The file that is meant. If it is another one by now, or has changed, the batch fails with ESTALE.
  uint64_t inode, file_size;
  int64_t mtime;
  uint32_t mtime_ns, unused;
};
static_assert(sizeof(FileRecord) == 64);

// Fills TO, which has the room for all bytes and data. Returns 0, or minus the errno of the first file that failed;
// DONE is the number of records before it.
long read_files(const char* batch, size_t size, uint8_t* to, uint64_t* done);

// The size of all bytes and data.
uint64_t room_for_files(const char* batch, size_t size);

}  // namespace overlayfs
