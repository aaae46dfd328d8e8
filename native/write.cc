// Performs batches of operations that write trees. Works with descriptors and never enters another mount. Follows no
// symbolic link, except inside the root if the caller asks for it. Allocates no heap memory, so that a child that
// shares this process's memory can do it too.
#include "write.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "beneath.h"
#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

struct Record {
  uint32_t size;  // including all that follows it
  Kind kind;
  uint16_t flags;
  uint32_t path_size, from_size, attributes_size;  // without the NULs
  uint32_t mode;
  uint32_t uid, gid;
  uint64_t number;
  uint64_t data_size;
  int64_t atime, mtime;
  uint32_t atime_ns, mtime_ns;
  uint32_t other;  // the number of the other root
  uint32_t lent;   // the number of the buffer that has the data; 0: the record has it
};
static_assert(sizeof(Record) == 80);

constexpr uint32_t removed_attribute = 0xffffffff;
enum Tolerance : uint16_t { tolerates_unsupported = 1, tolerates_denied = 2 };

constexpr char default_acl[] = "system.posix_acl_default";
constexpr char access_acl[] = "system.posix_acl_access";
constexpr char aside[] = "new";  // in the staging directory

constexpr int open_parent = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

struct Parent {
  const char* path;  // in the batch
  uint32_t size;
  int next;          // the next one with the same hash; -1: none
  int fd;
  int root;          // the root's descriptor
  bool is_known;     // `passes_on` is known
  bool passes_on;    // new entries inherit a group or access control lists
};

// The place of an entry: a name in a directory.
struct Place {
  int dirfd;
  const char* name;
  Parent* parent;  // nullptr: the root itself
};

bool is_dotdot(const char* name, size_t size) { return size == 2 && name[0] == '.' && name[1] == '.'; }

// "/proc/self/fd/9/NAME": for calls that accept neither an O_PATH descriptor nor a directory's descriptor.
class ProcPath {
 public:
  ProcPath(int fd, const char* name) {
    memcpy(text_, start, sizeof start - 1);
    size_t at = sizeof start - 1;
    at += write_decimal(text_ + at, fd);
    if (name != nullptr) {
      text_[at++] = '/';
      size_t size = strlen(name);
      if (size > sizeof text_ - at - 1) size = sizeof text_ - at - 1;
      memcpy(text_ + at, name, size);
      at += size;
    }
    text_[at] = '\0';
  }
  operator const char*() const { return text_; }

 private:
  static constexpr char start[] = "/proc/self/fd/";
  char text_[sizeof start + 12 + 256];
};

long look(const Place& at, unsigned mask, abi::Statx* found) {
  return sys::statx(at.dirfd, at.name, AT_SYMLINK_NOFOLLOW | abi::at_statx_dont_sync, mask, found);
}

bool is_directory(const Place& at) {
  abi::Statx found;
  return look(at, abi::statx_type, &found) == 0 && (found.mode & S_IFMT) == S_IFDIR;
}

