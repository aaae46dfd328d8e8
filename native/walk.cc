#include "walk.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>

#include "beneath.h"
#include "plan.h"
#include "syscalls.h"
#include "text.h"
#include "threads.h"

namespace overlayfs {

namespace {

constexpr size_t entries_size = 65536;
constexpr size_t most_open = 32;               // the most levels that stay open
constexpr uint32_t most_attribute = 65536;      // XATTR_SIZE_MAX, XATTR_LIST_MAX
constexpr int statx_no_automount = 0x800;      // AT_NO_AUTOMOUNT
constexpr unsigned wanted = 0x7ff | abi::statx_mnt_id;  // STATX_BASIC_STATS

// Opens an entry of a directory unless something is mounted there. Linux before 5.6 and some seccomp filters have no
// openat2(2) that could tell; the callers compare the mount's id instead.
int open_on_mount(int dirfd, const char* name, uint64_t flags) {
  static int has_openat2 = 1;
  if (__atomic_load_n(&has_openat2, __ATOMIC_RELAXED)) {
    int fd = sys::openat2(dirfd, name, flags, 0, abi::resolve_no_xdev);
    if (fd != -ENOSYS && fd != -EPERM) return fd;
    // EPERM may also be about this one entry.
    if (fd == -ENOSYS) __atomic_store_n(&has_openat2, 0, __ATOMIC_RELAXED);
  }
  return sys::openat2(dirfd, name, flags, 0, 0);
}

// Says if the kernel has listxattrat(2) and getxattrat(2), from 6.13 on. The first call in a process finds out.
int attributes_at = 0;  // 0: not known yet, 1: yes, -1: no

struct AttributeArguments {
  uint64_t value;
  uint32_t size;
  uint32_t flags;
};

// A path to an entry through the descriptor of its directory.
class EntryPath {
 public:
  EntryPath(int dirfd, const char* name) {
    size_t end = strlen(start);
    memcpy(text_, start, end);
    end += write_decimal(text_ + end, dirfd);
    text_[end++] = '/';
    size_t size = std::min(strlen(name), sizeof text_ - end - 1);
    memcpy(text_ + end, name, size);
    text_[end + size] = '\0';
  }
  operator const char*() const { return text_; }

