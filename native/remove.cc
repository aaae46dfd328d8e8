// Removes directory trees by descriptor. Follows no symbolic link and enters no other mount.
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "array.h"
#include "beneath.h"
#include "in_use.h"
#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

constexpr int open_directory = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

// The number of directories that are open at a time. The walk reopens those further up, by "..", on its way back.
constexpr size_t window = 16;
constexpr size_t entries_size = 16384;

// The walk gives up on a directory that another program keeps filling.
constexpr int most_rewinds = 16;

struct Level {
  int fd;                 // -1: closed for want of room in the window
  bool is_opened_up;      // its mode has been changed, or cannot be changed
  bool has_lost_entries;  // entries were removed since it was read from its beginning
  int rewinds;
  size_t name;            // the offset of its name
  uint64_t device, inode;
  long size, offset;      // the size of the entries that were read, and of those that are done
};

bool is_not_empty(long result) { return result == -ENOTEMPTY || result == -EEXIST; }

// The entries that overlayfs makes in the directory `work` of a workdir.
bool is_made_by_kernel(const char* name) {
  constexpr char volatile_mark[] = "incompat";
  return name[0] == '#' || (strlen(name) == strlen(volatile_mark) && memcmp(name, volatile_mark, strlen(name)) == 0);
}

class Removal {
 public:
  Removal(int dirfd, const char* name, const RemoveOptions& options)
      : dirfd_(dirfd), name_(name), options_(options) {}
  ~Removal() {
    for (size_t i = 0; i < levels_.size(); i++) close_level(levels_[i]);
  }
  Removal(const Removal&) = delete;
  Removal& operator=(const Removal&) = delete;

  long run() {
    long result = check_use(dirfd_, name_);
    if (result < 0) return result;
    // Checks that NAME itself may be removed and is no mount point, before anything in it is removed.
    result = sys::unlinkat(dirfd_, name_, AT_REMOVEDIR);
    if (!is_not_empty(result)) return result;
    if (!entries_.reserve(window * entries_size)) return -ENOMEM;
    result = enter(dirfd_, name_);
    while (result >= 0 && levels_.size() > 0) {
      if (options_.limit != 0 && removed_ >= options_.limit) return 1;
      result = go_on();
    }
    return result;
  }

  // Writes the path of the entry that could not be removed, from NAME on.
  void write_path(char* to, size_t room) {
    size_t end = 0;
    auto add = [&](const char* name) {
      size_t size = strlen(name);
      if (end + size + 2 > room) size = room - end - 2;
      if (end != 0 && size != 0) to[end++] = '/';
      memcpy(to + end, name, size);
      end += size;
    };
    for (size_t i = 1; i < levels_.size() && end + 2 < room; i++) add(&names_[levels_[i].name]);
    if (end + 2 < room) add(failed_);
    to[end] = '\0';
  }

 private:
  char* entries_of(size_t level) { return &entries_[level % window * entries_size]; }

  void close_level(Level& level) {
    if (level.fd >= 0) sys::close(level.fd);
    level.fd = -1;
    level.size = level.offset = 0;
  }

  // Makes room for a descriptor: closes the one furthest up, unless it is the last.
  bool close_one() {
    for (size_t i = 0; i + 1 < levels_.size(); i++) {
      if (levels_[i].fd < 0) continue;
      close_level(levels_[i]);
      return true;
    }
    return false;
  }

  int open(int at, const char* name, int flags) {
    for (;;) {
      int fd = sys::openat2(at, name, static_cast<uint64_t>(flags), 0, 0);
      if ((fd != -EMFILE && fd != -ENFILE) || !close_one()) return fd;
    }
  }

  long look(int fd, abi::Statx* found) {
    constexpr unsigned mask = abi::statx_type | abi::statx_mode | abi::statx_ino | abi::statx_mnt_id;
    long result = sys::statx(fd, "", AT_EMPTY_PATH | abi::at_statx_dont_sync, mask, found);
    if (result < 0) return result;
    if (levels_.size() == 0) mount_ = found->mnt_id;
    return found->mnt_id == mount_ ? 0 : -EXDEV;
  }

  // Returns a mode that allows the owner of the directory everything.
  static unsigned opened_up(const abi::Statx& found) { return (found.mode & 07777U) | S_IRWXU; }

