// Reads the mount table, whole or one mount of it, into one block of memory that lib/mount-table/statmount.ts reads:
//
//   uint32 count          of the records
//   uint32 texts          offset in the block
//   Record[count]
//   texts                 the strings of each record, one after the other
//
// The plan decides which mounts and which of their fields are read.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

struct Head {
  uint32_t count;
  uint32_t texts;
};

struct Record {
  uint32_t id[2];  // the unique one, the lower half first
  uint32_t mask;   // the fields that the kernel has filled in: STATMOUNT_*
  uint32_t table_id;
  uint32_t table_parent;
  uint32_t device[2];
  uint32_t superblock_flags;
  uint32_t attributes;
  uint32_t propagation;
  uint32_t peer_group;
  uint32_t master;
  uint32_t propagate_from;
  uint32_t text;      // the offset of its strings among the texts
  uint32_t sizes[6];  // root, target, type, subtype, source, options
};
static_assert(sizeof(Record) == 80);

class Table {
 public:
  explicit Table(uint64_t namespace_id, uint64_t mask) : mask_(mask), namespace_id_(namespace_id) { grow(); }
  ~Table() { free(answer_); }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  // Lists the ids of all mounts.
  long list(std::vector<uint64_t>* ids) {
    constexpr size_t at_once = 4096;
    uint64_t last = 0;
    for (;;) {
      size_t before = ids->size();
      ids->resize(before + at_once);
      abi::MountIdRequest request = request_for(abi::listmount_root, last);
      long result = sys::listmount(&request, ids->data() + before, at_once);
      ids->resize(before + (result < 0 ? 0 : static_cast<size_t>(result)));
      if (result < 0) return result;
      if (static_cast<size_t>(result) < at_once) return 0;
      last = ids->back();
    }
  }

  // Adds a mount. Leaves out a mount that is gone by now, or is in no table.
  long add(uint64_t id) {
    abi::MountIdRequest request = request_for(id, mask_);
    long result;
    while ((result = sys::statmount(&request, answer_, size_)) == -EOVERFLOW) grow();
    if (result == -ENOENT) return 0;
    if (result < 0) return result;
    store();
    return 1;
  }

  long add_all(const std::vector<uint64_t>& ids) {
    for (uint64_t id : ids) {
      long result = add(id);
      if (result < 0) return result;
    }
    return 0;
  }

  size_t size() const { return sizeof(Head) + records_.size() * sizeof(Record) + texts_.size(); }

  void write(uint8_t* to) const {
    size_t records_size = records_.size() * sizeof(Record);
    Head head{static_cast<uint32_t>(records_.size()), static_cast<uint32_t>(sizeof(Head) + records_size)};
    memcpy(to, &head, sizeof head);
    if (records_size != 0) memcpy(to + sizeof head, records_.data(), records_size);
    if (!texts_.empty()) memcpy(to + sizeof head + records_size, texts_.data(), texts_.size());
  }

  size_t count() const { return records_.size(); }

 private:
  abi::MountIdRequest request_for(uint64_t id, uint64_t parameter) const {
    uint32_t size = namespace_id_ != 0 ? sizeof(abi::MountIdRequest) : abi::mount_id_request_6_8;
    return {size, 0, id, parameter, namespace_id_};
  }

  void grow() {
    free(answer_);
    size_ = size_ == 0 ? 65536 : size_ * 2;
    answer_ = static_cast<abi::Statmount*>(malloc(size_));
    if (answer_ == nullptr) abort();
  }

  void store() {
    const abi::Statmount& found = *answer_;
    Record record{
        {static_cast<uint32_t>(found.mnt_id), static_cast<uint32_t>(found.mnt_id >> 32)},
        static_cast<uint32_t>(found.mask),
        found.mnt_id_old,
        found.mnt_parent_id_old,
        {found.sb_dev_major, found.sb_dev_minor},
        found.sb_flags,
        static_cast<uint32_t>(found.mnt_attr),
        static_cast<uint32_t>(found.mnt_propagation),
        static_cast<uint32_t>(found.mnt_peer_group),
        static_cast<uint32_t>(found.mnt_master),
        static_cast<uint32_t>(found.propagate_from),
        static_cast<uint32_t>(texts_.size()),
        {
            append(abi::statmount_root, found.mnt_root),
            append(abi::statmount_point, found.mnt_point),
            append(abi::statmount_type, found.fs_type),
            append(abi::statmount_subtype, found.fs_subtype),
            append(abi::statmount_source, found.sb_source),
            append(abi::statmount_options, found.mnt_opts),
        },
    };
    records_.push_back(record);
  }

  uint32_t append(uint32_t bit, uint32_t offset) {
    if (!(answer_->mask & bit)) return 0;
    const char* text = reinterpret_cast<const char*>(answer_ + 1) + offset;
    size_t length = strlen(text);
    texts_.insert(texts_.end(), text, text + length);
    return static_cast<uint32_t>(length);
  }

  uint64_t mask_;
  uint64_t namespace_id_;
  abi::Statmount* answer_ = nullptr;
  size_t size_ = 0;
  std::vector<Record> records_;
  std::vector<char> texts_;
};

}  // namespace

// Finds the id of the namespace, 0 for the caller's own. Returns minus the errno if it fails.
static long identify(int namespace_fd, uint64_t* id) {
  *id = 0;
  return namespace_fd < 0 ? 0 : sys::call(abi::ioctl, namespace_fd, abi::ns_get_mntns_id, id);
}