 private:
  static constexpr char start[] = "/proc/self/fd/";
  char text_[1088];
};

// Calls the newer form, which needs no /proc, or the older one.
template <typename New, typename Old>
long either(New newer, Old older) {
  int known = __atomic_load_n(&attributes_at, __ATOMIC_RELAXED);
  if (known >= 0) {
    long result = newer();
    // A seccomp filter that does not know the call answers EPERM.
    if (result != -ENOSYS && (known > 0 || result != -EPERM)) {
      if (known == 0) __atomic_store_n(&attributes_at, 1, __ATOMIC_RELAXED);
      return result;
    }
    if (known > 0) return result;
    __atomic_store_n(&attributes_at, -1, __ATOMIC_RELAXED);
  }
  return older();
}

bool is_without_attributes(long result) { return result == 0 || result == -EOPNOTSUPP || result == -ENODATA; }

// Returns the flags with which a walk reads the attributes of an entry.
uint32_t attributes_wanted(const abi::Statx& found) {
  uint32_t type = found.mode & S_IFMT;
  bool may_have_marks = type == S_IFDIR || (type == S_IFREG && found.size == 0);
  return may_have_marks ? attributes_of_directories | attributes_of_others : attributes_of_others;
}

// The kernel allocates as much memory as the caller has room, and clears it for a value.
template <typename Call>
long with_room(Call call) {
  constexpr uint32_t usual = 512;
  const long result = call(usual);
  return result == -ERANGE ? call(most_attribute) : result;
}

bool has_only_ascii(const char* name, size_t size) {
  uint8_t all = 0;
  for (size_t i = 0; i < size; i++) all |= static_cast<uint8_t>(name[i]);
  return all < 0x80;
}

}  // namespace

// ------------------------------------------------------------------------------------------ records

bool Records::append(const void* bytes, size_t size) {
  if (!bytes_.reserve(size)) return false;
  size_t end = bytes_.size();
  bytes_.resize(end + size);
  if (size != 0) memcpy(&bytes_[end], bytes, size);
  return true;
}

bool Records::align(size_t to) {
  constexpr char zeros[8] = {};
  return append(zeros, (to - bytes_.size() % to) % to);
}

bool Records::add_error(int error, uint32_t mode, const char* name, uint32_t depth, uint32_t flags) {
  abi::Statx nothing;
  memset(&nothing, 0, sizeof nothing);
  nothing.mode = static_cast<uint16_t>(mode);
  if (!add(nothing, -1, -1, name, depth, flags, false)) return false;
  set_error(error);
  return true;
}

bool Records::add(const abi::Statx& found, int fd, int dirfd, const char* name, uint32_t depth, uint32_t flags,
                  bool wants_all) {
  last_ = bytes_.size();
  size_t name_size = strlen(name);
  if (has_only_ascii(name, name_size)) flags |= is_ascii;
  if (found.attributes & (abi::statx_attr_immutable | abi::statx_attr_append)) flags |= is_frozen;
  Record record{0, found.mode, found.uid, found.gid, found.nlink, found.rdev_major, found.rdev_minor, depth,
                found.dev_major, found.dev_minor, 0, flags, static_cast<uint32_t>(name_size), 0, 0,
                found.mtime.tv_nsec, found.ctime.tv_nsec, 0, found.ino, found.size, found.blocks,
                found.mtime.tv_sec, found.ctime.tv_sec, 0};
  constexpr int64_t second = 1'000'000'000, most_seconds = INT64_MAX / second - 1;
  if (found.mtime.tv_sec <= most_seconds && found.mtime.tv_sec >= -most_seconds) {
    record.flags |= has_whole_mtime;
    record.mtime_whole = found.mtime.tv_sec * second + found.mtime.tv_nsec;
  }
  if (!append(&record, sizeof record) || !append(name, name_size) || !align(8)) return false;
  if ((flags_ & targets) && (found.mode & S_IFMT) == S_IFLNK && dirfd >= 0 && !add_target(dirfd, name)) {
    return false;
  }
  if (wants_all && !add_attributes(fd, dirfd, name)) return false;
  at(last_)->size = static_cast<uint32_t>(bytes_.size() - last_);
  return true;
}

bool Records::add_target(int dirfd, const char* name) {
  constexpr size_t most = 4096;
  if (!bytes_.reserve(most)) return false;
  size_t end = bytes_.size();
  long size = sys::readlinkat(dirfd, name, bytes_.data() + end, most);
  if (size < 0) {
    set_error(static_cast<int>(-size));
    return true;
  }
  bytes_.resize(end + static_cast<size_t>(size));
  at(last_)->target_size = static_cast<uint32_t>(size);
  return align(8);
}

long Records::list_attributes(int fd, int dirfd, const char* name, uint32_t room) {
  char* to = list_.data();
  if (fd >= 0) return sys::call(abi::flistxattr, fd, to, room);
  return either([&] { return sys::call(abi::listxattrat, dirfd, name, AT_SYMLINK_NOFOLLOW, to, room); },
                [&] { return sys::call(abi::llistxattr, static_cast<const char*>(EntryPath(dirfd, name)), to, room); });
}

long Records::get_attribute(int fd, int dirfd, const char* name, const char* attribute, uint32_t room) {
  char* to = value_.data();
  if (fd >= 0) return sys::call(abi::fgetxattr, fd, attribute, to, room);
  return either(
      [&] {
        AttributeArguments arguments{reinterpret_cast<uint64_t>(to), room, 0};
        return sys::call(abi::getxattrat, dirfd, name, AT_SYMLINK_NOFOLLOW, attribute, &arguments, sizeof arguments);
      },
      [&] { return sys::lgetxattr(EntryPath(dirfd, name), attribute, to, room); });
}

bool Records::add_attributes(int fd, int dirfd, const char* name) {
  if (!list_.reserve(most_attribute)) return false;
  long listed = with_room([&](uint32_t room) { return list_attributes(fd, dirfd, name, room); });
  if (is_without_attributes(listed)) return true;
  if (listed < 0) {
    set_error(static_cast<int>(-listed));
    return true;
  }
  if (!value_.reserve(most_attribute)) return false;
  size_t start = bytes_.size();
  const char* end = list_.data() + listed;
  for (const char* attribute = list_.data(); attribute < end;) {
    size_t name_size = strlen(attribute);
    long result = with_room([&](uint32_t room) { return get_attribute(fd, dirfd, name, attribute, room); });
    if (result != -ENODATA) {  // removed meanwhile
      uint32_t sizes[] = {static_cast<uint32_t>(name_size), result < 0 ? unreadable : static_cast<uint32_t>(result)};
      if (!append(sizes, sizeof sizes) || !append(attribute, name_size) || !align(4)) return false;
      if (result > 0 && (!append(value_.data(), static_cast<size_t>(result)) || !align(4))) return false;
      if (result < 0 && result != -EACCES && result != -EPERM) set_error(static_cast<int>(-result));
    }
    attribute += name_size + 1;
  }
  at(last_)->attributes_size = static_cast<uint32_t>(bytes_.size() - start);
  return align(8);
}

// ------------------------------------------------------------------------------------------ walk

Walk::~Walk() {
  for (size_t i = 0; i < levels_.size(); i++) {
    if (levels_[i].fd >= 0) sys::close(levels_[i].fd);
  }
}

// Makes room for a descriptor: closes the uppermost open level, but never the last one.
bool Walk::close_one() {
  while (lowest_open_ + 1 < levels_.size()) {
    Level& level = levels_[lowest_open_++];
    if (level.fd < 0) continue;
    sys::close(level.fd);
    level.fd = -1;
    return true;
  }
  return false;
}

int Walk::open_directory(int at, const char* name) {
  for (;;) {
    int fd = open_on_mount(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if ((fd != -EMFILE && fd != -ENFILE) || !close_one()) return fd;
  }
}

bool Walk::is_on_other_mount(const abi::Statx& found) const {
  return knows_mounts_ ? found.mnt_id != mount_ : device_of(found) != root_device_;
}

// Reads the names of the directory that the last record describes. The walk owns the descriptor from here on.
bool Walk::enter(int fd, const abi::Statx& found) {
  count_++;
  if ((flags_ & one_level) && levels_.size() != 0) {
    sys::close(fd);
    return true;
  }
  size_t names = names_.size(), first = order_.size();
  int error = read_names(fd);
  if (error != 0) records_.set_error(error);
  if (!levels_.reserve(1)) {
    sys::close(fd);
    return false;
  }
  if (!(flags_ & unsorted)) sort(first, order_.size());
  levels_.resize(levels_.size() + 1);
  levels_.back() = {fd, count_, found.ino, device_of(found), names, first, first, order_.size()};
  if (levels_.size() - lowest_open_ > most_open) close_one();
  return true;
}

int Walk::read_names(int fd) {
  if (!entries_.reserve(entries_size)) return ENOMEM;
  for (;;) {
    long filled = sys::getdents64(fd, entries_.data(), entries_size);
    if (filled <= 0) return static_cast<int>(-filled);
    for (long offset = 0; offset < filled;) {
      const auto* entry = reinterpret_cast<const abi::Dirent*>(&entries_[static_cast<size_t>(offset)]);
      offset += entry->reclen;
      if (is_dot_or_dotdot(entry->name)) continue;
      size_t size = strlen(entry->name) + 1;
      size_t at = names_.size();
      if (!names_.reserve(size + 1) || !order_.reserve(1) || at > UINT32_MAX - 4096) return ENOMEM;
      names_.resize(at + size + 1);
      names_[at] = static_cast<char>(entry->type);
      memcpy(&names_[at + 1], entry->name, size);
      order_.resize(order_.size() + 1);
      order_.back() = static_cast<uint32_t>(at);
    }
  }
}

void Walk::sort(size_t first, size_t end) {
  if (end - first < 2) return;
  const char* names = names_.data() + 1;
  std::sort(order_.data() + first, order_.data() + end, [names](uint32_t a, uint32_t b) {
    const auto* left = reinterpret_cast<const uint8_t*>(names + a);
    const auto* right = reinterpret_cast<const uint8_t*>(names + b);
    while (*left == *right && *left != 0) left++, right++;
    return *left < *right;
  });
}

// Leaves the last level. Returns false if the walk cannot reach its parent again.
bool Walk::leave() {
  Level last = levels_.back();
  names_.resize(last.names);
  order_.resize(last.first);
  levels_.resize(levels_.size() - 1);
  bool is_reached = true;
  if (levels_.size() != 0 && levels_.back().fd < 0) {
    Level& parent = levels_.back();
    int fd = open_directory(last.fd, "..");
    abi::Statx found;
    long result = fd < 0 ? fd : sys::statx(fd, "", AT_EMPTY_PATH, wanted, &found);
    if (result >= 0 && (found.ino != parent.inode || device_of(found) != parent.device)) result = -ESTALE;
    parent.fd = fd;
    if (result < 0) is_reached = lose(static_cast<int>(-result), levels_.size() - 1);
    lowest_open_ = std::min(lowest_open_, levels_.size() - 1);
  }
  sys::close(last.fd);
  return is_reached;
}

// Ends the walk with a record of the error. Returns false.
bool Walk::lose(int error, size_t depth) {
  records_.add_error(error, 0, "", static_cast<uint32_t>(depth), is_broken_off);
  count_++;
  for (size_t i = 0; i < levels_.size(); i++) {
    if (levels_[i].fd >= 0) sys::close(levels_[i].fd);
  }
  levels_.resize(0);
  return false;
}

bool Walk::skip(uint32_t number) {
  size_t depth = 0;
  while (depth < levels_.size() && levels_[depth].number != number) depth++;
  if (depth == levels_.size()) return true;
  while (levels_.size() > depth) {
    if (!leave()) return false;
  }
  return true;
}

long Walk::next(int dirfd, const char* path, size_t size, uint32_t to_skip) {
  records_.clear();
  uint32_t before = count_;
  if (!has_begun_) {
    has_begun_ = true;
    long result = open_root(dirfd, path);
    if (result < 0) return result;
  }
  bool goes_on = skip(to_skip);
  while (goes_on && levels_.size() != 0 && records_.size() < size) {
    Level& level = levels_.back();
    if (level.next == level.end) {
      goes_on = leave();
      continue;
    }
    const char* at = names_.data() + order_[level.next++];
    goes_on = visit(level, at + 1, static_cast<uint8_t>(at[0]));
  }
  return static_cast<long>(count_ - before);
}

bool Walk::visit(const Level& level, const char* name, uint8_t type) {
  constexpr uint8_t directory = 4;  // DT_DIR
  bool is_other = type != directory;
  if (!is_other && !visit_directory(level, name, &is_other)) return false;
  return !is_other || visit_other(level, name);
}

// Opens the directory before it describes it, so that the record and the contents belong together.
bool Walk::visit_directory(const Level& level, const char* name, bool* is_other) {
  int fd = open_directory(level.fd, name);
  auto depth = static_cast<uint32_t>(levels_.size());
  *is_other = fd < 0;
  if (fd < 0) return true;
  abi::Statx found;
  long result = sys::statx(fd, "", AT_EMPTY_PATH, wanted, &found);
  if (result < 0) {
    sys::close(fd);
    count_++;
    return records_.add_error(static_cast<int>(-result), S_IFDIR, name, depth, 0) || lose(ENOMEM, depth - 1);
  }
  if (is_on_other_mount(found)) {
    sys::close(fd);
    count_++;
    return records_.add(found, -1, -1, name, depth, is_other_mount, false) || lose(ENOMEM, depth - 1);
  }
  if (!records_.add(found, fd, -1, name, depth, 0, flags_ & attributes_of_directories)) {
    sys::close(fd);
    return lose(ENOMEM, depth - 1);
  }
  return enter(fd, found) || lose(ENOMEM, depth - 1);
}

// Returns true if the entry is still the one that BEFORE describes, so that attributes or a target read by name are its.
bool Walk::is_same(int dirfd, const char* name, const abi::Statx& before) {
  abi::Statx now;
  long result = sys::statx(dirfd, name, AT_SYMLINK_NOFOLLOW | statx_no_automount, wanted, &now);
  return result >= 0 && now.ino == before.ino && now.dev_major == before.dev_major &&
         now.dev_minor == before.dev_minor && now.ctime.tv_sec == before.ctime.tv_sec &&
         now.ctime.tv_nsec == before.ctime.tv_nsec;
}

// Describes an entry that is not a directory, or a directory that cannot be entered.
bool Walk::visit_other(const Level& level, const char* name) {
  auto depth = static_cast<uint32_t>(levels_.size());
  constexpr int most_attempts = 16;
  for (int attempt = 0; attempt < most_attempts; attempt++) {
    abi::Statx found;
    long result = sys::statx(level.fd, name, AT_SYMLINK_NOFOLLOW | statx_no_automount, wanted, &found);
    if (result == -ENOENT) return true;  // removed meanwhile
    if (result < 0) {
      count_++;
      return records_.add_error(static_cast<int>(-result), 0, name, depth, 0) || lose(ENOMEM, depth - 1);
    }
    bool is_directory = (found.mode & S_IFMT) == S_IFDIR;
    bool is_other_one = is_on_other_mount(found);
    if (is_directory && !is_other_one) {
      // The entry has become a directory, its file system reports no types, or the directory could not be opened.
      int fd = open_directory(level.fd, name);
      if (fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP) continue;
      if (fd >= 0) {
        sys::close(fd);
        bool is_other = false;
        if (!visit_directory(level, name, &is_other)) return false;
        if (!is_other) return true;
        continue;
      }
      bool is_ours = fd != -EXDEV;
      if (!records_.add(found, -1, level.fd, name, depth, is_ours ? 0 : is_other_mount,
                        is_ours && (flags_ & attributes_of_directories))) {
        return lose(ENOMEM, depth - 1);
      }
      if (is_ours) records_.set_error(-fd);
      count_++;
      return true;
    }
    bool wants_all = !is_other_one && !is_directory && (flags_ & attributes_wanted(found));
    if (!records_.add(found, -1, level.fd, name, depth, is_other_one ? is_other_mount : 0, wants_all)) {
      return lose(ENOMEM, depth - 1);
    }
    if (records_.has_read_more() && !is_same(level.fd, name, found)) {
      records_.drop_last();
      continue;
    }
    count_++;
    return true;
  }
  count_++;
  return records_.add_error(EAGAIN, 0, name, depth, 0) || lose(ENOMEM, depth - 1);
}

// ------------------------------------------------------------------------------------------ registry

namespace {

pthread_mutex_t walks_mutex = PTHREAD_MUTEX_INITIALIZER;
Walk* walks = nullptr;
uint32_t last_id = 0;

}  // namespace

Walk* Walk::take(uint32_t id) {
  Lock lock(walks_mutex);
  for (Walk* walk = walks; walk != nullptr; walk = walk->next_walk_) {
    if (walk->id_ != id || walk->is_taken_) continue;
    walk->is_taken_ = true;
    return walk;
  }
  return nullptr;
}

void Walk::give_back(Walk* walk) {
  {
    Lock lock(walks_mutex);
    walk->is_taken_ = false;
    if (!walk->is_closed_) return;
  }
  delete walk;
}

// Removes the walk from the registry and deletes it. If a step has the walk, give_back deletes it.
void Walk::forget(uint32_t id) {
  Walk* walk = nullptr;
  {
    Lock lock(walks_mutex);
    for (Walk** at = &walks; *at != nullptr; at = &(*at)->next_walk_) {
      if ((*at)->id_ != id) continue;
      walk = *at;
      *at = walk->next_walk_;
      walk->is_closed_ = true;
      if (walk->is_taken_) walk = nullptr;
      break;
    }
  }
  delete walk;
}

void Walk::finalize(napi_env, void* data, void*) { forget(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(data))); }

napi_value Walk::open(napi_env env, napi_callback_info info) {
  napi_value argument, object = nullptr, id;
  size_t count = 1;
  napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr);
  uint32_t flags = 0;
  napi_get_value_uint32(env, argument, &flags);
  auto* walk = new Walk(flags);
  {
    Lock lock(walks_mutex);
    walk->id_ = ++last_id;
    walk->next_walk_ = walks;
    walks = walk;
  }
  auto* data = reinterpret_cast<void*>(static_cast<uintptr_t>(walk->id_));
  if (napi_create_object(env, &object) != napi_ok ||
      napi_wrap(env, object, data, finalize, nullptr, nullptr) != napi_ok) {
    forget(walk->id_);
    return nullptr;
  }
  napi_create_uint32(env, walk->id_, &id);
  napi_set_named_property(env, object, "id", id);
  return object;
}

