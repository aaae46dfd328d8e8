// Writes trees: performs a batch of operations in order, below one root directory and, if the batch needs them, other
// roots. TypeScript decides on the operations (lib/trees/write.ts); this code performs them and reports the first one
// that fails.
//
// A batch is a sequence of records. These parts follow each record without gaps: the path and a NUL, the other text and
// a NUL, the extended attributes, the data, and padding to a multiple of 8 bytes. Data that is lent by the caller stays
// in its buffer, and the record holds its offset there, 64 bits. A path is relative to its root and
// has no `..`; an empty path is the root itself.
//
// An extended attribute consists of two numbers of 16 bits (the size of its name with a NUL, and the errors that it
// tolerates), one of 32 bits (the size of its value, or `removed_attribute`), the name with a NUL, and the value.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "plan.h"

namespace overlayfs {

// The kinds of operations. lib/trees/write.ts learns the numbers from the addon.
#define OVERLAYFS_OPERATIONS(X) \
  /* sets those of owner, attributes, mode and times that the record has, on any file */ \
  X(metadata)                   \
  X(directory)                  \
  /* makes a regular file with the record's data */ \
  X(file)                       \
  /* writes the data into an existing regular file, at offset `number` */ \
  X(data)                       \
  /* sets the size of an existing regular file to `number` */ \
  X(truncate)                   \
  /* makes a copy of a regular file, whose inode must be `number`, size `data_size`, and mtime that of the record */ \
  X(copy)                       \
  /* makes a hard link to the other path */ \
  X(link)                       \
  /* makes a symbolic link with the other text as its target */ \
  X(symlink)                    \
  /* makes a FIFO, device or socket: `mode` has the type, `number` the device */ \
  X(node)                       \
  /* makes a character device 0:0; all in a batch share an inode if the file system allows it */ \
  X(whiteout)                   \
  /* removes any entry, a directory with its contents; succeeds if there is none */ \
  X(remove)                     \
  /* removes a directory if it is empty; succeeds if it is not empty or does not exist */ \
  X(rmdir)                      \
  /* renames the other path */  \
  X(rename)                     \
  /* writes the file system of the root to its disk, syncfs(2) */ \
  X(sync)

enum class Kind : uint16_t {
#define OVERLAYFS_KIND(name) name,
  OVERLAYFS_OPERATIONS(OVERLAYFS_KIND)
#undef OVERLAYFS_KIND
};

// The flags of a record.
#define OVERLAYFS_OPERATION_FLAGS(X) \
  X(owner, 1)    /* sets `uid` and `gid` */ \
  X(mode, 2)     /* sets `mode` */ \
  X(times, 4)    /* sets the times */ \
  X(replace, 8)  /* first removes an existing entry, but a directory keeps an existing directory */ \
  X(atomic, 16)  /* makes the entry in the staging directory and renames it to its place */ \
  X(other, 32)   /* the path is below the root with the number `other` */ \
  X(from_other, 64)  /* the other path is below the root with the number `other` */ \
  X(linked, 128) /* the file has other links; the kernel keeps the old name if the new name is one of them */ \
  X(existing, 256)  /* for a directory: keeps an existing one and sets its metadata */ \
  X(exact, 512)  /* removes the attributes that the record does not have */ \
  X(tree, 1024)  /* for a rename: the entry is a directory */ \
  X(synced, 2048)  /* for a file or a copy: it is on the disk before it gets its name, fsync(2) */

namespace wants {
enum Flag : uint16_t {
#define OVERLAYFS_FLAG(name, bit) name = bit,
  OVERLAYFS_OPERATION_FLAGS(OVERLAYFS_FLAG)
#undef OVERLAYFS_FLAG
};
}  // namespace wants

// The part of an operation that failed. lib/trees/written.ts has the system call of each.
#define OVERLAYFS_STAGES(X) X(parent) X(create) X(data) X(owner) X(xattr) X(mode) X(times) X(place) X(remove) X(source) X(sync)

enum class Stage : uint64_t {
#define OVERLAYFS_STAGE(name) name,
  OVERLAYFS_STAGES(OVERLAYFS_STAGE)
#undef OVERLAYFS_STAGE
};

struct WriteOptions {
  int root;
  const Lent* lent;     // buffers with data
  uint32_t first_lent;  // the number of the first one
  const char* others;   // the descriptors of other roots, 32 bits each
  const char* staging;  // a directory below the first root, in which `atomic` makes entries
  bool in_root;         // follows symbolic links in paths, inside the root; otherwise a path must have none
  bool has_own_umask;   // the thread shares its umask with no other
  const uint32_t* stop; // the batch ends before its next operation once this word has `stop_bit`
  uint32_t stop_bit;
};

// Filled in on success and on failure.
struct WriteReport {
  uint64_t done;       // complete operations; on failure, the next one failed
  Stage stage;
  uint64_t attribute;  // the position of the extended attribute that failed, in its record
  uint64_t copied;     // bytes that `copy` has copied or cloned
  uint64_t tolerated;  // attributes that were refused and that tolerate this
  char inside[4096];   // the path, inside the failed entry, of the one that could not be removed
};

// Returns 0, or minus the errno of the first operation that failed. ESTALE: a file to copy is not, or is no longer, the
// one that the record describes. ECANCELED: the batch was stopped.
long write_batch(const char* batch, size_t size, const WriteOptions& options, WriteReport* report);

}  // namespace overlayfs
