// Starts a program in namespaces of its own, with mounts that no other program sees. The launcher carries out its
// arguments in order, which lib/programs/launch.ts chooses, and then executes the program:
//
//   report FD            write a failure to FD as "INDEX ERRNO": the argument whose word failed; exec closes FD
//   seal                 go on as a copy of this program in memory, memfd_create(2), which nothing can change
//   close FIRST LAST     close all descriptors from FIRST to LAST: those that the caller has not named
//   cloexec FD           have exec close a descriptor
//   copy FD              the same; a mount's descriptor becomes that of a clone, which only its own namespace can make
//   join FD              enter a user namespace: setns(2)
//   unshare FLAGS        unshare(2)
//   write PATH TEXT      write to an existing file
//   private              make all mounts private: mounts here and elsewhere no longer affect each other
//   slave                make all mounts slaves: none shows elsewhere any more; unmounts elsewhere still reach here
//   clone FD             clone a mount by its descriptor, for `attach`
//   mounted PATH ID      check that the mount with this id is at the path, before there are other namespaces
//   tree PATH            clone a mount by its path: the first one that `mounted` has checked and `tree` has not used
//   readonly PATH        make a tree of mounts read-only for this program; follows a symbolic link
//   readonly-any PATH    the same, if there is such a path
//   readonly-kernel      make each mount of a file system of the kernel, such as sysfs, read-only, but for that at /proc
//   hide PATH            make a directory or file empty for this program; follows a symbolic link
//   hide-any PATH        the same, if there is such a path
//   attach PATH          attach the first mount that is not attached yet; at the root it takes the place of the root,
//                        and keeps the mounts in /proc, /dev and /sys
//   tmpfs SIZE INODES    make a tmpfs with these limits, for `attach`; `-` leaves the kernel's
//   take PATH            clone a tree of mounts by its path, for `attach`
//   nodev                let no device node work in the mount that was cloned last
//   dev                  let no device node work, and give this program a small /dev of its own, where nodes do
//   proc own|new         keep /proc for `lock`: as it is, or a new one, for a new process namespace
//   show-proc            attach the new /proc, if there is such a directory
//   init                 make the process that carries out the rest the second one of a new process namespace: the first
//                        one reaps, and this one waits, hands signals on and ends as the program does; without a
//                        controlling terminal, the second one has a process group of its own
//   die-with PARENT      have the kernel kill this process when its parent, process PARENT, ends
//   lock FLAGS UIDS GIDS enter a user namespace inside, unshare(2), with these maps: the mounts so far cannot be undone
//   confine FLAGS UIDS GIDS  the same; where there can be no such namespace, such as in a chroot: `drop`
//   terminal             let no program put input into the controlling terminal, if there is one: ioctl_tty(2), TIOCSTI
//   limit NAME NUMBER    lower the limit user.NAME of sysctl(8) for this user namespace and those inside, if /proc allows it
//   network              bring the loopback interface up
//   hostname NAME        sethostname(2)
//   drop                 let no program gain capabilities
//   ambient              have the program keep the capabilities that this process has: capabilities(7)
//   ids UID GID GROUPS   become another user; `-` leaves the groups as they are
//   keyring              have a session keyring without the keys of the caller: session-keyring(7)
//   chdir PATH
//   argv0 NAME           the program's own name for itself
//   exec COMMAND ARG...  search for COMMAND in PATH if it has no slash
//   hold PARENT          write a byte, and do nothing until killed or until the parent, process PARENT, has ended
//
// In a PATH, `%` and two hexadecimal digits stand for a byte, because Node passes arguments as text.
//
// This is a static program without any library: it starts in a few milliseconds, on glibc and musl alike.
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "abi.h"

namespace {

namespace abi = overlayfs::abi;

long enter(abi::Number number, long a, long b, long c, long d, long e) {
#if defined(__x86_64__)
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(static_cast<long>(number)), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
  return x0;
#endif
}

// Repeated after a signal, but for close(2): Linux has released the descriptor by then.
long call(abi::Number number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0) {
  long result;
  do result = enter(number, a, b, c, d, e);
  while (result == -EINTR && number != abi::close);
  return result;
}

long at(const void* memory) { return reinterpret_cast<long>(memory); }

bool same(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) a++, b++;
  return *a == *b;
}

long length(const char* text) {
  long n = 0;
  while (text[n] != '\0') n++;
  return n;
}

long number(const char* text) {
  long value = 0;
  while (*text >= '0' && *text <= '9') value = value * 10 + (*text++ - '0');
  return value;
}

int digit(char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; }

// Decodes in place.
const char* decode(char* path) {
  char* to = path;
  for (const char* from = path; *from != '\0'; to++) {
    if (from[0] == '%' && from[1] != '\0' && from[2] != '\0') {
      *to = static_cast<char>(digit(from[1]) << 4 | digit(from[2]));
      from += 3;
    } else {
      *to = *from++;
    }
  }
  *to = '\0';
  return path;
}

constexpr int most_mounts = 64;
long mounts[most_mounts];
int mounts_opened = 0, mounts_attached = 0;
long report = -1;

long push(long mount) {
  if (mount < 0) return mount;
  if (mounts_opened == most_mounts) return -E2BIG;
  mounts[mounts_opened++] = mount;
  return 0;
}

long look(long at_descriptor, const char* path, long flags, abi::Statx& found, long mask = abi::statx_mnt_id) {
  return call(abi::statx, at_descriptor, at(path), flags, abi::statx_ino | mask, at(&found));
}

bool same_file(const abi::Statx& a, const abi::Statx& b) {
  return a.ino == b.ino && a.dev_major == b.dev_major && a.dev_minor == b.dev_minor;
}

abi::Statx expected[most_mounts];
int mounts_expected = 0, mounts_taken = 0;

long expect(const char* path, long id) {
  if (mounts_expected == most_mounts) return -E2BIG;
  // The kernel numbers unique ids above all others.
  const long mask = id > 0x7fffffff ? abi::statx_mnt_id_unique : abi::statx_mnt_id;
  abi::Statx& found = expected[mounts_expected++];
  long result = look(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, found, mask);
  if (result < 0) return result;
  return found.mnt_id == static_cast<uint64_t>(id) ? 0 : -ESTALE;
}