napi_value Walk::close(napi_env env, napi_callback_info info) {
  napi_value argument;
  size_t count = 1;
  napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr);
  uint32_t id = 0;
  napi_get_value_uint32(env, argument, &id);
  forget(id);
  return nullptr;
}

// walk(dirfd, path of the root, id, size of the records, number of a directory to skip); data: records. Returns the
// number of records; 0 at the end.
long Execution::walk(const Step& step) {
  Walk* walk = Walk::take(static_cast<uint32_t>(step.a[2]));
  if (walk == nullptr) return -EBADF;
  long result = walk->next(descriptor(step.a[0]), Text(*this, step.a[1]), static_cast<size_t>(step.a[3]),
                           static_cast<uint32_t>(step.a[4]));
  if (result > 0) {
    Records& records = walk->records();
    memcpy(add_data(step, records.size()), records.data(), records.size());
  }
  Walk::give_back(walk);
  return result;
}

// ------------------------------------------------------------------------------------------ single entries

namespace {

// Finds entries by their paths below a directory, component by component, through no symbolic link and into no other
// mount. Keeps the directories on the way to the last one open.
class Finder {
 public:
  explicit Finder(int root) : root_(root) {}
  ~Finder() { close_from(0); }
  Finder(const Finder&) = delete;
  Finder& operator=(const Finder&) = delete;