class Batch {
 public:
  Batch(const char* batch, size_t size, const WriteOptions& options, WriteReport* report)
      : at_(batch), end_(batch + size), options_(options), report_(report) {
    for (int& head : heads_) head = -1;
    *report_ = {};
    if (options_.has_own_umask) sys::call(abi::umask, 0);
    uid_ = static_cast<uint32_t>(sys::call(abi::geteuid));
    gid_ = static_cast<uint32_t>(sys::call(abi::getegid));
  }
  ~Batch() { close_parents(); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  long run() {
    while (at_ < end_) {
      if (__atomic_load_n(options_.stop, __ATOMIC_RELAXED) & options_.stop_bit) return -ECANCELED;
      memcpy(&record_, at_, sizeof record_);
      path_ = at_ + sizeof record_;
      from_ = path_ + record_.path_size + 1;
      attributes_ = from_ + record_.from_size + 1;
      data_ = attributes_ + record_.attributes_size;
      contents_ = data_;
      if (record_.lent != 0) {
        uint64_t offset;
        memcpy(&offset, data_, sizeof offset);
        contents_ = reinterpret_cast<const char*>(options_.lent[record_.lent - options_.first_lent].at) + offset;
      }
      long result = attempt();
      if ((result == -EMFILE || result == -ENFILE) && count_ > 0 && !made_) {
        close_parents();
        result = attempt();
      }
      if (result < 0) return result;
      report_->done++;
      at_ += record_.size;
    }
    return 0;
  }

 private:
  // Closes descriptors of parents only here, before the operation begins to use them.
  long attempt() {
    constexpr int most_in_one = 4;
    if (has_moved_directories_ || count_ > most_parents - most_in_one) close_parents();
    has_moved_directories_ = made_ = false;
    return perform();
  }

  bool has(wants::Flag flag) const { return (record_.flags & flag) != 0; }

  long fail(Stage stage, long result) {
    report_->stage = stage;
    return result;
  }

  long perform() {
    if (record_.kind == Kind::sync) {
      long result = sync_file_system();
      return result < 0 ? fail(Stage::sync, result) : 0;
    }
    Place place;
    long result = find(path_, record_.path_size, root_of(wants::other), &place);
    if (result < 0) return fail(Stage::parent, result);
    switch (record_.kind) {
      case Kind::metadata:
        return set_metadata(place, -1, false);
      case Kind::data:
      case Kind::truncate:
        return change_data(place);
      case Kind::remove:
        result = remove(place);
        return result < 0 ? fail(Stage::remove, result) : 0;
      case Kind::rmdir:
        return remove_empty(place);
      case Kind::rename:
        return rename(place);
      case Kind::directory:
        return make_directory(place);
      default:
        return make(place);
    }
  }

  // syncfs(2) accepts no O_PATH descriptor.
  long sync_file_system() {
    int fd = sys::openat2(options_.root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0);
    // A layer's owner may not read its root: sync(2) needs no descriptor.
    if (fd == -EACCES) return sys::call(abi::sync);
    if (fd < 0) return fd;
    long result = sys::call(abi::syncfs, fd);
    sys::close(fd);
    return result;
  }

  // ------------------------------------------------------------------------------------------ places

  int root_of(wants::Flag flag) const {
    if (!has(flag)) return options_.root;
    int32_t root;
    memcpy(&root, options_.others + record_.other * sizeof root, sizeof root);
    return root;
  }

  long find(const char* path, uint32_t size, int root, Place* place) {
    if (size == 0) {
      *place = {root, ".", nullptr};
      return 0;
    }
    uint32_t slash = size;
    while (slash > 0 && path[slash - 1] != '/') slash--;
    const char* name = path + slash;
    if (slash == size || is_dotdot(name, size - slash)) return -EINVAL;
    Parent* parent;
    long result = open(path, slash == 0 ? 0 : slash - 1, root, &parent);
    if (result >= 0) *place = {parent->fd, name, parent};
    return result;
  }

  long open(const char* path, uint32_t size, int root, Parent** opened) {
    if (last_ >= 0) {
      Parent& last = parents_[last_];
      if (last.size == size && last.root == root && memcmp(last.path, path, size) == 0) {
        *opened = &last;
        return 0;
      }
    }
    uint32_t hash = 2166136261U + static_cast<uint32_t>(root);
    for (uint32_t i = 0; i < size; i++) hash = (hash ^ static_cast<uint8_t>(path[i])) * 16777619U;
    int& head = heads_[hash % heads];
    for (int i = head; i >= 0; i = parents_[i].next) {
      Parent& parent = parents_[i];
      if (parent.size != size || parent.root != root || memcmp(parent.path, path, size) != 0) continue;
      last_ = i;
      *opened = &parent;
      return 0;
    }
    const uint64_t flags = static_cast<uint64_t>(options_.in_root ? open_parent & ~O_NOFOLLOW : open_parent);
    int fd = open_beneath(root, path, size, flags, options_.in_root);
    if (fd < 0) return fd;
    parents_[count_] = {path, size, head, fd, root, false, false};
    last_ = head = count_++;
    *opened = &parents_[last_];
    return 0;
  }

  void close_parents() {
    for (int i = 0; i < count_; i++) sys::close(parents_[i].fd);
    for (int& head : heads_) head = -1;
    count_ = 0;
    last_ = -1;
  }

  // ------------------------------------------------------------------------------------------ metadata

  // Learns from the first new entry in a directory if new entries get other owners, modes or attributes than requested.
  // A set-group-ID bit, a mount option or a default access control list can cause this.
  void learn(Parent& parent, const Place& made) {
    parent.is_known = true;
    abi::Statx found;
    parent.passes_on = look(made, abi::statx_mode | abi::statx_gid, &found) != 0 || found.gid != gid_ ||
                       sys::getxattr(ProcPath(parent.fd, nullptr), default_acl, nullptr, 0) > 0;
    abi::Statx above;
    if (!parent.passes_on && sys::statx(parent.fd, "", AT_EMPTY_PATH, abi::statx_mode, &above) == 0) {
      parent.passes_on = (above.mode & S_ISGID) != 0;
    }
  }

  // Sets the metadata that the record has, in an order in which no step undoes another. FD is the regular file that was
  // made, or -1. IS_NEW says that the entry was made with the record's mode.
  long set_metadata(const Place& at, int fd, bool is_new) {
    const bool is_link = record_.kind == Kind::symlink;
    bool passes_on = false;
    if (is_new && at.parent != nullptr) {
      if (!at.parent->is_known) learn(*at.parent, at);
      passes_on = at.parent->passes_on;
    }
    if (has(wants::owner) && (!is_new || passes_on || record_.uid != uid_ || record_.gid != gid_)) {
      long result = fd >= 0 ? sys::call(abi::fchown, fd, record_.uid, record_.gid)
                            : sys::call(abi::fchownat, at.dirfd, at.name, record_.uid, record_.gid, AT_SYMLINK_NOFOLLOW);
      if (result < 0) return fail(Stage::owner, result);
    }
    if (passes_on && !is_link) {
      sys::call(abi::lremovexattr, static_cast<const char*>(ProcPath(at.dirfd, at.name)), access_acl);
      sys::call(abi::lremovexattr, static_cast<const char*>(ProcPath(at.dirfd, at.name)), default_acl);
    }
    if (has(wants::exact)) {
      long result = remove_other_attributes(at);
      if (result < 0) return fail(Stage::xattr, result);
    }
    if (record_.attributes_size != 0) {
      long result = set_attributes(at, fd);
      if (result < 0) return fail(Stage::xattr, result);
    }
    // chown(2) clears the set-user-ID and set-group-ID bits, and mkdir(2) does not set them.
    const bool sets_mode = has(wants::mode) && !is_link &&
                           (!is_new || passes_on || !options_.has_own_umask || record_.attributes_size != 0 ||
                            (record_.mode & 07000) != 0);
    if (sets_mode) {
      long result = fd >= 0 ? sys::call(abi::fchmod, fd, record_.mode & 07777) : change_mode(at, record_.mode & 07777);
      if (result < 0) return fail(Stage::mode, result);
    }
    if (has(wants::times)) {
      const int64_t times[] = {record_.atime, record_.atime_ns, record_.mtime, record_.mtime_ns};
      long result = fd >= 0 ? sys::call(abi::utimensat, fd, nullptr, times, 0)
                            : sys::call(abi::utimensat, at.dirfd, at.name, times, AT_SYMLINK_NOFOLLOW);
      if (result < 0) return fail(Stage::times, result);
    }
    return 0;
  }

  static long change_mode(const Place& at, unsigned mode) {
    long result = sys::call(abi::fchmodat2, at.dirfd, at.name, mode, AT_SYMLINK_NOFOLLOW);
    if (result != -ENOSYS && result != -EPERM) return result;  // before 6.6, or a seccomp filter
    int fd = sys::openat2(at.dirfd, at.name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0, 0);
    if (fd < 0) return fd;
    result = sys::call(abi::fchmodat, AT_FDCWD, static_cast<const char*>(ProcPath(fd, nullptr)), mode);
    sys::close(fd);
    return result;
  }

  // The list may take the whole stack of a child; children perform no operation with `exact`.
  [[gnu::noinline]] long remove_other_attributes(const Place& at) {
    constexpr size_t usual = 1024;  // the kernel allocates as much memory
    char names[65536];              // XATTR_LIST_MAX
    ProcPath path(at.dirfd, at.name);
    const char* text = path;
    long size = sys::call(abi::llistxattr, text, names, usual);
    if (size == -ERANGE) size = sys::call(abi::llistxattr, text, names, sizeof names);
    if (size == -EOPNOTSUPP) return 0;
    if (size < 0) return size;
    report_->attribute = UINT64_MAX;
    for (const char* name = names; name < names + size; name += strlen(name) + 1) {
      if (is_in_record(name)) continue;
      long result = sys::call(abi::lremovexattr, text, name);
      if (result < 0 && result != -ENODATA) return result;
    }
    return 0;
  }

  bool is_in_record(const char* name) const {
    const size_t length = strlen(name) + 1;
    for (const char* next = attributes_; next < data_;) {
      uint16_t name_size;
      uint32_t size;
      memcpy(&name_size, next, sizeof name_size);
      memcpy(&size, next + 4, sizeof size);
      if (name_size == length && memcmp(next + 8, name, length) == 0) return true;
      next += 8 + name_size + (size == removed_attribute ? 0 : size);
    }
    return false;
  }

  long set_attributes(const Place& at, int fd) {
    ProcPath path(at.dirfd, at.name);
    const char* text = path;
    report_->attribute = 0;
    for (const char* next = attributes_; next < data_; report_->attribute++) {
      uint16_t name_size, tolerance;
      uint32_t size;
      memcpy(&name_size, next, sizeof name_size);
      memcpy(&tolerance, next + 2, sizeof tolerance);
      memcpy(&size, next + 4, sizeof size);
      const char* name = next + 8;
      const char* value = name + name_size;
      long result;
      if (size == removed_attribute) {
        result = fd >= 0 ? sys::call(abi::fremovexattr, fd, name) : sys::call(abi::lremovexattr, text, name);
        if (result == -ENODATA) result = 0;
        size = 0;
      } else {
        const size_t value_size = size;
        result = fd >= 0 ? sys::call(abi::fsetxattr, fd, name, value, value_size, 0)
                         : sys::call(abi::lsetxattr, text, name, value, value_size, 0);
      }
      if ((result == -EOPNOTSUPP && (tolerance & tolerates_unsupported)) ||
          (result == -EPERM && (tolerance & tolerates_denied))) {
        report_->tolerated++;
      } else if (result < 0) {
        return result;
      }
      next = value + size;
    }
    return 0;
  }

  // ------------------------------------------------------------------------------------------ making

  // Makes the entry and sets its metadata. Removes the entry if a later part fails.
  long make(const Place& place) {
    if (has(wants::atomic)) return make_aside(place);
    long result = make_at(place);
    if (result == -EEXIST && !made_ && has(wants::replace)) {
      result = remove(place);
      if (result < 0) return fail(Stage::remove, result);
      result = make_at(place);
    }
    if (result < 0 && made_) sys::unlinkat(place.dirfd, place.name, 0);
    return result;
  }

  long make_aside(const Place& place) {
    Place staging;
    long result = find_aside(&staging);
    if (result < 0) return fail(Stage::parent, result);
    result = make_at(staging);
    if (result == -EEXIST && !made_) {  // left by a batch that was killed
      result = remove(staging);
      if (result < 0) return fail(Stage::remove, result);
      result = make_at(staging);
    }
    if (result < 0) {
      if (made_) sys::unlinkat(staging.dirfd, staging.name, 0);
      return result;
    }
    result = put(staging, place);
    if (result < 0) sys::unlinkat(staging.dirfd, staging.name, 0);
    return result;
  }

  long find_aside(Place* staging) {
    Parent* parent;
    long result = open(options_.staging, static_cast<uint32_t>(strlen(options_.staging)), options_.root, &parent);
    if (result >= 0) *staging = {parent->fd, aside, parent};
    return result;
  }

  // Renames an entry from the staging directory to its place and replaces any entry there.
  long put(const Place& staging, const Place& place) {
    long result = sys::renameat2(staging.dirfd, staging.name, place.dirfd, place.name, 0);
    if (result >= 0) {
      // rename(2) does nothing if both names are links to one file.
      if (record_.kind == Kind::link) sys::unlinkat(staging.dirfd, staging.name, 0);
      return 0;
    }
    if (!is_of_other_type(result)) return fail(Stage::place, result);
    return exchange(staging, place);
  }

  static bool is_of_other_type(long result) {
    return result == -EISDIR || result == -ENOTDIR || result == -EEXIST || result == -ENOTEMPTY;
  }

  // Puts the new entry in PLACE without a moment in which PLACE is empty, then removes the old entry.
  long exchange(const Place& made, const Place& place) {
    long result = sys::renameat2(made.dirfd, made.name, place.dirfd, place.name, abi::rename_exchange);
    if (result == -EACCES && is_directory(place)) {
      // A directory that moves to another parent gets another "..", which its own mode must allow.
      result = change_mode(place, S_IRWXU);
      if (result >= 0) result = sys::renameat2(made.dirfd, made.name, place.dirfd, place.name, abi::rename_exchange);
    }
    // Without redirect_dir, overlayfs moves no directory that has entries of lower layers. An empty directory of another
    // user can be removed, and not moved.
    const bool cannot_exchange = result == -EINVAL || result == -EPERM || (result == -EXDEV && is_on(place.dirfd, abi::overlay_magic));
    if (cannot_exchange) {  // PLACE is empty for a moment
      result = remove(place);
      if (result < 0) return fail(Stage::remove, result);
      result = sys::renameat2(made.dirfd, made.name, place.dirfd, place.name, 0);
      return result < 0 ? fail(Stage::place, result) : 0;
    }
    if (result < 0) return fail(Stage::place, result);
    has_moved_directories_ = true;
    result = remove(made);
    if (result >= 0) return 0;
    // Puts the old entry, or its remains, back in its place.
    sys::renameat2(made.dirfd, made.name, place.dirfd, place.name, abi::rename_exchange);
    return fail(Stage::remove, result);
  }

  long make_at(const Place& at) {
    long result = 0;
    switch (record_.kind) {
      case Kind::file:
      case Kind::copy:
        return make_file(at);
      case Kind::link: {
        Place from;
        result = find_from(&from);
        if (result >= 0) result = sys::linkat(from.dirfd, from.name, at.dirfd, at.name, 0);
        if (result < 0) return fail(Stage::create, result);
        made_ = true;
        return 0;
      }
      case Kind::symlink:
        result = sys::call(abi::symlinkat, from_, at.dirfd, at.name);
        break;
      case Kind::node: {
        const uint64_t major = record_.number >> 32, minor = record_.number & 0xffffffff;
        const uint64_t device = (minor & 0xff) | major << 8 | (minor & ~uint64_t{0xff}) << 12;
        result = sys::mknodat(at.dirfd, at.name, record_.mode & ~07000U, static_cast<unsigned>(device));
        break;
      }
      case Kind::whiteout:
        result = make_whiteout(at);
        if (result < 0) return fail(Stage::create, result);
        made_ = true;
        return 0;
      default:
        return fail(Stage::create, -EINVAL);
    }
    if (result < 0) return fail(Stage::create, result);
    made_ = true;
    return set_metadata(at, -1, true);
  }

  // All whiteouts of a batch share an inode if the file system allows it, as they do in overlayfs itself.
  long make_whiteout(const Place& at) {
    if (whiteout_ != nullptr) {
      Place first;
      if (find(whiteout_, whiteout_size_, whiteout_root_, &first) >= 0 &&
          sys::linkat(first.dirfd, first.name, at.dirfd, at.name, 0) >= 0) {
        return 0;
      }
    }
    long result = sys::mknodat(at.dirfd, at.name, S_IFCHR, 0);
    if (result < 0) return result;
    whiteout_ = path_;
    whiteout_size_ = record_.path_size;
    whiteout_root_ = root_of(wants::other);
    return 0;
  }

  long find_from(Place* from) { return find(from_, record_.from_size, root_of(wants::from_other), from); }

  // openat2(2) refuses files over 2 GiB without O_LARGEFILE, and libc's headers do not give its value on 64 bits.
  static int open_file(const Place& at, int flags, unsigned mode) {
    return static_cast<int>(sys::call(abi::openat, at.dirfd, at.name, flags | O_NOFOLLOW | O_CLOEXEC, mode));
  }

  long make_file(const Place& at) {
    int source = -1;
    abi::Statx before{};
    if (record_.kind == Kind::copy) {
      Place from;
      long result = find_from(&from);
      if (result < 0) return fail(Stage::source, result);
      source = open_file(from, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
      if (source < 0) return fail(Stage::source, source == -ELOOP || source == -ENXIO ? -ESTALE : source);
      result = check_source(source, &before);
      if (result < 0) {
        sys::close(source);
        return fail(Stage::source, result);
      }
    }
    long result = fill_file(at, source, before);
    if (source >= 0) sys::close(source);
    return result;
  }

  long fill_file(const Place& at, int source, const abi::Statx& before) {
    // The kernel sets user.* attributes only on a file that its mode lets the caller write, even by a descriptor.
    const unsigned mode = (record_.mode & 0777) | (record_.attributes_size != 0 ? S_IWUSR : 0U);
    int fd = open_file(at, O_WRONLY | O_CREAT | O_EXCL, mode);
    if (fd < 0) return fail(Stage::create, fd);
    made_ = true;
    long result = 0;
    if (source < 0) {
      result = write_data(fd, 0);
      if (result < 0) report_->stage = Stage::data;
    } else {
      result = copy_data(source, fd, before);
      abi::Statx after;
      if (result < 0) {
        report_->stage = Stage::data;
      } else if ((result = check_source(source, &after)) < 0) {
        report_->stage = Stage::source;
      }
    }
    if (result >= 0) result = set_metadata(at, fd, true);
    if (result >= 0 && has(wants::synced)) {
      result = sys::call(abi::fsync, fd);
      if (result < 0) report_->stage = Stage::sync;
    }
    sys::close(fd);
    return result;
  }

  long check_source(int fd, abi::Statx* found) {
    constexpr unsigned mask = abi::statx_type | abi::statx_ino | abi::statx_size | abi::statx_blocks | abi::statx_mtime;
    long result = sys::statx(fd, "", AT_EMPTY_PATH, mask, found);
    if (result < 0) return result;
    const bool is_same = (found->mode & S_IFMT) == S_IFREG && found->ino == record_.number &&
                         found->size == record_.data_size && found->mtime.tv_sec == record_.mtime &&
                         found->mtime.tv_nsec == record_.mtime_ns;
    return is_same ? 0 : -ESTALE;
  }

  long write_data(int fd, uint64_t offset) {
    for (uint64_t done = 0; done < record_.data_size;) {
      long result = sys::call(abi::pwrite64, fd, contents_ + done, static_cast<size_t>(record_.data_size - done),
                              static_cast<int64_t>(offset + done));
      if (result < 0) return result;
      if (result == 0) return -EIO;
      done += static_cast<uint64_t>(result);
    }
    return 0;
  }

  long copy_data(int from, int to, const abi::Statx& found) {
    const uint64_t size = found.size;
    if (size == 0) return 0;
    if (clones_) {
      if (sys::call(abi::ioctl, to, abi::ficlone, from) >= 0) {
        report_->copied += size;
        return 0;
      }
      clones_ = false;
    }
    if (size <= most_small && is_on_tmpfs(to)) return copy_small(from, to);
    if (found.blocks * 512 >= size) return copy_range(from, to, 0, size);
    // Copies only the data, so that holes stay holes.
    uint64_t at = 0;
    while (at < size) {
      const long start = sys::call(abi::lseek, from, static_cast<int64_t>(at), SEEK_DATA);
      if (start == -ENXIO) break;
      if (start < 0) return copy_range(from, to, at, size);
      const long end = sys::call(abi::lseek, from, start, SEEK_HOLE);
      if (end < 0) return end;
      const uint64_t until = static_cast<uint64_t>(end) < size ? static_cast<uint64_t>(end) : size;
      if (static_cast<uint64_t>(start) >= size) break;
      const long result = copy_range(from, to, static_cast<uint64_t>(start), until);
      if (result < 0) return result;
      at = until;
    }
    return sys::call(abi::ftruncate, to, static_cast<int64_t>(size));
  }

  // On tmpfs this is faster than copy_file_range(2), which goes through a pipe there.
  long copy_small(int from, int to) {
    char buffer[most_small];
    long size = sys::read(from, buffer, sizeof buffer);
    for (long done = 0; done < size;) {
      const long result = sys::call(abi::write, to, buffer + done, static_cast<size_t>(size - done));
      if (result < 0) return result;
      done += result;
    }
    if (size > 0) report_->copied += static_cast<uint64_t>(size);
    return size < 0 ? size : 0;
  }

  bool is_on_tmpfs(int fd) {
    constexpr int64_t tmpfs_magic = 0x01021994;
    if (is_on_tmpfs_ == 0) is_on_tmpfs_ = is_on(fd, tmpfs_magic) ? 1 : -1;
    return is_on_tmpfs_ > 0;
  }

  static bool is_on(int fd, int64_t magic) {
    abi::Statfs found;
    return sys::fstatfs(fd, &found) == 0 && found.type == magic;
  }

  // Ends early if the file has become shorter; the check of the source that follows then fails.
  long copy_range(int from, int to, uint64_t at, uint64_t end) {
    while (at < end) {
      int64_t in = static_cast<int64_t>(at), out = in;
      const size_t rest = end - at > most_copied ? most_copied : static_cast<size_t>(end - at);
      long result = -ENOSYS;
      if (ranges_) result = sys::call(abi::copy_file_range, from, &in, to, &out, rest, 0U);
      const bool is_refused = result == -ENOSYS || result == -EXDEV || result == -EINVAL || result == -EOPNOTSUPP ||
                              result == -EPERM;
      if (is_refused || (ranges_ && result == 0)) {
        ranges_ = ranges_ && !is_refused;
        long moved = sys::call(abi::lseek, to, static_cast<int64_t>(at), SEEK_SET);
        if (moved < 0) return moved;
        in = static_cast<int64_t>(at);
        result = sys::call(abi::sendfile, to, from, &in, rest);
      }
      if (result < 0) return result;
      if (result == 0) return 0;
      at += static_cast<uint64_t>(result);
      report_->copied += static_cast<uint64_t>(result);
    }
    return 0;
  }

  long make_directory(const Place& place) {
    if (place.parent == nullptr) return set_metadata(place, -1, false);
    const bool stays = has(wants::existing) || has(wants::replace) || has(wants::atomic);
    long result = sys::mkdirat(place.dirfd, place.name, record_.mode & 01777);
    if (result == -EEXIST && stays) {
      abi::Statx found;
      result = look(place, abi::statx_type, &found);
      if (result < 0) return fail(Stage::create, result);
      if ((found.mode & S_IFMT) == S_IFDIR) {
        if (found.attributes & abi::statx_attr_mount_root) return fail(Stage::create, -EXDEV);
        return has(wants::atomic) && !has(wants::existing) ? 0 : set_metadata(place, -1, false);
      }
      if (has(wants::atomic)) return put_directory(place);
      if (!has(wants::replace)) return fail(Stage::create, -ENOTDIR);
      result = remove(place);
      if (result < 0) return fail(Stage::remove, result);
      result = sys::mkdirat(place.dirfd, place.name, record_.mode & 01777);
    }
    if (result < 0) return fail(Stage::create, result);
    result = set_metadata(place, -1, true);
    if (result < 0) sys::unlinkat(place.dirfd, place.name, AT_REMOVEDIR);
    return result;
  }

  // Puts a directory in the place of an entry of another type.
  long put_directory(const Place& place) {
    Place staging;
    long result = find_aside(&staging);
    if (result < 0) return fail(Stage::parent, result);
    result = sys::mkdirat(staging.dirfd, staging.name, record_.mode & 01777);
    if (result == -EEXIST) {
      result = remove(staging);
      if (result >= 0) result = sys::mkdirat(staging.dirfd, staging.name, record_.mode & 01777);
    }
    if (result < 0) return fail(Stage::create, result);
    result = set_metadata(staging, -1, true);
    if (result >= 0) result = exchange(staging, place);
    if (result < 0) sys::unlinkat(staging.dirfd, staging.name, AT_REMOVEDIR);
    return result;
  }

  // ------------------------------------------------------------------------------------------ changing

  long change_data(const Place& place) {
    int fd = open_file(place, O_WRONLY | O_NONBLOCK | O_NOCTTY, 0);
    if (fd < 0) return fail(Stage::data, fd);
    abi::Statx found;
    long result = sys::statx(fd, "", AT_EMPTY_PATH | abi::at_statx_dont_sync, abi::statx_type, &found);
    if (result >= 0 && (found.mode & S_IFMT) != S_IFREG) result = -ESTALE;
    if (result >= 0) {
      result = record_.kind == Kind::truncate ? sys::call(abi::ftruncate, fd, static_cast<int64_t>(record_.number))
                                              : write_data(fd, record_.number);
    }
    sys::close(fd);
    return result < 0 ? fail(Stage::data, result) : 0;
  }

  long remove(const Place& place) {
    long result = sys::unlinkat(place.dirfd, place.name, 0);
    if ((result == -EISDIR || result == -EPERM || result == -EACCES) && is_directory(place)) {
      result = remove_tree(place.dirfd, place.name, {.opens_up = true, .path = report_->inside, .room = sizeof report_->inside});
      has_moved_directories_ = true;
    }
    return result == -ENOENT ? 0 : result;
  }

  long remove_empty(const Place& place) {
    long result = sys::unlinkat(place.dirfd, place.name, AT_REMOVEDIR);
    has_moved_directories_ = result >= 0;
    const bool stays = result == -ENOENT || result == -ENOTEMPTY || result == -EEXIST;
    return result < 0 && !stays ? fail(Stage::remove, result) : 0;
  }

  long rename(const Place& to) {
    Place from;
    long result = find_from(&from);
    if (result < 0) return fail(Stage::source, result);
    if (record_.flags & (wants::owner | wants::mode | wants::times) || record_.attributes_size != 0) {
      result = set_metadata(from, -1, false);
      if (result < 0) return result;
    }
    has_moved_directories_ = has(wants::tree);
    result = sys::renameat2(from.dirfd, from.name, to.dirfd, to.name, 0);
    if (result >= 0) {
      if (has(wants::linked)) sys::unlinkat(from.dirfd, from.name, 0);
    } else if (!is_of_other_type(result) || !has(wants::atomic)) {
      return fail(Stage::place, result);
    } else if (is_directory(from)) {
      result = exchange(from, to);
    } else {
      result = put_link(from, to);
    }
    return result;
  }

  // Puts an entry that is not a directory in the place of a directory. The entry keeps its old name until it is in its
  // place. An exchange would put the directory under that name, and a later call would rename it.
  long put_link(const Place& from, const Place& to) {
    Place staging;
    long result = find_aside(&staging);
    if (result < 0) return fail(Stage::parent, result);
    result = sys::linkat(from.dirfd, from.name, staging.dirfd, staging.name, 0);
    if (result == -EEXIST) {
      result = remove(staging);
      if (result >= 0) result = sys::linkat(from.dirfd, from.name, staging.dirfd, staging.name, 0);
    }
    if (result < 0) return fail(Stage::create, result);
    result = exchange(staging, to);
    if (result < 0) {
      sys::unlinkat(staging.dirfd, staging.name, 0);
      return result;
    }
    result = sys::unlinkat(from.dirfd, from.name, 0);
    return result < 0 && result != -ENOENT ? fail(Stage::remove, result) : 0;
  }

  static constexpr int most_parents = 512;
  static constexpr int heads = 1024;
  static constexpr size_t most_copied = 1U << 30;
  static constexpr size_t most_small = 8192;

  const char* at_;
  const char* const end_;
  const WriteOptions& options_;
  WriteReport* const report_;

  Record record_;  // the current record, and the parts that follow it
  const char* path_ = nullptr;
  const char* from_ = nullptr;
  const char* attributes_ = nullptr;
  const char* data_ = nullptr;      // the end of the attributes
  const char* contents_ = nullptr;  // the data, wherever it is
  bool has_moved_directories_ = false;  // descriptors of parents may lead elsewhere by now
  bool made_ = false;  // the record's entry exists, perhaps incomplete

  uint32_t uid_ = 0, gid_ = 0;
  bool clones_ = true;  // until the file system refuses
  bool ranges_ = true;
  int is_on_tmpfs_ = 0;  // 0: not known yet, -1: no
  const char* whiteout_ = nullptr;
  uint32_t whiteout_size_ = 0;
  int whiteout_root_ = -1;

  Parent parents_[most_parents];
  int heads_[heads];
  int count_ = 0, last_ = -1;
};

}  // namespace

long write_batch(const char* batch, size_t size, const WriteOptions& options, WriteReport* report) {
  Batch all(batch, size, options, report);
  return all.run();
}

namespace {

// The batches of a writer take turns, so that the next one can wait on a thread while the event loop is busy: a word of
// the caller's memory holds the number of the batch whose turn it is.
class Turn {
 public:
  Turn(uint8_t* word, uint32_t number) : word_(reinterpret_cast<uint32_t*>(word)), number_(number) {}