// In a new namespace the mount has another id, but the same root.
long take(const char* path) {
  if (mounts_taken == mounts_expected) return -EINVAL;
  const abi::Statx& known = expected[mounts_taken++];
  long tree = call(abi::open_tree, AT_FDCWD, at(path), abi::open_tree_clone | O_CLOEXEC | AT_SYMLINK_NOFOLLOW);
  if (tree < 0) return tree;
  abi::Statx found;
  long result = look(tree, "", AT_EMPTY_PATH, found);
  if (result < 0) return result;
  return same_file(found, known) ? push(tree) : -ESTALE;
}

long take_tree(const char* path) {
  return push(call(abi::open_tree, AT_FDCWD, at(path), abi::open_tree_clone | O_CLOEXEC | abi::at_recursive));
}

long make_tmpfs(const char* size, const char* inodes) {
  const long context = call(abi::fsopen, at("tmpfs"), abi::fsopen_cloexec);
  if (context < 0) return context;
  auto set = [context](const char* name, const char* value) {
    return same(value, "-") ? 0 : call(abi::fsconfig, context, abi::fsconfig_set_string, at(name), at(value));
  };
  long result = set("size", size);
  if (result == 0) result = set("nr_inodes", inodes);
  if (result == 0) result = call(abi::fsconfig, context, abi::fsconfig_cmd_create);
  if (result == 0) result = push(call(abi::fsmount, context, abi::fsmount_cloexec, abi::mount_attr_nosuid | abi::mount_attr_nodev));
  call(abi::close, context);
  return result;
}

long enter(long directory) {
  long result = call(abi::fchdir, directory);
  return result < 0 ? result : call(abi::chroot, at("."));
}

long set_propagation(unsigned long propagation) {
  auto set = [propagation] { return call(abi::mount, 0, at("/"), 0, static_cast<long>(MS_REC | propagation)); };
  long result = set();
  if (result != -EINVAL) return result;
  // EINVAL: in a chroot, the root is no mount point. setns(2) into its own namespace moves the process to the root of
  // the namespace, and enter() moves it back.
  long root = call(abi::openat, AT_FDCWD, at("/"), O_PATH | O_CLOEXEC);
  if (root < 0) return root;
  long own = call(abi::openat, AT_FDCWD, at("/proc/self/ns/mnt"), O_CLOEXEC);
  if (own < 0) return own;
  result = call(abi::setns, own, CLONE_NEWNS);
  if (result == 0) result = set();
  if (result == 0) result = enter(root);
  call(abi::close, own);
  call(abi::close, root);
  return result;
}

bool is_root(const char* path, long flags = 0) {
  abi::Statx found, root;
  return look(AT_FDCWD, path, flags, found) == 0 && look(AT_FDCWD, "/", 0, root) == 0 && same_file(found, root) &&
         found.mnt_id == root.mnt_id;
}

long put(long mount, const char* path, bool follows = false) {
  const long flags = abi::move_mount_from_empty_path | (follows ? abi::move_mount_to_symlinks : 0);
  return call(abi::move_mount, mount, at(""), AT_FDCWD, at(path), flags);
}

long attach(long mount, const char* path, bool follows = false) {
  const bool becomes_root = is_root(path, follows ? 0 : AT_SYMLINK_NOFOLLOW);
  long result = put(mount, path, follows);
  // Attaching does not move the process: it would stay below the new root.
  return result < 0 || !becomes_root ? result : enter(mount);
}

// Makes a mount that is attached at the root the root, and removes the old one with all that is mounted in it. The kernel
// lets a program that has a user namespace mount a new /proc or /sys, writable, wherever the namespace has such a one.
long replace_root(long mount) {
  long result = call(abi::fchdir, mount);
  if (result < 0) return result;
  // The kernel refuses in a chroot and in an initial RAM file system, and a filter may. The old root then stays below.
  if (call(abi::pivot_root, at("."), at(".")) < 0) return enter(mount);
  // The old root is on top of the new one now.
  result = call(abi::umount2, at("."), MNT_DETACH);
  return result < 0 ? result : enter(mount);
}

long make_file(const char* path) {
  const long file = call(abi::openat, AT_FDCWD, at(path), O_CREAT | O_WRONLY | O_CLOEXEC, 0444);
  if (file >= 0) call(abi::close, file);
  return file < 0 ? file : 0;
}

bool has_own_dev = false;

// Makes a directory or file in the small /dev for something that is shown there: it has no others.
bool make_place(long mount, const char* path) {
  static char part[4096] = "/dev/";
  constexpr long start = 5;
  for (long i = 0; i < start; i++) {
    if (path[i] != part[i]) return false;
  }
  long size = start;
  for (; path[size] != '\0' && size < static_cast<long>(sizeof part) - 1; size++) {
    part[size] = '\0';
    if (path[size] == '/') call(abi::mkdirat, AT_FDCWD, at(part), 0755);
    part[size] = path[size];
  }
  part[size] = '\0';
  abi::Statx found;
  if (look(mount, "", AT_EMPTY_PATH, found, abi::statx_type) < 0) return false;
  return ((found.mode & S_IFMT) == S_IFDIR ? call(abi::mkdirat, AT_FDCWD, at(part), 0755) : make_file(part)) == 0;
}

// A tree of the old root that every program needs and a directory of files lacks.
struct Kept {
  const char* path;
  long tree;
};

long take_along(Kept& kept) {
  kept.tree = call(abi::open_tree, AT_FDCWD, at(kept.path), abi::open_tree_clone | O_CLOEXEC | abi::at_recursive);
  return kept.tree == -ENOENT ? 0 : kept.tree;
}

// Attaches nothing if the new root has no such directory.
long put_back(const Kept& kept) {
  if (kept.tree < 0) return 0;
  long result = attach(kept.tree, kept.path);
  call(abi::close, kept.tree);
  return result == -ENOENT || result == -ENOTDIR || result == -EINVAL ? 0 : result;
}

long show(long mount, const char* path) {
  if (!is_root(path, AT_SYMLINK_NOFOLLOW)) {
    const long result = attach(mount, path);
    return result == -ENOENT && has_own_dev && make_place(mount, path) ? attach(mount, path) : result;
  }
  Kept all[] = {{"/proc", -1}, {"/dev", -1}, {"/sys", -1}};
  for (Kept& kept : all) {
    if (long result = take_along(kept); result < 0) return result;
  }
  if (long result = put(mount, path); result < 0) return result;
  if (long result = replace_root(mount); result < 0) return result;
  for (const Kept& kept : all) {
    if (long result = put_back(kept); result < 0) return result;
  }
  return 0;
}