  // Opens up a directory that cannot be opened to read it.
  long open_up(int at, const char* name) {
    int fd = open(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return fd;
    abi::Statx found;
    long result = look(fd, &found);
    if (result >= 0) result = sys::call(abi::fchmodat2, fd, "", opened_up(found), AT_EMPTY_PATH);
    if (result == -ENOSYS || result == -EPERM) {  // before 6.6, or a seccomp filter
      char path[32] = "/proc/self/fd/";
      size_t length = strlen(path);
      length += write_decimal(path + length, fd);
      path[length] = '\0';
      result = sys::call(abi::fchmodat, AT_FDCWD, path, opened_up(found));
    }
    sys::close(fd);
    return result;
  }

  bool open_up(Level& level) {
    if (!options_.opens_up || level.is_opened_up) return false;
    level.is_opened_up = true;
    abi::Statx found;
    return look(level.fd, &found) >= 0 && sys::call(abi::fchmod, level.fd, opened_up(found)) >= 0;
  }

  // Fails if an overlay uses the directory as upper or work, or may do so.
  long check_use(int at, const char* name) {
    if (!options_.spares_used) return 0;
    DirectoryKey key;
    if (find_key(at, name, AT_SYMLINK_NOFOLLOW, &key) < 0) return 0;  // the removal meets the same error
    InUse::User user;
    const Usage usage = directories_in_use.ask(key, &user, options_.asker);
    return usage == Usage::none ? 0 : fails_by(Guard::directory_is_in_use);
  }

  long fail(const char* name, long result) {
    failed_ = name;
    return result;
  }

  long enter(int at, const char* name) {
    size_t name_size = strlen(name) + 1;
    if (!levels_.reserve(1) || !names_.reserve(name_size)) return fail(name, -ENOMEM);
    int fd = open(at, name, open_directory);
    if (fd == -EACCES && options_.opens_up && open_up(at, name) >= 0) fd = open(at, name, open_directory);
    if (fd == -ENOENT) return 0;
    if (fd < 0) return fail(name, fd);
    abi::Statx found;
    long result = look(fd, &found);
    if (result < 0) {
      sys::close(fd);
      return fail(name, result);
    }
    if (levels_.size() >= window) close_level(levels_[levels_.size() - window]);
    levels_.resize(levels_.size() + 1);
    levels_.back() = {fd, false, false, 0, names_.size(), device_of(found), found.ino, 0, 0};
    memcpy(&names_[names_.size()], name, name_size);
    names_.resize(names_.size() + name_size);
    return 0;
  }

  // Removes the next entry of the directory, or leaves the directory if none is left.
  long go_on() {
    Level& level = levels_.back();
    char* entries = entries_of(levels_.size() - 1);
    if (level.offset == level.size) {
      level.offset = 0;
      level.size = sys::getdents64(level.fd, entries, entries_size);
      if (level.size < 0) return fail("", level.size);
      if (level.size == 0) return leave();
    }
    auto* entry = reinterpret_cast<abi::Dirent*>(entries + level.offset);
    level.offset += entry->reclen;
    if (is_dot_or_dotdot(entry->name)) return 0;
    if (options_.only_kernels && levels_.size() == 1 && !is_made_by_kernel(entry->name)) return 0;
    bool is_directory = entry->type == DT_DIR;
    long result = is_directory ? remove_directory(level, entry->name) : unlink(level, entry->name, 0);
    // Some file systems keep no types. The errno of unlinkat(2) then tells a directory.
    if (!is_directory && (result == -EISDIR || result == -EPERM)) {
      long as_directory = remove_directory(level, entry->name);
      is_directory = as_directory != -ENOTDIR;
      if (is_directory) result = as_directory;
    }
    if (is_directory && is_not_empty(result)) return enter(level.fd, entry->name);
    return result < 0 ? fail(entry->name, result) : 0;
  }

  long remove_directory(Level& above, const char* name) {
    long result = check_use(above.fd, name);
    return result < 0 ? result : unlink(above, name, AT_REMOVEDIR);
  }

  // Another program may have removed the entry first.
  long unlink(Level& level, const char* name, int flags) {
    long result = sys::unlinkat(level.fd, name, flags);
    if (result == -EACCES && open_up(level)) result = sys::unlinkat(level.fd, name, flags);
    if (result == -ENOENT) return 0;
    if (result < 0) return result;
    level.has_lost_entries = true;
    removed_++;
    return 0;
  }

  // Leaves a directory that is empty, and removes it. Its ".." must be the directory that the walk came from: another
  // program may have moved it.
  long leave() {
    Level& level = levels_.back();
    const char* name = &names_[level.name];
    long result;
    if (levels_.size() == 1) {
      result = sys::unlinkat(dirfd_, name_, AT_REMOVEDIR);
    } else {
      Level& above = levels_[levels_.size() - 2];
      if (above.fd < 0) {
        int up = open(level.fd, "..", open_directory);
        if (up < 0) return fail("", up);
        abi::Statx found;
        result = look(up, &found);
        if (result >= 0 && (found.ino != above.inode || device_of(found) != above.device)) result = -ESTALE;
        if (result < 0) {
          sys::close(up);
          return fail("", result);
        }
        above.fd = up;
      }
      result = unlink(above, name, AT_REMOVEDIR);
    }
    if (is_not_empty(result) && level.has_lost_entries && level.rewinds < most_rewinds) {
      level.rewinds++;
      level.has_lost_entries = false;
      return sys::call(abi::lseek, level.fd, 0L, SEEK_SET);
    }
    if (result < 0 && !(levels_.size() == 1 && result == -ENOENT)) return fail("", result);
    close_level(level);
    names_.resize(level.name);
    levels_.resize(levels_.size() - 1);
    return 0;
  }

  const int dirfd_;
  const char* const name_;
  const RemoveOptions& options_;
  uint32_t removed_ = 0;
  uint64_t mount_ = 0;
  const char* failed_ = "";
  Array<char> entries_, names_;
  Array<Level> levels_;
};

}  // namespace

long remove_tree(int dirfd, const char* name, const RemoveOptions& options) {
  Removal removal(dirfd, name, options);
  long result = removal.run();
  if (options.room > 1) {
    options.path[0] = '\0';
    if (result < 0) removal.write_path(options.path, options.room);
  }
  return result;
}

}  // namespace overlayfs
