// Fuzzes the walk of directory trees, the looks at single entries and the comparison of files (native/walk.cc) under
// sanitizers. In each round, it makes a tree with names of any bytes, of all types of entries, deep or wide, with
// attributes and other mounts in it. While the tree rests, all answers must equal those of plain calls. Then another
// thread changes the tree: answers stay whole, and never come from outside. Two processes run side by side; for one, a
// filter refuses the calls that older kernels lack.
//
// test/fuzz/run.mjs compiles and runs it: walk [--seconds N] [--seed N]
#include <dirent.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <thread>

#include "../../native/syscalls.h"
#include "../../native/walk.h"
#include "../sanitizers/support.h"

namespace {

std::string scratch;
bool can_mount = false;
long rounds = 0, entries_seen = 0, looks = 0, comparisons = 0, lost = 0;

constexpr unsigned all_of_it = 0x7ff | abi::statx_mnt_id;

// Those about attributes as lib/trees/walk.ts combines them.
uint32_t random_flags(Random& random) {
  uint32_t flags = random.below(16);
  return flags & attributes_of_others ? flags | attributes_of_directories : flags;
}

std::string tree_path() { return scratch + "/tree"; }
std::string outside_path() { return scratch + "/outside"; }

// ---------------------------------------------------------------------------------------------------------
// A random tree

std::string random_name(Random& random) {
  static const char* const names[] = {".wh.a", ".wh..wh..opq", "...", "a ", " ", "\n", "\\", "~", "-", "\xff", "\xc3\xa4"};
  uint32_t kind = random.below(20);
  if (kind < 12) return std::string(1, static_cast<char>('a' + random.below(6)));
  if (kind < 15) return names[random.below(sizeof names / sizeof *names)];
  size_t size = random.one_in(8) ? 255 : 1 + random.below(40);
  std::string name;
  while (name.size() < size) {
    char next = static_cast<char>(1 + random.below(255));
    name += next == '/' ? '_' : next;
  }
  return name == "." || name == ".." ? "dots" : name;
}

std::string random_bytes(Random& random, size_t size) {
  std::string bytes;
  while (bytes.size() < size) bytes += static_cast<char>(random.below(256));
  return bytes;
}

// Gives an entry attributes, an owner, a mode, a time; what the file system refuses stays as it is.
void decorate(int dirfd, const std::string& name, Random& random) {
  std::string path = "/proc/self/fd/" + std::to_string(dirfd) + "/" + name;
  static const char* const keys[] = {"user.a",                  "user.overlay.opaque",     "trusted.overlay.opaque",
                                     "trusted.overlay.whiteout", "trusted.overlay.redirect", "trusted.overlay.metacopy"};
  for (uint32_t count = random.one_in(3) ? random.below(5) : 0; count > 0; count--) {
    size_t size = random.one_in(20) ? 3000 : random.below(4);
    std::string value = random.one_in(2) ? random_bytes(random, size) : random.one_in(2) ? "y" : "x";
    lsetxattr(path.c_str(), keys[random.below(6)], value.data(), value.size(), 0);
  }
  uid_t owner = random.below(70000);
  if (random.one_in(4)) CHECK(fchownat(dirfd, name.c_str(), owner, owner / 2, AT_SYMLINK_NOFOLLOW) == 0 || geteuid() != 0, "chown: %d", errno);
  struct stat found;
  if (random.one_in(4) && fstatat(dirfd, name.c_str(), &found, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISLNK(found.st_mode)) {
    fchmodat(dirfd, name.c_str(), geteuid() == 0 ? random.below(010000) : 0700, 0);
  }
  if (random.one_in(3)) {
    static const time_t seconds[] = {0, -1, 1, 1'700'000'000, 0x7fffffff, 0x80000000, 10'000'000'000, -10'000'000'000};
    timespec time{seconds[random.below(8)], static_cast<long>(random.below(1'000'000'000))};
    timespec both[] = {time, time};
    utimensat(dirfd, name.c_str(), both, AT_SYMLINK_NOFOLLOW);
  }
}

struct Budget {
  int entries;
  uint32_t depth;  // the greatest
  bool is_chain;
};

void populate(int dirfd, uint32_t depth, Budget& budget, Random& random) {
  uint32_t count = budget.is_chain ? 1 + random.below(2) : depth == 0 ? 4 + random.below(8) : random.below(8);
  std::string file;  // that may get more links
  for (uint32_t i = 0; i < count && budget.entries > 0; i++) {
    std::string name = random_name(random);
    const char* at = name.c_str();
    uint32_t kind = budget.is_chain && i == 0 ? 0 : random.below(12);
    budget.entries--;
    if (kind <= 3) {
      if (depth >= budget.depth || mkdirat(dirfd, at, 0755) != 0) continue;
      int fd = openat(dirfd, at, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      if (fd < 0) continue;
      populate(fd, depth + 1, budget, random);
      close(fd);
    } else if (kind <= 6) {
      int fd = openat(dirfd, at, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
      if (fd < 0) continue;
      size_t size = random.one_in(2) ? 0 : random.one_in(30) ? 300'000 : random.below(30);
      std::string bytes = random.one_in(2) ? std::string(size, 'x') : random_bytes(random, size);
      CHECK(write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()), "write: %d", errno);
      close(fd);
      file = name;
    } else if (kind == 7) {
      size_t size = 1 + random.below(random.one_in(10) ? 4000 : 40);
      std::string to = random.one_in(2) ? outside_path() : random.one_in(2) ? "." : std::string(size, 't');
      if (symlinkat(to.c_str(), dirfd, at) != 0) continue;
    } else if (kind == 8) {
      if (mknodat(dirfd, at, S_IFCHR, 0) != 0) continue;
    } else if (kind == 9) {
      mode_t type = random.one_in(2) ? S_IFIFO : S_IFSOCK;
      if (mknodat(dirfd, at, type | 0600, 0) != 0) continue;
    } else if (kind == 10) {
      if (file.empty() || linkat(dirfd, file.c_str(), dirfd, at, 0) != 0) continue;
    } else {
      if (mkdirat(dirfd, at, 0755) != 0) continue;
      std::string path = "/proc/self/fd/" + std::to_string(dirfd) + "/" + name;
      if (can_mount && random.one_in(4)) mount(outside_path().c_str(), path.c_str(), nullptr, MS_BIND, nullptr);
    }
    decorate(dirfd, name, random);
  }
  // More than one getdents64(2) returns.
  if (depth == 1 && random.one_in(100)) {
    for (int i = 0; i < 3000; i++) {
      std::string name = "wide " + std::to_string(random.below(100'000)) + std::string(random.below(30), '.');
      int fd = openat(dirfd, name.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
      if (fd >= 0) close(fd);
    }
  }
}

void make_tree(Random& random) {
  CHECK(mkdir(tree_path().c_str(), 0755) == 0, "mkdir: %d", errno);
  if (can_mount) CHECK(mount("fuzz", tree_path().c_str(), "tmpfs", 0, "") == 0, "mount: %d", errno);
  int fd = open(tree_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  CHECK(fd >= 0, "open: %d", errno);
  Budget budget{200, 8, random.one_in(6)};
  if (budget.is_chain) budget.depth = 20 + random.below(100);
  populate(fd, 0, budget, random);
  close(fd);
  decorate(AT_FDCWD, tree_path(), random);
}

void remove_made() {
  // Takes the mounts inside along.
  if (can_mount) CHECK(umount2(tree_path().c_str(), MNT_DETACH) == 0, "umount: %d", errno);
  long result = remove_tree(AT_FDCWD, tree_path().c_str());
  CHECK(result == 0, "remove: %ld", result);
}

// ---------------------------------------------------------------------------------------------------------
// The reference: plain calls

struct Entry {
  std::string path, name;
  uint32_t depth;
  abi::Statx found;
  bool is_other_mount;
  std::map<std::string, std::string> attributes;
  std::string target, content;
  size_t end;  // the index behind its contents
};

std::map<std::string, std::string> attributes_of(const std::string& path) {
  std::map<std::string, std::string> all;
  std::string list(65536, '\0'), value(65536, '\0');
  ssize_t size = llistxattr(path.c_str(), list.data(), list.size());
  for (ssize_t at = 0; at < size;) {
    const char* name = list.data() + at;
    ssize_t read = lgetxattr(path.c_str(), name, value.data(), value.size());
    CHECK(read >= 0, "lgetxattr %s: %d", name, errno);
    all[name] = value.substr(0, static_cast<size_t>(read));
    at += static_cast<ssize_t>(strlen(name)) + 1;
  }
  return all;
}

bool is_type(const abi::Statx& found, uint32_t type) { return (found.mode & S_IFMT) == type; }

void add_reference(std::vector<Entry>& to, int dirfd, const std::string& name, const std::string& path, uint32_t depth) {
  Entry entry{path, depth == 0 ? "" : name, depth, {}, false, {}, {}, {}, 0};
  long result = sys::statx(dirfd, name.c_str(), AT_SYMLINK_NOFOLLOW, all_of_it, &entry.found);
  CHECK(result == 0, "statx: %ld", result);
  std::string place = depth == 0 ? name : "/proc/self/fd/" + std::to_string(dirfd) + "/" + name;
  entry.is_other_mount = depth > 0 && entry.found.mnt_id != to[0].found.mnt_id;
  entry.attributes = attributes_of(place);
  if (is_type(entry.found, S_IFLNK)) {
    entry.target.resize(4096);
    ssize_t size = readlink(place.c_str(), entry.target.data(), entry.target.size());
    CHECK(size >= 0, "readlink: %d", errno);
    entry.target.resize(static_cast<size_t>(size));
  }
  if (is_type(entry.found, S_IFREG)) {
    int fd = open(place.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    CHECK(fd >= 0, "open: %d", errno);
    entry.content.resize(entry.found.size);
    CHECK(read(fd, entry.content.data(), entry.content.size()) == static_cast<ssize_t>(entry.found.size), "read");
    close(fd);
  }
  size_t index = to.size();
  to.push_back(entry);
  if (is_type(entry.found, S_IFDIR) && !entry.is_other_mount) {
    int fd = openat(dirfd, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    CHECK(fd >= 0, "open: %d", errno);
    std::vector<std::string> names;
    DIR* directory = fdopendir(dup(fd));
    while (dirent* found = readdir(directory)) {
      std::string one = found->d_name;
      if (one != "." && one != "..") names.push_back(one);
    }
    closedir(directory);
    std::sort(names.begin(), names.end());  // char_traits<char> compares unsigned bytes
    for (const std::string& one : names) add_reference(to, fd, one, path.empty() ? one : path + "/" + one, depth + 1);
    close(fd);
  }
  to[index].end = to.size();
}

// ---------------------------------------------------------------------------------------------------------
// Records

struct Parsed {
  Record record;
  std::string name, target;
  std::map<std::string, std::string> attributes;
};

std::vector<Parsed> parse(const uint8_t* at, size_t size) {
  std::vector<Parsed> all;
  const uint8_t* end = at + size;
  while (at < end) {
    Parsed one;
    CHECK(static_cast<size_t>(end - at) >= sizeof one.record, "a record is cut");
    memcpy(&one.record, at, sizeof one.record);
    const Record& record = one.record;
    CHECK(record.size >= sizeof record && record.size % 8 == 0 && record.size <= static_cast<size_t>(end - at), "size %u", record.size);
    auto take = [](const uint8_t*& from, size_t bytes, size_t to) {
      std::string taken(reinterpret_cast<const char*>(from), bytes);
      from += (bytes + to - 1) / to * to;
      return taken;
    };
    const uint8_t* part = at + sizeof record;
    one.name = take(part, record.name_size, 8);
    one.target = take(part, record.target_size, 8);
    const uint8_t* attributes = part + record.attributes_size;
    CHECK(attributes <= at + record.size, "the attributes do not fit");
    while (part < attributes) {
      uint32_t sizes[2];
      memcpy(sizes, part, sizeof sizes);
      part += sizeof sizes;
      std::string key = take(part, sizes[0], 4);
      CHECK(sizes[1] != unreadable || record.error != 0 || geteuid() != 0, "%s is unreadable", key.c_str());
      one.attributes[key] = take(part, sizes[1] == unreadable ? 0 : sizes[1], 4);
    }
    CHECK(part == attributes, "attributes end elsewhere");
    all.push_back(one);
    at += record.size;
  }
  CHECK(at == end, "records end elsewhere");
  return all;
}

bool has_marks(const abi::Statx& found) {
  return is_type(found, S_IFDIR) || (is_type(found, S_IFREG) && found.size == 0);
}

void check_equal(const Parsed& one, const Entry& entry, uint32_t flags, const char* of) {
  const Record& record = one.record;
  const abi::Statx& found = entry.found;
  CHECK(record.error == 0, "%s: error %u of %s", of, record.error, entry.path.c_str());
  CHECK(record.mode == found.mode && record.uid == found.uid && record.gid == found.gid && record.links == found.nlink,
        "%s: mode, owner, links of %s", of, entry.path.c_str());
  CHECK(record.inode == found.ino && record.bytes == found.size && record.blocks == found.blocks, "%s: inode, size of %s", of,
        entry.path.c_str());
  CHECK(record.dev_major == found.dev_major && record.dev_minor == found.dev_minor &&
            record.rdev_major == found.rdev_major && record.rdev_minor == found.rdev_minor,
        "%s: devices of %s", of, entry.path.c_str());
  CHECK(record.mtime == found.mtime.tv_sec && record.mtime_ns == found.mtime.tv_nsec &&
            record.ctime == found.ctime.tv_sec && record.ctime_ns == found.ctime.tv_nsec,
        "%s: times of %s", of, entry.path.c_str());
  if (record.flags & has_whole_mtime) {
    CHECK(record.mtime_whole == found.mtime.tv_sec * 1'000'000'000 + found.mtime.tv_nsec, "%s: whole time", of);
  }
  bool is_ascii_name = std::all_of(one.name.begin(), one.name.end(), [](char c) { return c >= 0; });
  CHECK(((record.flags & is_ascii) != 0) == is_ascii_name, "%s: ASCII of %s", of, entry.path.c_str());
  bool has_target = (flags & targets) && is_type(found, S_IFLNK);
  CHECK(one.target == (has_target ? entry.target : ""), "%s: target of %s", of, entry.path.c_str());
  bool has_attributes = flags & (has_marks(found) ? attributes_of_directories : attributes_of_others);
  if (entry.is_other_mount) return;
  CHECK(one.attributes == (has_attributes ? entry.attributes : decltype(one.attributes)()), "%s: attributes of %s", of,
        entry.path.c_str());
}

// ---------------------------------------------------------------------------------------------------------
// A tree that rests

void check_walk(const std::vector<Entry>& reference, int dirfd, Random& random) {
  uint32_t flags = random_flags(random);
  size_t start = 0;
  std::string path = tree_path();
  if (random.one_in(3)) {
    flags |= root_inside;
    do start = random.below(static_cast<uint32_t>(reference.size()));
    while (!is_type(reference[start].found, S_IFDIR) || reference[start].is_other_mount);
    path = reference[start].path;
  } else if (random.one_in(8)) {
    flags |= follow_root;
    path = scratch + "/link";
  }
  const uint32_t above = reference[start].depth;
  Walk walk(flags);
  size_t next = start;                                 // the next entry in order
  std::vector<size_t> returned;                        // entries in the order of the records
  std::vector<std::string> parents;
  std::map<std::string, bool> unordered;               // the paths that a walk without order has returned
  for (;;) {
    bool skips = !(flags & unsorted) && random.one_in(4) && !returned.empty();
    uint32_t skipped = skips ? random.below(static_cast<uint32_t>(returned.size())) + 1 : 0;
    if (skips) {
      const Entry& entry = reference[returned[skipped - 1]];
      size_t index = returned[skipped - 1];
      if (is_type(entry.found, S_IFDIR) && !entry.is_other_mount && next > index && next < entry.end) next = entry.end;
    }
    long count = walk.next(dirfd, path.c_str(), 1 + random.below(random.one_in(3) ? 60'000 : 600), skipped);
    CHECK(count >= 0, "walk: %ld at %s", count, path.c_str());
    std::vector<Parsed> records = parse(walk.records().data(), walk.records().size());
    CHECK(static_cast<size_t>(count) == records.size(), "walk: %ld records, %zu", count, records.size());
    if (count == 0) break;
    for (const Parsed& one : records) {
      entries_seen++;
      CHECK(!(one.record.flags & is_broken_off), "walk: broken off, errno %u", one.record.error);
      uint32_t depth = one.record.depth + above;
      if (flags & unsorted) {
        parents.resize(one.record.depth + 1);
        parents.back() = one.record.depth == 0 ? reference[start].path
                         : parents[one.record.depth - 1].empty() ? one.name
                                                                 : parents[one.record.depth - 1] + "/" + one.name;
        auto found = std::find_if(reference.begin(), reference.end(), [&](const Entry& entry) { return entry.path == parents.back(); });
        CHECK(found != reference.end() && found->depth == depth, "walk: there is no %s", parents.back().c_str());
        CHECK(unordered.emplace(found->path, true).second, "walk: %s twice", found->path.c_str());
        check_equal(one, *found, flags, "walk");
      } else {
        CHECK(next < reference[start].end, "walk: %s more than there is", one.name.c_str());
        const Entry& entry = reference[next];
        CHECK(one.name == (next == start ? "" : entry.name) && depth == entry.depth, "walk: %s in the place of %s",
              one.name.c_str(), entry.path.c_str());
        CHECK(((one.record.flags & is_other_mount) != 0) == entry.is_other_mount, "walk: mount at %s", entry.path.c_str());
        check_equal(one, entry, flags, "walk");
        returned.push_back(next);
        next++;
      }
    }
    if (random.one_in(50)) return;  // a caller that stops
  }
  if (flags & unsorted) CHECK(unordered.size() == reference[start].end - start, "walk: %zu entries", unordered.size());
  else CHECK(next == reference[start].end, "walk: ends before %s", reference[next].path.c_str());
}

std::string random_path(const std::vector<Entry>& reference, Random& random) {
  std::string path = reference[random.below(static_cast<uint32_t>(reference.size()))].path;
  if (!random.one_in(4)) return path;
  static const char* const pieces[] = {"..", ".", "", "/", "a", "secret", "x/y", "tree/../..", "//"};
  std::string piece = random.one_in(10) ? random_name(random) : pieces[random.below(9)];
  size_t at = random.below(static_cast<uint32_t>(path.size()) + 1);
  switch (random.below(4)) {
    case 0: return path.empty() ? piece : path + "/" + piece;
    case 1: return path.substr(0, at) + piece + path.substr(at);
    case 2: return path.substr(0, at) + "/" + piece + "/" + path.substr(at);
    default: return path.substr(0, at);
  }
}

std::string encode(const std::vector<std::string>& paths) {
  std::string bytes;
  for (const std::string& path : paths) {
    auto size = static_cast<uint32_t>(path.size());
    bytes.append(reinterpret_cast<const char*>(&size), sizeof size).append(path).push_back('\0');
    bytes.resize((bytes.size() + 3) & ~size_t{3});
  }
  return bytes;
}

std::vector<Parsed> examine(int dirfd, uint32_t flags, const std::vector<std::string>& paths) {
  Plan plan;
  plan.add(Call::examine, {dirfd, flags, encode(paths)}, {0, 0, 8});
  std::vector<uint8_t> block = plan.block();
  Execution execution(block.data());
  CHECK(execution.perform(), "examine: errno %d", execution.failure().error);
  std::vector<Parsed> found = parse(execution.data().data(), execution.data().size());
  CHECK(found.size() == paths.size(), "examine: %zu records for %zu paths", found.size(), paths.size());
  execution.commit();
  return found;
}

void check_looks(const std::vector<Entry>& reference, const std::map<std::string, const Entry*>& by_path, int dirfd, Random& random) {
  std::vector<std::string> paths;
  for (uint32_t count = 1 + random.below(60); count > 0; count--) {
    std::string path = random_path(reference, random);
    if (path.empty() || path[0] != '/') paths.push_back(path);
  }
  if (random.one_in(2)) std::sort(paths.begin(), paths.end());
  uint32_t flags = random_flags(random);
  std::vector<Parsed> found = examine(dirfd, flags, paths);
  for (size_t i = 0; i < paths.size(); i++) {
    looks++;
    auto entry = by_path.find(paths[i]);
    if (entry == by_path.end()) CHECK(found[i].record.error != 0 && found[i].record.mode == 0, "examine: there is no %s", paths[i].c_str());
    else check_equal(found[i], *entry->second, flags, "examine");
  }
}

long compare(int dirfd, const std::string& a, const std::string& b) {
  Plan plan;
  plan.add(Call::compare, {dirfd, a, dirfd, b});
  std::vector<uint8_t> block = plan.block();
  Execution execution(block.data());
  long result = execution.perform() ? reinterpret_cast<const Step*>(block.data() + sizeof(Header))->result
                                    : -execution.failure().error;
  execution.commit();
  return result;
}

void check_comparisons(const std::vector<Entry>& reference, const std::map<std::string, const Entry*>& by_path, int dirfd, Random& random) {
  for (int i = 0; i < 10; i++) {
    comparisons++;
    std::string a = random_path(reference, random), b = random_path(reference, random);
    if ((!a.empty() && a[0] == '/') || (!b.empty() && b[0] == '/')) continue;
    long result = compare(dirfd, a, b);
    auto one = by_path.find(a), other = by_path.find(b);
    bool are_files = one != by_path.end() && other != by_path.end() && is_type(one->second->found, S_IFREG) &&
                     is_type(other->second->found, S_IFREG);
    if (are_files) CHECK(result == (one->second->content == other->second->content), "compare %s and %s: %ld", a.c_str(), b.c_str(), result);
    else CHECK(result <= 1, "compare %s and %s: %ld", a.c_str(), b.c_str(), result);
  }
}

// ---------------------------------------------------------------------------------------------------------
// A tree that changes

void change(const std::vector<Entry>& reference, Random& random, const std::atomic<bool>& is_over) {
  auto place = [&] {
    const std::string& path = reference[random.below(static_cast<uint32_t>(reference.size()))].path;
    return tree_path() + "/" + (path.empty() || random.one_in(2) ? path + "/" + random_name(random) : path);
  };
  while (!is_over) {
    std::string path = place(), other = place();
    switch (random.below(9)) {
      case 0: mkdir(path.c_str(), 0755); break;
      case 1: rename(path.c_str(), other.c_str()); break;
      case 2: renameat2(AT_FDCWD, path.c_str(), AT_FDCWD, other.c_str(), abi::rename_exchange); break;
      case 3: if (symlink(outside_path().c_str(), path.c_str()) != 0) unlink(path.c_str()); break;
      case 4: {
        int fd = open(path.c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
        if (fd >= 0 && random.one_in(2)) CHECK(write(fd, path.data(), path.size()) >= 0, "write: %d", errno);
        if (fd >= 0) close(fd);
        break;
      }
      case 5: lsetxattr(path.c_str(), "user.overlay.opaque", "y", 1, 0); break;
      case 6: if (random.one_in(10)) remove_tree(AT_FDCWD, path.c_str()); break;
      case 7: link(path.c_str(), other.c_str()); break;
      case 8:
        if (!can_mount) break;
        struct stat found;
        // Not on what a link leads to, which may be the whole tree.
        if (lstat(path.c_str(), &found) != 0 || S_ISLNK(found.st_mode)) break;
        if (random.one_in(2)) mount(outside_path().c_str(), path.c_str(), nullptr, MS_BIND, nullptr);
        else umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
        break;
    }
  }
}

void check_inside(const Parsed& one) { CHECK(one.name != "secret", "a walk is outside of its tree: depth %u, device %u", one.record.depth, one.record.dev_minor); }

void run_busy(const std::vector<Entry>& reference, int dirfd, Random& random) {
  std::atomic<bool> is_over{false};
  Random other(random.below(UINT32_MAX));
  std::thread changer([&] { change(reference, other, is_over); });
  for (int i = 0; i < 6; i++) {
    Walk walk(random_flags(random));
    uint32_t depth = 0;
    for (bool is_broken = false;;) {
      uint32_t skipped = random.one_in(3) ? random.below(200) : 0;
      long count = walk.next(AT_FDCWD, tree_path().c_str(), 1 + random.below(4096), skipped);
      CHECK(count >= 0, "a walk fails: %ld", count);
      if (count == 0) break;
      CHECK(!is_broken, "a walk goes on behind its end");
      for (const Parsed& one : parse(walk.records().data(), walk.records().size())) {
        is_broken = one.record.flags & is_broken_off;
        if (is_broken) lost++;
        CHECK(is_broken || one.record.depth <= depth + 1, "depth %u after %u", one.record.depth, depth);
        depth = one.record.depth;
        // The root of another mount is described, but nothing in it.
        if (!(one.record.flags & is_other_mount)) check_inside(one);
        entries_seen++;
      }
    }
    std::vector<std::string> paths;
    for (int j = 0; j < 30; j++) paths.push_back(random_path(reference, random) + (random.one_in(3) ? "/secret" : ""));
    for (const Parsed& one : examine(dirfd, random_flags(random), paths)) CHECK(one.name != "secret" || one.record.error != 0, "examine is outside");
    looks += 30;
    for (int j = 0; j < 5; j++) {
      std::string a = random_path(reference, random) + "/secret";
      long result = compare(dirfd, a, a);
      CHECK(result < 0, "compare is outside: %s: %ld", a.c_str(), result);
    }
  }
  is_over = true;
  changer.join();
}

// ---------------------------------------------------------------------------------------------------------
// The whole

// Refuses openat2(2), listxattrat(2) and getxattrat(2), as kernels before 5.6 do.
void forbid_new_calls() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(abi::openat2), 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(abi::listxattrat), 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(abi::getxattrat), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program{sizeof filter / sizeof *filter, filter};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp: %d", errno);
}

int count_descriptors() {
  int count = 0;
  DIR* directory = opendir("/proc/self/fd");
  while (readdir(directory) != nullptr) count++;
  closedir(directory);
  return count;
}

int fuzz(bool is_old, int seconds, uint64_t seed) {
  scratch += is_old ? "/old" : "/new";
  can_mount = unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  for (const std::string& path : {scratch, outside_path()}) CHECK(mkdir(path.c_str(), 0755) == 0, "mkdir: %d", errno);
  if (can_mount) CHECK(mount("fuzz", outside_path().c_str(), "tmpfs", 0, "") == 0, "mount: %d", errno);
  std::string secret = outside_path() + "/secret";
  int fd = open(secret.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
  CHECK(fd >= 0 && symlink("tree", (scratch + "/link").c_str()) == 0, "open: %d", errno);
  close(fd);
  if (is_old) forbid_new_calls();
  int descriptors = count_descriptors();
  for (time_t end = time(nullptr) + seconds; time(nullptr) < end; rounds++) {
    Random random(seed + static_cast<uint64_t>(rounds) * 2 + is_old);
    make_tree(random);
    std::vector<Entry> reference;
    add_reference(reference, AT_FDCWD, tree_path(), "", 0);
    std::map<std::string, const Entry*> by_path;
    for (const Entry& entry : reference) by_path[entry.path] = &entry;
    int dirfd = open(tree_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < 4; i++) {
      check_walk(reference, dirfd, random);
      check_looks(reference, by_path, dirfd, random);
      check_comparisons(reference, by_path, dirfd, random);
    }
    if (random.one_in(3)) run_busy(reference, dirfd, random);
    close(dirfd);
    remove_made();
    int left = count_descriptors();
    CHECK(left == descriptors, "%d descriptors, %d before", left, descriptors);
  }
  if (can_mount) CHECK(umount2(outside_path().c_str(), MNT_DETACH) == 0, "umount: %d", errno);
  printf("walk, %s: %ld trees, %ld entries, %ld looks, %ld comparisons, %ld walks lost their way\n",
         is_old ? "without openat2 and getxattrat" : "all calls", rounds, entries_seen, looks, comparisons, lost);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  int seconds = 20;
  uint64_t seed = static_cast<uint64_t>(time(nullptr));
  for (int i = 1; i + 1 < count; i += 2) {
    if (strcmp(arguments[i], "--seconds") == 0) seconds = atoi(arguments[i + 1]);
    if (strcmp(arguments[i], "--seed") == 0) seed = strtoull(arguments[i + 1], nullptr, 10);
  }
  printf("walk: --seed %llu\n", static_cast<unsigned long long>(seed));
  fflush(stdout);
  umask(0);
  const char* tmp = getenv("TMPDIR");
  scratch = std::string(tmp != nullptr ? tmp : "/tmp") + "/overlayfs-fuzz-XXXXXX";
  CHECK(mkdtemp(scratch.data()) != nullptr, "mkdtemp: %d", errno);
  pid_t old = fork();
  CHECK(old >= 0, "fork: %d", errno);
  if (old == 0) return fuzz(true, seconds, seed);
  const std::string all = scratch;
  fuzz(false, seconds, seed);
  int status;
  CHECK(waitpid(old, &status, 0) == old && status == 0, "the other process ends with %x", status);
  CHECK(remove_tree(AT_FDCWD, all.c_str()) == 0, "remove");
  return 0;
}