// From 6.15 on, a detached mount that was cloned from an attached one can be cloned in the namespace of that one only.
// Before 6.15, the descriptor stays that of the mount itself.
long copy(long fd) {
  long tree = call(abi::open_tree, fd, at(""), abi::open_tree_clone | O_CLOEXEC | AT_EMPTY_PATH);
  if (tree == -EINVAL) return call(abi::fcntl, fd, F_SETFD, FD_CLOEXEC);
  if (tree < 0) return tree;
  long result = call(abi::dup3, tree, fd, O_CLOEXEC);
  call(abi::close, tree);
  return result;
}

long clone(long fd) {
  long tree = call(abi::open_tree, fd, at(""), abi::open_tree_clone | O_CLOEXEC | AT_EMPTY_PATH);
  // Before 6.15 a detached mount cannot be cloned. The mount itself is used then, which works once.
  return push(tree == -EINVAL ? fd : tree);
}

long write_file(const char* path, const char* text, long directory = AT_FDCWD) {
  long file = call(abi::openat, directory, at(path), O_WRONLY | O_CLOEXEC);
  if (file < 0) return file;
  long result = call(abi::write, file, at(text), length(text));
  call(abi::close, file);
  return result;
}

// Sets or clears attributes of a tree of mounts.
long change(long directory, const char* path, uint64_t set, uint64_t cleared = 0) {
  abi::MountAttr attributes{set, cleared, 0, 0};
  const long flags = (*path == '\0' ? AT_EMPTY_PATH : 0) | abi::at_recursive;
  return call(abi::mount_setattr, directory, at(path), flags, at(&attributes), sizeof attributes);
}

long restrict(const char* path, uint64_t attribute) {
  long result = change(AT_FDCWD, path, attribute);
  if (result != -EINVAL) return result;
  // EINVAL: a directory inside a mount. It gets a mount of its own.
  long tree = call(abi::open_tree, AT_FDCWD, at(path), abi::open_tree_clone | O_CLOEXEC | abi::at_recursive);
  if (tree < 0) return tree;
  result = change(tree, "", attribute);
  if (result == 0) result = attach(tree, path, true);
  call(abi::close, tree);
  return result;
}

// Their files are settings of the kernel.
constexpr const char* of_kernel[] = {"proc",   "sysfs",     "cgroup",    "cgroup2",     "debugfs", "tracefs", "securityfs", "bpf",
                                     "pstore", "efivarfs",  "selinuxfs", "binfmt_misc", "fusectl", "nfsd",    "smackfs",    "resctrl",
                                     "xenfs",  "rpc_pipefs", "configfs"};

bool starts_with(const char* text, const char* start) {
  while (*start != '\0' && *text == *start) text++, start++;
  return *start == '\0';
}