  // Returns -ECANCELED if a batch before this one has failed, or if this one is stopped.
  long wait(const uint32_t* stop, uint32_t stop_bit) const {
    constexpr long look_again_nanoseconds = 20'000'000;  // the caller may write the word too, but wakes nobody
    for (;;) {
      const uint32_t now = __atomic_load_n(word_, __ATOMIC_ACQUIRE);
      if (now == number_) return 0;
      if (now == over || (__atomic_load_n(stop, __ATOMIC_RELAXED) & stop_bit)) return -ECANCELED;
      const timespec patience{0, look_again_nanoseconds};
      ::syscall(abi::futex, word_, FUTEX_WAIT_PRIVATE, now, &patience, nullptr, 0);
    }
  }

  void pass_on(bool succeeded) const {
    // The caller may have written `over` meanwhile, and then it stays.
    uint32_t mine = number_;
    if (succeeded) {
      __atomic_compare_exchange_n(word_, &mine, number_ + 1, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
    } else {
      __atomic_store_n(word_, over, __ATOMIC_RELEASE);
    }
    ::syscall(abi::futex, word_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }

 private:
  static constexpr uint32_t over = 0xffffffff;

  uint32_t* const word_;
  const uint32_t number_;
};

}  // namespace

// write_tree(root, other roots, batch, staging directory or NULL, 1 to follow links inside the root, the number of the
// first buffer that the caller has lent, the number of the turn or -1). With a turn, the buffers begin with its word.
// The output is a WriteReport.
long Execution::write_tree(const Step& step) {
  Text others(*this, step.a[1]), batch(*this, step.a[2]), staging(*this, step.a[3]);
  // A child has its own umask, and so has a thread after unshare(2) with CLONE_FS.
  const bool has_own_umask = (header().flags & in_child) != 0 ||
                             ((header().flags & own_thread) != 0 && sys::call(abi::unshare, CLONE_FS) >= 0);
  WriteReport report{};
  const bool has_turn = step.a[6] >= 0;
  const WriteOptions options{.root = descriptor(step.a[0]),
                             .lent = lent_.data() + (has_turn ? 1 : 0),
                             .first_lent = static_cast<uint32_t>(step.a[5]),
                             .others = others,
                             .staging = staging,
                             .in_root = step.a[4] != 0,
                             .has_own_umask = has_own_umask,
                             .stop = &progress_,
                             .stop_bit = stopped};
  long result = 0;
  if (has_turn) {
    const Turn turn(lent_[0].at, static_cast<uint32_t>(step.a[6]));
    result = turn.wait(&progress_, stopped);
    if (result >= 0) result = write_batch(batch, batch.size(), options, &report);
    turn.pass_on(result >= 0);
  } else {
    result = write_batch(batch, batch.size(), options, &report);
  }
  memcpy(block_ + step.output + 8, &report, sizeof report);
  return result;
}

}  // namespace overlayfs