  // Opens the directory with this path. Returns its descriptor, which the finder closes, or minus the errno.
  int reach(const char* path, size_t size) {
    if (size != 0 && path[size - 1] == '/') return -EINVAL;
    if (missing_.size() != 0 && is_at_or_below(path, size, missing_.data(), missing_.size())) return -ENOENT;
    size_t done = common(path, size);
    int at = count_ == 0 ? root_ : steps_[count_ - 1].fd;
    for (int most = most_at_once; done < size;) {
      size_t end = done;
      for (int names = 0; names < most && end < size; names++) {
        size_t start = names == 0 ? end : end + 1;
        for (end = start; end < size && path[end] != '/';) end++;
        if (end == start || is_dot_or_dotdot(path + start, end - start)) return -EINVAL;
      }
      int fd = open_beneath(at, path + done, end - done, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      if (fd == -ENOENT && memchr(path + done, '/', end - done) != nullptr) {  // finds the first one that is missing
        most = 1;
        continue;
      }
      if (fd == -ENOENT) remember_missing(path, end);
      if (fd < 0) return fd;
      done = end < size ? end + 1 : end;
      // The last components of a very long path take turns in the last place.
      if (count_ == most_steps) sys::close(steps_[--count_].fd);
      if (!path_.reserve(size)) {
        sys::close(fd);
        return -ENOMEM;
      }
      path_.resize(end);
      memcpy(path_.data(), path, end);
      steps_[count_++] = {fd, end};
      at = fd;
    }
    return at;
  }

 private:
  static constexpr size_t most_steps = 64;
  static constexpr int most_at_once = 4;  // names that one call resolves: a call costs more than a few names
  struct Step {
    int fd;
    size_t end;  // the end of its path in path_
  };

  // Keeps the directories that the path shares with the last one. Returns the offset of the rest.
  size_t common(const char* path, size_t size) {
    size_t kept = 0;
    while (kept < count_) {
      size_t end = steps_[kept].end;
      if (!is_at_or_below(path, size, path_.data(), end)) break;
      kept++;
    }
    close_from(kept);
    if (kept == 0) return 0;
    size_t end = steps_[kept - 1].end;
    return end < size ? end + 1 : end;
  }

  static bool is_at_or_below(const char* path, size_t size, const char* directory, size_t directory_size) {
    return directory_size <= size && memcmp(directory, path, directory_size) == 0 &&
           (directory_size == size || path[directory_size] == '/');
  }

  // Callers ask for the entries of one directory in a row, so the next path is likely to lead through it too.
  void remember_missing(const char* path, size_t size) {
    missing_.resize(0);
    if (!missing_.reserve(size)) return;
    missing_.resize(size);
    memcpy(missing_.data(), path, size);
  }

  void close_from(size_t kept) {
    while (count_ > kept) sys::close(steps_[--count_].fd);
  }

  int root_;
  size_t count_ = 0;
  Step steps_[most_steps];
  Array<char> path_;
  Array<char> missing_;
};

}  // namespace

long Walk::open_root(int dirfd, const char* path) {
  int fd;
  if (flags_ & root_inside) {
    Finder finder(dirfd);
    int found = finder.reach(path, strlen(path));
    fd = found < 0 ? found : open_directory(found, ".");
  } else {
    uint64_t flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    if (!(flags_ & follow_root)) flags |= O_NOFOLLOW;
    fd = sys::openat2(dirfd, path, flags, 0, 0);
  }
  if (fd < 0) return fd;
  abi::Statx found;
  long result = sys::statx(fd, "", AT_EMPTY_PATH, wanted, &found);
  if (result < 0) {
    sys::close(fd);
    return result;
  }
  knows_mounts_ = found.mask & abi::statx_mnt_id;
  mount_ = found.mnt_id;
  root_device_ = device_of(found);
  if (!records_.add(found, fd, -1, "", 0, 0, flags_ & attributes_of_directories)) {
    sys::close(fd);
    return -ENOMEM;
  }
  return enter(fd, found) ? 0 : -ENOMEM;
}

// examine(dirfd, WalkFlag, paths below it); data: one record for each path; a missing entry's has the errno. A path is its
// uint32 size and its bytes with a NUL, aligned to 4 bytes. The empty path is the directory itself.
long Execution::examine(const Step& step) {
  int root = descriptor(step.a[0]);
  Text paths(*this, step.a[2]);
  auto flags = static_cast<uint32_t>(step.a[1]);
  Finder finder(root);
  Records records(flags);
  abi::Statx found;
  const bool knows_mounts = sys::statx(root, "", AT_EMPTY_PATH, abi::statx_mnt_id, &found) == 0 && (found.mask & abi::statx_mnt_id);
  const uint64_t mount = found.mnt_id;
  const char* at = paths;
  const char* end = at + paths.size();
  long count = 0;
  for (; at < end; count++) {
    uint32_t size;
    memcpy(&size, at, sizeof size);
    const char* path = at + sizeof size;
    at = path + ((size + 1 + 3) & ~3U);
    size_t name = size;
    while (name > 0 && path[name - 1] != '/') name--;
    int dirfd = name == 0 ? root : finder.reach(path, name - 1);
    int at_flags = AT_SYMLINK_NOFOLLOW | statx_no_automount | (size == 0 ? AT_EMPTY_PATH : 0);
    long result = dirfd;
    if (result >= 0) result = is_dot_or_dotdot(path + name) ? -EINVAL : sys::statx(dirfd, path + name, at_flags, wanted, &found);
    bool is_added;
    if (result < 0) {
      is_added = records.add_error(static_cast<int>(-result), 0, "", 0, 0);
    } else {
      const uint32_t other = knows_mounts && found.mnt_id != mount ? is_other_mount : 0;
      is_added = records.add(found, -1, dirfd, size == 0 ? "." : path + name, 0, other, flags & attributes_wanted(found));
    }
    if (!is_added) return -ENOMEM;
  }
  if (records.size() != 0) memcpy(add_data(step, records.size()), records.data(), records.size());
  return count;
}

namespace {

// Reads until the buffer is full or the file ends.
long read_all(int fd, char* to, size_t size) {
  size_t done = 0;
  while (done < size) {
    long result = sys::read(fd, to + done, size - done);
    if (result < 0) return result;
    if (result == 0) break;
    done += static_cast<size_t>(result);
  }
  return static_cast<long>(done);
}

long compare_files(int a, int b) {
  constexpr size_t chunk = 131072;
  Array<char> buffer;
  if (!buffer.reserve(2 * chunk)) return -ENOMEM;
  for (;;) {
    long a_size = read_all(a, buffer.data(), chunk);
    if (a_size < 0) return a_size;
    long b_size = read_all(b, buffer.data() + chunk, chunk);
    if (b_size < 0) return b_size;
    if (a_size != b_size || memcmp(buffer.data(), buffer.data() + chunk, static_cast<size_t>(a_size)) != 0) return 0;
    if (a_size == 0) return 1;
  }
}

}  // namespace

// compare(dirfd, path below it, another dirfd, path below that). Returns 1 if both files hold the same bytes, else 0.
long Execution::compare(const Step& step) {
  constexpr uint64_t flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
  Text path(*this, step.a[1]), other_path(*this, step.a[3]);
  int fd = open_beneath(descriptor(step.a[0]), path, path.size(), flags);
  if (fd < 0) return fd;
  int other = open_beneath(descriptor(step.a[2]), other_path, other_path.size(), flags);
  long result = other < 0 ? other : compare_files(fd, other);
  sys::close(fd);
  if (other >= 0) sys::close(other);
  return result;
}

}  // namespace overlayfs
