// Writes trees: a batch of operations below one root directory, and others where needed, performed in order. TypeScript decides what
// the operations are (lib/layers/write.ts); this code performs them and reports the first that fails.
//
// A batch is a sequence of records. After each record come, without gaps: the path and a NUL, the other text and a NUL,
// the extended attributes, the data; then padding to a multiple of 8 bytes. A path is relative to its root and has no
// `..`; an empty path is the root itself.
//
// An extended attribute is two numbers of 16 bits (the size of its name with a NUL, and the errors that it tolerates),
// one of 32 bits (the size of its value, or `removed`), the name with a NUL, and the value.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace overlayfs {

// The kinds of operations. lib/layers/write.ts learns the numbers from the addon.
#define OVERLAYFS_OPERATIONS(X) \
  /* sets what the record has of owner, attributes, mode and times, on any file */ \
  X(metadata)                   \
  X(directory)                  \
  /* a regular file with the record's data */ \
  X(file)                       \
  /* writes the data into an existing regular file, at offset `number` */ \
  X(data)                       \
  /* sets the size of an existing regular file to `number` */ \
  X(truncate)                   \
  /* a regular file with the contents of another one, which must have inode `number`, size `data_size` and the time */ \
  X(copy)                       \
  /* a hard link to the other path */ \
  X(link)                       \
  /* a symbolic link with the other text */ \
  X(symlink)                    \
  /* a FIFO, device or socket: `mode` has the type, `number` the device */ \
  X(node)                       \
  /* a character device 0:0; those of a batch share an inode where the file system allows it */ \
  X(whiteout)                   \
  /* removes whatever is there, with all that it holds; nothing may be there */ \
  X(remove)                     \
  /* removes a directory if it is empty */ \
  X(rmdir)                      \
  /* renames the other path */  \
  X(rename)                     \
  /* writes the file system back to its disk */ \
  X(sync)

enum class Kind : uint16_t {
#define OVERLAYFS_KIND(name) name,
  OVERLAYFS_OPERATIONS(OVERLAYFS_KIND)
#undef OVERLAYFS_KIND
};

// What a record asks for beside its kind.
#define OVERLAYFS_OPERATION_FLAGS(X) \
  X(owner, 1)    /* `uid` and `gid` are to be set */ \
  X(mode, 2)     /* `mode` is to be set */ \
  X(times, 4)    /* the times are to be set */ \
  X(replace, 8)  /* something else in its place is removed first; a directory stays for a directory */ \
  X(atomic, 16)  /* it is made in the staging directory and takes its place by a rename */ \
  X(other, 32)   /* the path is below the root with the number `other` */ \
  X(from_other, 64)  /* the other path is below that root */ \
  X(linked, 128) /* the renamed file has other links: the kernel keeps its name if the new one is one of them */ \
  X(existing, 256)  /* of a directory: one that exists stays, and gets the metadata */ \
  X(exact, 512)  /* attributes that the record does not have are removed */ \
  X(tree, 1024)  /* of a rename: the entry is a directory */

namespace wants {
enum Flag : uint16_t {
#define OVERLAYFS_FLAG(name, bit) name = bit,
  OVERLAYFS_OPERATION_FLAGS(OVERLAYFS_FLAG)
#undef OVERLAYFS_FLAG
};
}  // namespace wants

// The part of an operation that failed; lib/layers/write.ts has the system call of each.
#define OVERLAYFS_STAGES(X) X(parent) X(create) X(data) X(owner) X(xattr) X(mode) X(times) X(place) X(remove) X(source) X(sync)

enum class Stage : uint64_t {
#define OVERLAYFS_STAGE(name) name,
  OVERLAYFS_STAGES(OVERLAYFS_STAGE)
#undef OVERLAYFS_STAGE
};

struct WriteOptions {
  int root;
  const char* others;   // the descriptors of other roots, 32 bits each
  const char* staging;  // a directory below the first root, for what is made aside
  bool in_root;         // symbolic links in paths are followed, inside the root; otherwise a path has none
  bool has_own_umask;   // the thread shares its umask with no other
  const uint32_t* stop; // ends the batch before its next operation when it has this bit
  uint32_t stop_bit;
};

// Filled in, whether the batch succeeds or fails.
struct WriteReport {
  uint64_t done;       // operations that are complete; the next one failed
  Stage stage;
  uint64_t attribute;  // the position among its attributes, where one of these failed
  uint64_t copied;     // bytes that `copy` has copied or cloned
  uint64_t tolerated;  // attributes that the file system refused and that tolerate it
};

// Returns 0, or minus the errno of the first operation that failed. ESTALE: a file to copy is not, or no longer, the
// one that the record describes. ECANCELED: it was stopped.
long write_batch(const char* batch, size_t size, const WriteOptions& options, WriteReport* report);

}  // namespace overlayfs
