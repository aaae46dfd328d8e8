// Walks directory trees by descriptors: parents first, the names of a directory in byte order. It follows no symbolic
// link, enters no other mount, and keeps a few descriptors open however deep the tree is. A walk lives as long as its
// object in JavaScript. Each step `walk` of a plan returns some hundreds of its entries as records.
#pragma once

#include <napi.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"
#include "array.h"

namespace overlayfs {

// lib/trees/records.ts reads records. The name, the target of a symbolic link and the extended attributes follow a
// record, each aligned to 8 bytes. An attribute has the uint32 size of its name, the uint32 size of its value, and the
// bytes of both, each aligned to 4 bytes.
struct Record {
  uint32_t size;         // includes the name, target and attributes; a multiple of 8
  uint32_t mode;         // 0: only `error` is known
  uint32_t uid, gid;
  uint32_t links;
  uint32_t rdev_major, rdev_minor;
  uint32_t depth;        // 0: the root
  uint32_t dev_major, dev_minor;
  uint32_t error;        // errno of the failure to read the entry, or a directory's contents
  uint32_t flags;        // see below
  uint32_t name_size, target_size, attributes_size;
  uint32_t mtime_ns, ctime_ns, unused;
  uint64_t inode, bytes, blocks;  // a block has 512 bytes
  int64_t mtime, ctime;           // in seconds
  int64_t mtime_whole;            // in nanoseconds; set with `has_whole_mtime`, for times from 1677 to 2262
};
static_assert(sizeof(Record) == 120);

// The flags of a record.
constexpr uint32_t is_ascii = 1;        // the name has only ASCII characters
constexpr uint32_t is_other_mount = 2;  // the root of another mount, which the walk does not enter
constexpr uint32_t has_whole_mtime = 8;
constexpr uint32_t is_frozen = 16;        // immutable or append-only
constexpr uint32_t is_broken_off = 4;   // not an entry: the walk ends, since it has lost the directory at this depth

constexpr uint32_t unreadable = 0xffffffff;  // the size of a value that this process may not read

// The flags of a walk or an `examine`.
enum WalkFlag : uint32_t {
  unsorted = 1,
  attributes_of_directories = 2,  // includes empty files, which may be whiteouts
  attributes_of_others = 4,
  targets = 8,                    // reads the targets of symbolic links
  follow_root = 16,               // follows the root if it is a symbolic link
  root_inside = 32,               // the path to the root leads through no symbolic link and into no other mount
  one_level = 64,                 // enters no directory but the root
};

// Builds records.
class Records {
 public:
  explicit Records(uint32_t flags) : flags_(flags) {}

  uint32_t flags() const { return flags_; }
  size_t size() const { return bytes_.size(); }
  const uint8_t* data() { return bytes_.data(); }
  void clear() { bytes_.resize(0); }

  // Adds the entry that FOUND describes. Reads its attributes from FD if it is open, else by DIRFD and NAME. Returns
  // false if there is no memory left.
  bool add(const abi::Statx& found, int fd, int dirfd, const char* name, uint32_t depth, uint32_t flags, bool wants_all);
  bool add_error(int error, uint32_t mode, const char* name, uint32_t depth, uint32_t flags);
  // Sets the error of the last entry.
  void set_error(int error) { at(last_)->error = static_cast<uint32_t>(error); }
  void drop_last() { bytes_.resize(last_); }
  // True if the last entry has attributes or a target.
  bool has_read_more() { return at(last_)->attributes_size != 0 || at(last_)->target_size != 0; }

 private:
  Record* at(size_t offset) { return reinterpret_cast<Record*>(&bytes_[offset]); }
  bool append(const void* bytes, size_t size);
  bool align(size_t to);
  long list_attributes(int fd, int dirfd, const char* name, uint32_t room);
  long get_attribute(int fd, int dirfd, const char* name, const char* attribute, uint32_t room);
  bool add_attributes(int fd, int dirfd, const char* name);
  bool add_target(int dirfd, const char* name);

  uint32_t flags_;
  size_t last_ = 0;
  Array<uint8_t> bytes_;
  Array<char> list_;   // the names of an entry's attributes
  Array<char> value_;
};

class Walk {
 public:
  explicit Walk(uint32_t flags) : flags_(flags), records_(flags) {}
  ~Walk();
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;

  // Reads entries until the records have this size. The first call opens the root. SKIP is the number of a directory,
  // counted from 1 in the order of the records; the walk leaves out the rest of its contents. Returns the number of
  // entries, 0 at the end, or minus the errno if the root cannot be opened.
  long next(int dirfd, const char* path, size_t size, uint32_t skip);
  Records& records() { return records_; }

  // Returns the walk with this id for one step; nullptr if there is none, or if another step has it.
  static Walk* take(uint32_t id);
  static void give_back(Walk* walk);

  // openWalk(flags): returns an object with the property `id`
  static napi_value open(napi_env env, napi_callback_info info);
  // closeWalk(id): closes the walk before its object is collected
  static napi_value close(napi_env env, napi_callback_info info);

 private:
  struct Level {
    int fd;                   // -1: closed to save descriptors
    uint32_t number;          // the number of the directory's record
    uint64_t inode, device;
    size_t names;             // the start of its names in names_
    size_t next, first, end;  // positions in order_
  };

  static void finalize(napi_env env, void* data, void* hint);
  static void forget(uint32_t id);

  long open_root(int dirfd, const char* path);
  int open_directory(int at, const char* name);
  bool close_one();
  bool enter(int fd, const abi::Statx& found);
  int read_names(int fd);
  void sort(size_t first, size_t end);
  bool leave();
  bool skip(uint32_t number);
  bool visit(const Level& level, const char* name, uint8_t type);
  bool visit_directory(const Level& level, const char* name, bool* is_other);
  bool visit_other(const Level& level, const char* name);
  static bool is_same(int dirfd, const char* name, const abi::Statx& before);
  bool is_on_other_mount(const abi::Statx& found) const;
  bool lose(int error, size_t depth);

  uint32_t flags_;
  bool has_begun_ = false;
  uint32_t count_ = 0;
  uint64_t mount_ = 0;
  uint64_t root_device_ = 0;
  bool knows_mounts_ = false;
  size_t lowest_open_ = 0;
  Records records_;
  Array<Level> levels_;
  Array<char> names_;      // the names of all levels; each has a byte for its type before it and a NUL after it
  Array<uint32_t> order_;  // the offsets of the names of all levels
  Array<char> entries_;    // a buffer for getdents64(2)

  // The fields that the registry uses.
  uint32_t id_ = 0;
  Walk* next_walk_ = nullptr;
  bool is_taken_ = false;
  bool is_closed_ = false;
};

}  // namespace overlayfs