// mount_ids(descriptor of a mount namespace or -1); data: the unique ids of all mounts, the oldest first.
long Execution::read_mount_ids(const Step& step) {
  uint64_t namespace_id;
  long result = identify(descriptor(step.a[0]), &namespace_id);
  if (result < 0) return result;
  std::vector<uint64_t> ids;
  result = Table(namespace_id, 0).list(&ids);
  if (result < 0) return result;
  size_t size = ids.size() * sizeof(uint64_t);
  uint8_t* to = add_data(step, size);
  if (size != 0) memcpy(to, ids.data(), size);
  return static_cast<long>(ids.size());
}

// mount_table(descriptor of a mount namespace or -1, STATMOUNT_*, unique ids or NULL for all); data: the table.
long Execution::read_mount_table(const Step& step) {
  uint64_t namespace_id;
  long result = identify(descriptor(step.a[0]), &namespace_id);
  if (result < 0) return result;
  Table table(namespace_id, static_cast<uint32_t>(step.a[1]));
  std::vector<uint64_t> ids;
  Text wanted(*this, step.a[2]);
  if (static_cast<const char*>(wanted) != nullptr) {
    ids.resize(wanted.size() / sizeof(uint64_t));
    if (!ids.empty()) memcpy(ids.data(), wanted, ids.size() * sizeof(uint64_t));
  } else {
    result = table.list(&ids);
    if (result < 0) return result;
  }
  result = table.add_all(ids);
  if (result < 0) return result;
  table.write(add_data(step, table.size()));
  return static_cast<long>(table.count());
}

namespace {

// The tables of namespaces, one after the other: uint32 inode number, uint32 size, the table, filled up to 8 bytes.
class Tables {
 public:
  Tables(uint64_t mask, const std::vector<uint64_t>& known) : mask_(mask), known_(known) {}

  // Adds the tables of the namespaces on one side of the descriptor's namespace.
  long walk(int fd, unsigned long direction) {
    int at = fd;
    for (;;) {
      abi::MountNamespaceInfo info{sizeof info, 0, 0};
      long next = sys::call(abi::ioctl, at, direction, &info);
      if (at != fd) sys::close(at);
      if (next < 0) return next == -ENOENT ? 0 : next;
      at = static_cast<int>(next);
      abi::Statx found;
      long result = sys::statx(at, "", AT_EMPTY_PATH, abi::statx_ino, &found);
      if (result >= 0 && !is_known(found.ino)) result = add(found.ino, info.id);
      if (result >= 0) continue;
      sys::close(at);
      return result;
    }
  }

  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  bool is_known(uint64_t inode) const {
    for (uint64_t one : known_) {
      if (one == inode) return true;
    }
    return false;
  }

  long add(uint64_t inode, uint64_t id) {
    Table table(id, mask_);
    std::vector<uint64_t> ids;
    long result = table.list(&ids);
    if (result >= 0) result = table.add_all(ids);
    if (result < 0) return result;
    uint32_t head[2] = {static_cast<uint32_t>(inode), static_cast<uint32_t>(table.size())};
    size_t at = bytes_.size();
    bytes_.resize(at + sizeof head + (table.size() + 7) / 8 * 8);
    memcpy(bytes_.data() + at, head, sizeof head);
    table.write(bytes_.data() + at + sizeof head);
    return 0;
  }

  uint64_t mask_;
  const std::vector<uint64_t>& known_;
  std::vector<uint8_t> bytes_;
};

}  // namespace

// namespace_tables(descriptor of a mount namespace, STATMOUNT_*, inode numbers); data: the tables of all other
// namespaces, including those without processes, but not of those with these inode numbers.
long Execution::read_namespace_tables(const Step& step) {
  Text text(*this, step.a[2]);
  std::vector<uint64_t> known(text.size() / sizeof(uint64_t));
  if (!known.empty()) memcpy(known.data(), text, known.size() * sizeof(uint64_t));
  Tables tables(static_cast<uint32_t>(step.a[1]), known);
  for (unsigned long direction : {abi::ns_mnt_get_next, abi::ns_mnt_get_previous}) {
    long result = tables.walk(descriptor(step.a[0]), direction);
    if (result < 0) return result;
  }
  size_t size = tables.bytes().size();
  uint8_t* to = add_data(step, size);
  if (size != 0) memcpy(to, tables.bytes().data(), size);
  return 0;
}

// mount_of(dirfd, path, AT_*, STATMOUNT_*, STATX_ATTR_* that the path must have); data: a table of one mount or of
// none. ENOSYS: this kernel has no unique ids.
long Execution::read_mount_of(const Step& step) {
  abi::Statx found;
  long result = sys::statx(descriptor(step.a[0]), Text(*this, step.a[1]), step.a[2], abi::statx_mnt_id_unique, &found);
  if (result < 0) return result;
  if (!(found.mask & abi::statx_mnt_id_unique)) return -ENOSYS;
  Table table(0, static_cast<uint32_t>(step.a[3]));
  auto required = static_cast<uint32_t>(step.a[4]);
  if ((found.attributes & required) == required) result = table.add(found.mnt_id);
  if (result < 0) return result;
  table.write(add_data(step, table.size()));
  return static_cast<long>(table.count());
}

// read_file(dirfd, path); data: the content of the file.
long Execution::read_file(const Step& step) {
  int fd = sys::openat2(descriptor(step.a[0]), Text(*this, step.a[1]), O_RDONLY | O_CLOEXEC, 0, 0);
  if (fd < 0) return fd;
  constexpr size_t least_room = 65536;
  std::vector<uint8_t> text;
  size_t size = 0;
  long result;
  do {
    if (text.size() < size + least_room) text.resize(text.size() * 2 + least_room);
    result = sys::read(fd, text.data() + size, text.size() - size);
    if (result > 0) size += static_cast<size_t>(result);
  } while (result > 0);
  sys::close(fd);
  if (result < 0) return result;
  memcpy(add_data(step, size), text.data(), size);
  return static_cast<long>(size);
}

}  // namespace overlayfs
