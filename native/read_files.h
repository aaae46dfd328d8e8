// Reads the data of many files into one block of memory: the pieces of an archive.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace overlayfs {

// A batch is a sequence of these. After each come the path, a NUL, and padding to a multiple of 8 bytes.
// lib/archives/read-files.ts writes them.
struct FileRecord {
  uint32_t size;         // with what follows
  int32_t root;          // the descriptor below which the path is
  uint32_t at;           // the place of the data in the block
  uint32_t path_size;    // without the NUL
  uint64_t offset;       // the place of the part that is read
  uint64_t data_size;
  // The file that is meant. If it is another one by now, or has changed, the batch fails with ESTALE.
  uint64_t inode, file_size;
  int64_t mtime;
  uint32_t mtime_ns;
  uint32_t padding;      // zeros that follow the data
};
static_assert(sizeof(FileRecord) == 64);

// Returns 0, or minus the errno of the first file that failed;
// DONE is the number of records before it.
long read_files(const char* batch, size_t size, uint8_t* to, uint64_t* done);

}  // namespace overlayfs