// LINE: a line of mountinfo, proc_pid_mountinfo(5).
long restrict_if_of_kernel(char* line) {
  const long id = number(line);
  char* field = line;
  for (int i = 0; i < 4; i++) {
    while (*field != ' ' && *field != '\0') field++;
    if (*field == ' ') field++;
  }
  char* path = field;
  while (*field != ' ' && *field != '\0') field++;
  const char* type = field;
  while (*type != '\0' && !starts_with(type, " - ")) type++;
  if (*type == '\0') return 0;
  // An order before this one has made it read-only.
  if (starts_with(field, " ro,") || starts_with(field, " ro ")) return 0;
  *field = '\0';
  if (same(path, "/proc")) return 0;
  bool found = false;
  for (const char* name : of_kernel) found = found || (starts_with(type + 3, name) && type[3 + length(name)] == ' ');
  if (!found) return 0;
  // Blanks and backslashes are octal there.
  char* to = path;
  for (const char* from = path; *from != '\0';) {
    const bool is_octal = from[0] == '\\' && from[1] != '\0' && from[2] != '\0' && from[3] != '\0';
    *to++ = is_octal ? static_cast<char>((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0')) : *from;
    from += is_octal ? 4 : 1;
  }
  *to = '\0';
  const long root = call(abi::openat, AT_FDCWD, at(path), O_PATH | O_NOFOLLOW | O_CLOEXEC);
  // Another mount may cover it, by which it is out of reach.
  if (root < 0) return 0;
  abi::Statx at_path;
  long result = look(root, "", AT_EMPTY_PATH, at_path);
  if (result == 0 && at_path.mnt_id == static_cast<uint64_t>(id)) {
    abi::MountAttr attributes{abi::mount_attr_rdonly, 0, 0, 0};
    result = call(abi::mount_setattr, root, at(""), AT_EMPTY_PATH, at(&attributes), sizeof attributes);
  }
  call(abi::close, root);
  return result;
}

// Without an order of its own for each, since any tree that is shown may contain such mounts.
long restrict_kernel(long proc) {
  const long table = call(abi::openat, proc, at("self/mountinfo"), O_RDONLY | O_CLOEXEC);
  if (table < 0) return table;
  // Two paths of 4,095 bytes fit, each byte in octal. A longer line has only options of its file system at its end.
  static char text[65536];
  constexpr long room = sizeof text - 1;
  long kept = 0, result = 0, size = 0;
  bool is_rest = false;
  while (result == 0 && (size = call(abi::read, table, at(text + kept), room - kept)) > 0) {
    char* line = text;
    char* const end = text + kept + size;
    for (char* c = text + kept; c < end; c++) {
      if (*c != '\n') continue;
      *c = '\0';
      if (result == 0 && !is_rest) result = restrict_if_of_kernel(line);
      is_rest = false;
      line = c + 1;
    }
    kept = end - line;
    for (long i = 0; i < kept; i++) text[i] = line[i];
    if (kept < room) continue;
    text[kept] = '\0';
    if (result == 0 && !is_rest) result = restrict_if_of_kernel(text);
    is_rest = true;
    kept = 0;
  }
  if (result == 0) result = size;
  call(abi::close, table);
  return result;
}

// A mount of an empty file. Only a mount that is attached can be cloned: its root is on top of this one meanwhile.
long make_empty() {
  if (long result = call(abi::mount, at("hidden"), at("/"), at("tmpfs"), MS_NOSUID | MS_NODEV | MS_NOEXEC); result < 0)
    return result;
  long root = call(abi::open_tree, AT_FDCWD, at("/.."), O_CLOEXEC);
  if (root < 0) return root;
  long result = call(abi::fchdir, root);
  call(abi::close, root);
  if (result == 0) result = make_file("empty");
  if (result == 0) result = call(abi::open_tree, AT_FDCWD, at("empty"), abi::open_tree_clone | O_CLOEXEC);
  if (result >= 0) change(result, "", abi::mount_attr_rdonly);
  call(abi::umount2, at("."), MNT_DETACH);
  return result;
}

long hide(const char* path) {
  // Hiding the root would leave no program to run.
  if (is_root(path)) return -EBUSY;
  constexpr unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
  long result = call(abi::mount, at("hidden"), at(path), at("tmpfs"), static_cast<long>(flags), at("mode=555"));
  if (result != -ENOTDIR) return result;
  long file = call(abi::open_tree, AT_FDCWD, at("/dev/null"), abi::open_tree_clone | O_CLOEXEC);
  if (file < 0) file = make_empty();
  if (file < 0) return file;
  result = attach(file, path, true);
  call(abi::close, file);
  return result;
}

// ----------------------------------------------------------------------------------------------------- a small /dev

struct Device {
  const char* path;
  unsigned major, minor;  // Documentation/admin-guide/devices.txt
  long clone;
};

Device devices[] = {
    {"/dev/null", 1, 3, -1},   {"/dev/zero", 1, 5, -1},    {"/dev/full", 1, 7, -1},
    {"/dev/random", 1, 8, -1}, {"/dev/urandom", 1, 9, -1}, {"/dev/tty", 5, 0, -1},
};

constexpr const char* links[][2] = {{"/proc/self/fd", "/dev/fd"},         {"/proc/self/fd/0", "/dev/stdin"},
                                    {"/proc/self/fd/1", "/dev/stdout"},   {"/proc/self/fd/2", "/dev/stderr"},
                                    {"pts/ptmx", "/dev/ptmx"}};

// In a user namespace no node can be made. The node of the host is shown then, read-only: its mode stays.
long show_device(Device& device, long host) {
  // The first eight bits of the minor number; more are not needed.
  if (call(abi::mknodat, AT_FDCWD, at(device.path), S_IFCHR | 0666, device.major << 8 | device.minor) == 0) return 0;
  const long clone = call(abi::open_tree, host, at(device.path + length("/dev/")), abi::open_tree_clone | O_CLOEXEC);
  if (clone < 0) return clone == -ENOENT ? 0 : clone;
  device.clone = clone;
  const long result = change(clone, "", abi::mount_attr_rdonly);
  return result < 0 ? result : make_file(device.path);
}

long make_dev() {
  const long mask = call(abi::umask, 0);
  const long host = call(abi::openat, AT_FDCWD, at("/dev"), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (host < 0) return host == -ENOENT || host == -ENOTDIR ? restrict("/", abi::mount_attr_nodev) : host;
  constexpr unsigned long flags = MS_NOSUID;
  long result = call(abi::mount, at("dev"), at("/dev"), at("tmpfs"), flags, at("mode=755"));
  for (Device& device : devices) {
    if (result == 0) result = show_device(device, host);
  }
  if (result == 0) result = restrict("/", abi::mount_attr_nodev);
  // Nodes that were made here work. The attribute would do no harm to clones, which are mounts of their own.
  if (result == 0) result = change(AT_FDCWD, "/dev", 0, abi::mount_attr_nodev);
  for (Device& device : devices) {
    if (device.clone < 0) continue;
    if (result == 0) result = put(device.clone, device.path);
    call(abi::close, device.clone);
  }
  call(abi::close, host);
  for (const auto& [to, path] : links) {
    if (result == 0) result = call(abi::symlinkat, at(to), AT_FDCWD, at(path));
  }
  if (result == 0) result = call(abi::mkdirat, AT_FDCWD, at("/dev/shm"), 01777);
  if (result == 0) result = call(abi::mkdirat, AT_FDCWD, at("/dev/pts"), 0755);
  call(abi::umask, mask);
  if (result < 0) return result;
  has_own_dev = true;
  constexpr unsigned long of_terminals = MS_NOSUID | MS_NOEXEC;
  return call(abi::mount, at("devpts"), at("/dev/pts"), at("devpts"), of_terminals, at("newinstance,ptmxmode=666,mode=620"));
}

[[noreturn]] void hold(long parent) {
  call(abi::prctl, PR_SET_PDEATHSIG, SIGKILL);
  call(abi::write, 1, at(""), 1);
  // The parent may have ended before prctl(2).
  while (call(abi::getppid) == parent) call(abi::ppoll);
  for (;;) call(abi::exit, 0);
}

long write_decimal(char* to, long value) {
  char digits[20];
  long count = 0, size = 0;
  do digits[count++] = static_cast<char>('0' + value % 10); while ((value /= 10) != 0);
  while (count > 0) to[size++] = digits[--count];
  return size;
}

// ----------------------------------------------------------------------------------------- the terminal

bool has_terminal() {
  const long terminal = call(abi::openat, AT_FDCWD, at("/dev/tty"), O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (terminal >= 0) {
    call(abi::close, terminal);
    return true;
  }
  // There may be no such node.
  for (long stream = 0; stream < 3; stream++) {
    int group;
    if (call(abi::ioctl, stream, TIOCGPGRP, at(&group)) == 0) return true;
  }
  return false;
}

// The caller's shell would read such input when the program has ended. The calls fail as they do where the sysctl
// dev.tty.legacy_tiocsti is 0 (Linux 6.2).
long keep_input() {
  if (!has_terminal()) return 0;
#if defined(__x86_64__)
  constexpr uint32_t arch = AUDIT_ARCH_X86_64, number = 16, other = 0x40000000 | 514;  // x32
#elif defined(__aarch64__)
  constexpr uint32_t arch = AUDIT_ARCH_AARCH64, number = 29, other = number;
#endif
  constexpr uint32_t number_in_32_bits = 54;
  constexpr uint32_t tioclinux = 0x541c;
  constexpr uint32_t second_argument = offsetof(seccomp_data, args) + 8;  // its lower half: both are little-endian
  static sock_filter lines[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, arch, 2, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number_in_32_bits, 3, 6),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, other, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, second_argument),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, TIOCSTI, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, tioclinux, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EIO),
  };
  const sock_fprog filter{sizeof lines / sizeof *lines, lines};
  // Without this flag, processors with some faults become slower (Linux 4.17 to 5.15).
  constexpr long spec_allow = 4;
  return call(abi::seccomp, SECCOMP_SET_MODE_FILTER, spec_allow, at(&filter));
}

// ----------------------------------------------------------------------------------------- the process namespace

[[noreturn]] void leave(long code) {
  for (;;) call(abi::exit, code);
}

long fork() { return call(abi::clone, SIGCHLD); }

constexpr long last_descriptor = 0x7fffffff;

// Closes those descriptors of a range that /proc lists. Returns false if there is no /proc.
bool close_listed(long first, long last) {
  const long directory = call(abi::openat, AT_FDCWD, at("/proc/self/fd"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return false;
  alignas(8) static char entries[4096];
  for (long size; (size = call(abi::getdents64, directory, at(entries), sizeof entries)) > 0;) {
    // struct linux_dirent64: the length is at byte 16, the name at byte 19.
    for (long i = 0; i < size; i += *reinterpret_cast<uint16_t*>(entries + i + 16)) {
      const char* name = entries + i + 19;
      const long fd = number(name);
      if (*name != '.' && fd != directory && fd >= first && fd <= last) call(abi::close, fd);
    }
  }
  call(abi::close, directory);
  return true;
}

// ENOSYS: before 5.9. EPERM: the seccomp filter of an older Docker.
void close_range(long first, long last) {
  if (first > last || call(abi::close_range, first, last) == 0 || close_listed(first, last)) return;
  constexpr long most = 65536;
  for (long fd = first; fd <= last && fd < most; fd++) call(abi::close, fd);
}

// Closes all descriptors but two. The streams of the program end when the program ends or closes them.
void close_others(long one, long other) {
  const long low = one < other ? one : other, high = one < other ? other : one;
  close_range(0, low - 1);
  close_range(low + 1, high - 1);
  close_range(high + 1, last_descriptor);
}

using Mask = uint64_t;

long set_mask(Mask mask, Mask* before = nullptr) {
  return call(abi::rt_sigprocmask, SIG_SETMASK, at(&mask), at(before), sizeof mask);
}

// A descriptor for all signals. They have to be blocked.
long open_signals() {
  const Mask all = ~Mask{0};
  return call(abi::signalfd4, -1, at(&all), sizeof all, SFD_CLOEXEC);
}

// Tells a signal that was handed on from one that a group of processes gets.
constexpr int handed_on = 0x6f766c;

bool is_stop(int status) { return (status & 0xff) == 0x7f; }

constexpr int continued = 0xffff;
bool is_continued(int status) { return status == continued; }

// Ends as the program has ended.
[[noreturn]] void end_like(int status) {
  const long signal = status & 0x7f;
  if (signal == 0) leave(status >> 8 & 0xff);
  call(abi::prctl, PR_SET_DUMPABLE, 0);  // no second core dump
  set_mask(0);
  call(abi::kill, call(abi::getpid), signal);
  leave(128 + signal);
}

// The process that the caller knows, outside the namespace. It keeps no file system in use by its working directory.
[[noreturn]] void wait_outside(long first, int statuses, long signals) {
  close_others(statuses, signals);
  call(abi::chdir, at("/"));
  int ended = -1;
  const long self = call(abi::getpid);
  // Nobody inside can continue this process. The kernel does, with each status: fcntl(2).
  call(abi::fcntl, statuses, F_SETOWN, self);
  call(abi::fcntl, statuses, F_SETSIG, SIGCONT);
  call(abi::fcntl, statuses, F_SETFL, O_ASYNC);
  for (;;) {
    pollfd ready[] = {{statuses, POLLIN, 0}, {static_cast<int>(signals), POLLIN, 0}};
    // A filter may deny the call. Signals are not handed on then.
    if (call(abi::ppoll, at(ready), 2) < 0) ready[0].revents = POLLIN;
    if (ready[0].revents != 0) {
      int status = 0;
      if (call(abi::read, statuses, at(&status), sizeof status) != sizeof status) {
        call(abi::wait4, first, at(&status));
        end_like(ended < 0 ? status : ended);
      }
      if (is_stop(status)) call(abi::kill, self, SIGSTOP);
      else if (!is_continued(status)) ended = status;
    }
    if (ready[1].revents == 0) continue;
    signalfd_siginfo got;
    if (call(abi::read, signals, at(&got), sizeof got) != sizeof got) continue;
    // A terminal sends its signals to the program too.
    if (got.ssi_signo == SIGCHLD || got.ssi_code > 0) continue;
    static siginfo_t info;  // clearing one of its own would call memset(3), which no library brings here
    info.si_signo = static_cast<int>(got.ssi_signo);
    info.si_code = SI_QUEUE;
    info.si_value.sival_int = handed_on;
    call(abi::rt_sigqueueinfo, first, got.ssi_signo, at(&info));
  }
}

char** words = nullptr;

// Replaces the arguments, which name paths outside: programs inside can read them.
void take_name() {
  const char* name = "overlayfs-init";
  call(abi::prctl, PR_SET_NAME, at(name));
  for (char** word = words; *word != nullptr; word++) {
    for (char* c = *word; *c != '\0'; c++) *c = *name != '\0' ? *name++ : '\0';
    name = "";
  }
}

// The first process of the namespace. When it ends, the kernel kills the others.
[[noreturn]] void reap(long program, int statuses, long signals) {
  close_others(statuses, signals);
  call(abi::chdir, at("/"));
  take_name();
  // "Continued" is told again and again: the process outside may have read "stopped", and not have stopped yet.
  constexpr int often = 8;
  for (int times = often;;) {
    if (times < often) {
      pollfd ready{static_cast<int>(signals), POLLIN, 0};
      int64_t pause[2] = {0, 4'000'000L << times};  // 1 s in all
      if (call(abi::ppoll, at(&ready), 1, at(pause)) == 0) {
        times++;
        call(abi::write, statuses, at(&continued), sizeof continued);
        continue;
      }
    }
    signalfd_siginfo got;
    const bool is_known = call(abi::read, signals, at(&got), sizeof got) == sizeof got;
    if (!is_known || got.ssi_signo == SIGCHLD) {
      int status = 0;
      const long ways = (is_known ? WNOHANG : 0) | WUNTRACED | WCONTINUED;
      for (long pid; (pid = call(abi::wait4, -1, at(&status), ways)) > 0;) {
        if (pid != program) continue;
        call(abi::write, statuses, at(&status), sizeof status);
        times = is_continued(status) ? 0 : often;
        if (is_stop(status) || is_continued(status)) continue;
        // The process outside uses this code only if the status could not be written.
        leave((status & 0x7f) == 0 ? status >> 8 & 0xff : 128 + (status & 0x7f));
      }
    } else if (got.ssi_code <= 0 && (got.ssi_pid != 0 || (got.ssi_code == SI_QUEUE && got.ssi_int == handed_on))) {
      // A process outside, whose id is 0 here, sends to the group, or through the one that waits.
      call(abi::kill, program, got.ssi_signo);
    } else if (got.ssi_code <= 0) {
      // The program's group gets it by itself if it is that of this process, which has no id here.
      const long group = call(abi::getpgid, program);
      if (group > 0) call(abi::kill, -group, got.ssi_signo);
    }
  }
}

// Leaves the caller's process group, to which the program could send signals. Its job control needs the group if there
// is a terminal. A process that leads a group cannot make a session, so a child that ends at once leads it.
long leave_group() {
  if (has_terminal()) return 0;
  const long leader = call(abi::clone);
  if (leader < 0) return leader;
  if (leader == 0) leave(0);
  long result = call(abi::setpgid, leader, leader);
  if (result == 0) result = call(abi::setpgid, 0, leader);
  call(abi::wait4, leader, 0, __WALL);
  return result;
}

// Returns in the process of the program only.
long become_second() {
  int statuses[2];
  long result = call(abi::pipe2, at(statuses), O_CLOEXEC);
  if (result < 0) return result;
  // Without this call, nobody would hear of the program's end.
  result = call(abi::wait4, -1, 0, WNOHANG);
  if (result < 0 && result != -ECHILD) return result;
  Mask before;
  result = set_mask(~Mask{0}, &before);
  if (result < 0) return result;
  long signals = open_signals();
  if (signals < 0) return signals;
  const long first = fork();
  if (first < 0) return first;
  if (first > 0) wait_outside(first, statuses[0], signals);
  // The program must not trace this process, which has capabilities that it does not have.
  call(abi::prctl, PR_SET_DUMPABLE, 0);
  call(abi::prctl, PR_SET_PDEATHSIG, SIGKILL);
  call(abi::close, statuses[0]);
  pollfd outside{statuses[1], 0, 0};
  const int64_t now[2] = {0, 0};
  // The process outside may have ended before prctl(2).
  if (call(abi::ppoll, at(&outside), 1, at(now)) > 0) leave(0);
  const long program = fork();
  if (program < 0) return program;
  if (program > 0) reap(program, statuses[1], signals);
  call(abi::prctl, PR_SET_DUMPABLE, 1);
  call(abi::close, statuses[1]);
  call(abi::close, signals);
  result = leave_group();
  set_mask(before);
  return result;
}

// The root of a /proc.
long proc = -1;

long open_proc(bool is_new) {
  // A clone stays writable when the mount becomes read-only.
  if (!is_new) return proc = call(abi::open_tree, AT_FDCWD, at("/proc"), abi::open_tree_clone | O_CLOEXEC | abi::at_recursive);
  long context = call(abi::fsopen, at("proc"), abi::fsopen_cloexec);
  if (context < 0) return context;
  long result = call(abi::fsconfig, context, abi::fsconfig_cmd_create);
  constexpr long attributes = abi::mount_attr_nosuid | abi::mount_attr_nodev | abi::mount_attr_noexec;
  if (result == 0) result = proc = call(abi::fsmount, context, abi::fsmount_cloexec, attributes);
  call(abi::close, context);
  return result;
}

long show_proc() {
  long result = attach(proc, "/proc");
  // A clone stays writable when the shown one becomes read-only.
  if (result == 0) {
    const long shown = proc;
    proc = call(abi::open_tree, shown, at(""), abi::open_tree_clone | O_CLOEXEC | AT_EMPTY_PATH);
    call(abi::close, shown);
    return proc;
  }
  return result == -ENOENT || result == -ENOTDIR || result == -EINVAL ? 0 : result;
}

// --------------------------------------------------------------------------------------------- users and networks

long write_map(long process, const char* name, const char* text) {
  char path[48];
  long size = write_decimal(path, process);
  for (; *name != '\0'; name++) path[size++] = *name;
  path[size] = '\0';
  return write_file(path, text, proc);
}

// In the user namespace of `lock`, with or without maps.
bool is_locked = false;
// In a user namespace that this program has to itself.
bool has_namespace = false;

// Each user namespace has limits of its own; the kernel counts against those of all around it. The limit
// stays if /proc/sys is read-only, as in most containers. The namespace of others is left alone.
void limit(const char* name, const char* text) {
  if (!has_namespace) return;
  char path[64] = "sys/user/";
  long size = length(path);
  while (*name != '\0' && size < static_cast<long>(sizeof path) - 1) path[size++] = *name++;
  path[size] = '\0';
  write_file(path, text, proc);
}

// Another process writes the maps: it still has its capabilities in the outer namespace.
long lock(long flags, const char* uids, const char* gids) {
  int made[2];
  long result = call(abi::pipe2, at(made), O_CLOEXEC);
  if (result < 0) return result;
  const long self = call(abi::getpid);
  const long helper = fork();
  if (helper < 0) return helper;
  if (helper == 0) {
    char byte;
    call(abi::close, made[1]);
    if (call(abi::read, made[0], at(&byte), 1) != 1) leave(0);
    long written = write_map(self, "/uid_map", uids);
    if (written > 0) written = write_map(self, "/gid_map", gids);
    leave(written < 0 ? -written : 0);
  }
  result = call(abi::unshare, flags);
  is_locked = has_namespace = result == 0;
  if (is_locked) call(abi::write, made[1], at(""), 1);
  for (const int end : made) call(abi::close, end);
  int status = 0;
  call(abi::wait4, helper, at(&status));
  return result < 0 ? result : -(status >> 8 & 0xff);
}

long bring_loopback_up() {
  long socket = call(abi::socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC);
  if (socket < 0) return socket;
  static ifreq request;
  request.ifr_name[0] = 'l', request.ifr_name[1] = 'o';
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  long result = call(abi::ioctl, socket, SIOCSIFFLAGS, at(&request));
  call(abi::close, socket);
  return result;
}

long become(const char* uid, const char* gid, const char* groups) {
  constexpr long most = 256;
  static uint32_t list[most];
  if (!same(groups, "-")) {
    long count = 0;
    for (const char* next = groups; *next != '\0' && count < most;) {
      list[count++] = static_cast<uint32_t>(number(next));
      while (*next != '\0' && *next++ != ',') {}
    }
    if (long result = call(abi::setgroups, count, at(list)); result < 0) return result;
  }
  const long group = number(gid), user = number(uid);
  long result = call(abi::setresgid, group, group, group);
  return result < 0 ? result : call(abi::setresuid, user, user, user);
}

// struct __user_cap_header_struct, and two of struct __user_cap_data_struct.
struct Capabilities {
  uint32_t version, pid;
  struct { uint32_t effective, permitted, inheritable; } words[2];
};

long drop() {
  // Without inheritable capabilities, there are no ambient ones.
  Capabilities own{0x20080522, 0, {}};
  long result = call(abi::capget, at(&own), at(own.words));
  for (auto& word : own.words) word.inheritable = 0;
  if (result == 0) result = call(abi::capset, at(&own), at(own.words));
  if (result < 0) return result;
  for (long capability = 0; result == 0; capability++) result = call(abi::prctl, PR_CAPBSET_DROP, capability);
  // EINVAL: after the last one.
  return result == -EINVAL ? 0 : result;
}

long confine(long flags, const char* uids, const char* gids) {
  const long result = lock(flags, uids, gids);
  // A chroot, a limit, a kernel without user namespaces.
  return is_locked || (result != -EPERM && result != -ENOSPC && result != -EINVAL) ? result : drop();
}

long die_with(long parent) {
  const long result = call(abi::prctl, PR_SET_PDEATHSIG, SIGKILL);
  const long now = call(abi::getppid);
  // The parent may have ended before prctl(2). In another process namespace its id is 0.
  if (now < 0) return now;
  if (result == 0 && now != parent && now != 0) call(abi::kill, call(abi::getpid), SIGKILL);
  return result;
}

long keep_capabilities() {
  Capabilities own{0x20080522, 0, {}};
  long result = call(abi::capget, at(&own), at(own.words));
  if (result < 0) return result;
  for (auto& word : own.words) word.inheritable = word.permitted;
  result = call(abi::capset, at(&own), at(own.words));
  if (result < 0) return result;
  // EPERM: a capability that this process does not have. EINVAL: after the last one.
  for (long capability = 0; capability < 64 && result != -EINVAL; capability++) {
    result = call(abi::prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability);
  }
  return 0;
}

const char* variable(char** environment, const char* name) {
  long size = length(name);
  for (; *environment != nullptr; environment++) {
    long i = 0;
    while (i < size && (*environment)[i] == name[i]) i++;
    if (i == size && (*environment)[i] == '=') return *environment + size + 1;
  }
  return nullptr;
}

constexpr long most_arguments = 32768;
char* shell_arguments[most_arguments];

long execute(const char* path, char** arguments, char** environment) {
  long result = call(abi::execve, at(path), at(arguments), at(environment));
  if (result != -ENOEXEC) return result;
  // Runs a script without a `#!` line with /bin/sh, as execvp(3) does.
  long count = 0;
  while (arguments[count] != nullptr) count++;
  if (count + 2 > most_arguments) return -E2BIG;
  shell_arguments[0] = const_cast<char*>("/bin/sh");
  shell_arguments[1] = const_cast<char*>(path);
  for (long i = 1; i <= count; i++) shell_arguments[i + 1] = arguments[i];
  return call(abi::execve, at("/bin/sh"), at(shell_arguments), at(environment));
}

long search(const char* command, char** arguments, char** environment) {
  if (*command == '\0') return -ENOENT;
  for (const char* c = command; *c != '\0'; c++) {
    if (*c == '/') return execute(command, arguments, environment);
  }
  const char* paths = variable(environment, "PATH");
  if (paths == nullptr) paths = "/usr/local/bin:/bin:/usr/bin";
  long size = length(command);
  static char path[4096];
  long result = -ENOENT;
  for (;;) {
    long n = 0;
    while (paths[n] != '\0' && paths[n] != ':') n++;
    if (n + size + 2 <= static_cast<long>(sizeof path)) {
      char* to = path;
      for (long i = 0; i < n; i++) *to++ = paths[i];
      if (n > 0) *to++ = '/';
      for (long i = 0; i <= size; i++) *to++ = command[i];
      long tried = execute(path, arguments, environment);
      // The search continues after EACCES, which is then a better report than ENOENT.
      if (tried == -EACCES) result = tried;
      else if (tried != -ENOENT && tried != -ENOTDIR) return tried;
    }
    if (paths[n] == '\0') return result;
    paths += n + 1;
  }
}

[[noreturn]] void fail(long index, long error) {
  char text[48];
  long size = write_decimal(text, index);
  text[size++] = ' ';
  size += write_decimal(text + size, error);
  if (report >= 0) call(abi::write, report, at(text), size);
  leave(127);
}

// An image may name /proc/self/exe as its program, and as uid 0 change the mode of the caller's file by /proc/PID/exe. It
// finds the copy there. All words are read again; WORD, that of this order, does nothing then.
long seal(char** arguments, char** environment, long word) {
  constexpr long cloexec = 1, allow_sealing = 2, executable = 0x10;  // MFD_*
  constexpr long add_seals = 1033, all_seals = 0xf;  // F_ADD_SEALS, F_SEAL_*
  const long own = call(abi::openat, AT_FDCWD, at(arguments[0]), O_RDONLY | O_CLOEXEC);
  if (own < 0) return own;
  long copy = call(abi::memfd_create, at("overlayfs-launch"), cloexec | allow_sealing | executable);
  // Before 6.3 each one is executable, and there is no flag for it.
  if (copy == -EINVAL) copy = call(abi::memfd_create, at("overlayfs-launch"), cloexec | allow_sealing);
  if (copy < 0) return copy;
  // Beyond RLIMIT_FSIZE the kernel sends SIGXFSZ, which would end the launcher without a word, and gives EFBIG.
  Mask before;
  set_mask(~Mask{0}, &before);
  long result;
  do result = call(abi::sendfile, copy, own, 0, 1 << 20);
  while (result > 0);
  if (result == 0) result = call(abi::fcntl, copy, add_seals, all_seals);
  if (result == 0) result = call(abi::fcntl, report, F_SETFD, 0);
  if (result < 0) return result;
  set_mask(before);
  arguments[word] = const_cast<char*>("sealed");
  return call(abi::execveat, copy, at(""), at(arguments), at(environment), AT_EMPTY_PATH);
}

long join_new_keyring() {
  constexpr long join_session_keyring = 1;  // KEYCTL_JOIN_SESSION_KEYRING
  const long result = call(abi::keyctl, join_session_keyring, 0);
  // Neither does the program read a key: a kernel without keys, or a filter.
  return result > 0 || result == -ENOSYS || result == -EPERM ? 0 : result;
}

[[noreturn]] void run(long count, char** arguments, char** environment) {
  const char* argv0 = nullptr;
  words = arguments;
  for (long i = 1; i < count;) {
    const long word = i;
    const char* name = arguments[i++];
    static char none[1];
    auto next = [&] { return i < count ? arguments[i++] : none; };
    auto path_next = [&] { return decode(next()); };
    long result = -EINVAL;
    if (same(name, "exec")) {
      char** rest = arguments + i;
      const char* command = next();
      if (argv0 != nullptr && *rest != nullptr) rest[0] = const_cast<char*>(argv0);
      fail(word, -search(command, rest, environment));
    } else if (same(name, "report")) {
      report = number(next());
      result = call(abi::fcntl, report, F_SETFD, FD_CLOEXEC);
    } else if (same(name, "seal")) {
      result = seal(arguments, environment, word);
    } else if (same(name, "sealed")) {
      // Else a number, that of the descriptor.
      result = call(abi::prctl, PR_SET_NAME, at("overlayfs-launch"));
    } else if (same(name, "close")) {
      const long first = number(next());
      close_range(first, number(next()));
      result = 0;
    } else if (same(name, "cloexec")) {
      result = call(abi::fcntl, number(next()), F_SETFD, FD_CLOEXEC);
    } else if (same(name, "copy")) {
      result = copy(number(next()));
    } else if (same(name, "join")) {
      result = call(abi::setns, number(next()), CLONE_NEWUSER);
      has_namespace = result == 0;
    } else if (same(name, "unshare")) {
      const long flags = number(next());
      result = call(abi::unshare, flags);
      if (result == 0 && (flags & CLONE_NEWUSER) != 0) has_namespace = true;
    } else if (same(name, "write")) {
      const char* path = next();
      result = write_file(path, next());
    } else if (same(name, "private")) {
      result = set_propagation(MS_PRIVATE);
    } else if (same(name, "slave")) {
      result = set_propagation(MS_SLAVE);
    } else if (same(name, "clone")) {
      result = clone(number(next()));
    } else if (same(name, "mounted")) {
      const char* path = path_next();
      result = expect(path, number(next()));
    } else if (same(name, "tree")) {
      result = take(path_next());
    } else if (same(name, "readonly") || same(name, "readonly-any")) {
      result = restrict(path_next(), abi::mount_attr_rdonly);
    } else if (same(name, "readonly-kernel")) {
      result = restrict_kernel(proc);
    } else if (same(name, "hide") || same(name, "hide-any")) {
      result = hide(path_next());
    } else if (same(name, "attach")) {
      const char* path = path_next();
      result = mounts_attached < mounts_opened ? show(mounts[mounts_attached++], path) : -EINVAL;
    } else if (same(name, "hold")) {
      hold(number(next()));
    } else if (same(name, "take")) {
      result = take_tree(path_next());
    } else if (same(name, "tmpfs")) {
      const char* size = next();
      result = make_tmpfs(size, next());
    } else if (same(name, "nodev")) {
      result = mounts_opened > 0 ? change(mounts[mounts_opened - 1], "", abi::mount_attr_nodev) : -EINVAL;
    } else if (same(name, "dev")) {
      result = make_dev();
    } else if (same(name, "proc")) {
      result = open_proc(same(next(), "new"));
    } else if (same(name, "show-proc")) {
      result = show_proc();
    } else if (same(name, "init")) {
      result = become_second();
    } else if (same(name, "lock") || same(name, "confine")) {
      const long flags = number(next());
      const char* uids = next();
      const char* gids = next();
      result = same(name, "lock") ? lock(flags, uids, gids) : confine(flags, uids, gids);
    } else if (same(name, "terminal")) {
      result = keep_input();
    } else if (same(name, "limit")) {
      const char* limited = next();
      limit(limited, next());
      result = 0;
    } else if (same(name, "network")) {
      result = bring_loopback_up();
    } else if (same(name, "hostname")) {
      const char* host = next();
      result = call(abi::sethostname, at(host), length(host));
    } else if (same(name, "ids")) {
      const char* uid = next();
      const char* gid = next();
      result = become(uid, gid, next());
    } else if (same(name, "keyring")) {
      result = join_new_keyring();
    } else if (same(name, "die-with")) {
      result = die_with(number(next()));
    } else if (same(name, "drop")) {
      result = drop();
    } else if (same(name, "ambient")) {
      result = keep_capabilities();
    } else if (same(name, "chdir")) {
      result = call(abi::chdir, at(path_next()));
    } else if (same(name, "argv0")) {
      argv0 = next();
      result = 0;
    }
    const bool is_optional = length(name) > 4 && same(name + length(name) - 4, "-any");
    if (is_optional && (result == -ENOENT || result == -ENOTDIR)) result = 0;
    if (result < 0) fail(word, -result);
  }
  fail(count, EINVAL);
}

}  // namespace

// The kernel puts these on the stack: the number of arguments, the arguments, NULL, the environment, NULL.
extern "C" [[noreturn]] __attribute__((used)) void overlayfs_launch(long* stack) {
  long count = stack[0];
  auto** arguments = reinterpret_cast<char**>(stack + 1);
  run(count, arguments, arguments + count + 1);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call overlayfs_launch\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n  mov x29, #0\n  mov x30, #0\n  mov x0, sp\n  bl overlayfs_launch\n");
#endif
