// Starts a program in namespaces of its own, with mounts that no other program sees. The launcher carries out its
// arguments in order, which lib/programs/launch.ts chooses, and then executes the program:
//
//   report FD            write a failure to FD as "INDEX ERRNO": the argument whose word failed; exec closes FD
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
//   hide PATH            make a directory or file empty for this program; follows a symbolic link
//   attach PATH          attach the first mount that is not attached yet; at the root it takes the place of the root,
//                        and keeps the mounts in /proc, /dev and /sys
//   take PATH            clone a tree of mounts by its path, for `attach`
//   proc own|new         keep /proc for `lock`: as it is, or a new one, for a new process namespace
//   show-proc            attach the new /proc, if there is such a directory
//   init                 make the process that carries out the rest the second one of a new process namespace: the first
//                        one reaps, and this one waits, hands signals on and ends as the program does
//   lock FLAGS UIDS GIDS enter a user namespace inside, unshare(2), with these maps: the mounts so far cannot be undone
//   network              bring the loopback interface up
//   drop                 let no program gain capabilities
//   ids UID GID GROUPS   become another user; `-` leaves the groups as they are
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
#include <sys/wait.h>

#include "abi.h"

namespace {

namespace abi = overlayfs::abi;

long call(abi::Number number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0) {
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
  if (!is_root(path, AT_SYMLINK_NOFOLLOW)) return attach(mount, path);
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

long write_file(const char* path, const char* text) {
  long file = call(abi::openat, AT_FDCWD, at(path), O_WRONLY | O_CLOEXEC);
  if (file < 0) return file;
  long result = call(abi::write, file, at(text), length(text));
  call(abi::close, file);
  return result;
}

long make_readonly(const char* path) {
  abi::MountAttr attributes{abi::mount_attr_rdonly, 0, 0, 0};
  long result = call(abi::mount_setattr, AT_FDCWD, at(path), abi::at_recursive, at(&attributes), sizeof attributes);
  if (result != -EINVAL) return result;
  // EINVAL: a directory inside a mount. It gets a mount of its own.
  long tree = call(abi::open_tree, AT_FDCWD, at(path), abi::open_tree_clone | O_CLOEXEC | abi::at_recursive);
  if (tree < 0) return tree;
  const long flags = AT_EMPTY_PATH | abi::at_recursive;
  result = call(abi::mount_setattr, tree, at(""), flags, at(&attributes), sizeof attributes);
  if (result == 0) result = attach(tree, path, true);
  call(abi::close, tree);
  return result;
}

long hide(const char* path) {
  // Hiding the root would leave no program to run.
  if (is_root(path)) return -EBUSY;
  constexpr unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
  long result = call(abi::mount, at("hidden"), at(path), at("tmpfs"), static_cast<long>(flags), at("mode=555"));
  if (result != -ENOTDIR) return result;
  long null = call(abi::open_tree, AT_FDCWD, at("/dev/null"), abi::open_tree_clone | O_CLOEXEC);
  if (null < 0) return null;
  result = attach(null, path, true);
  call(abi::close, null);
  return result;
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

// ----------------------------------------------------------------------------------------- the process namespace

[[noreturn]] void leave(long code) {
  for (;;) call(abi::exit, code);
}

long fork() { return call(abi::clone, SIGCHLD); }

// Closes all descriptors but two. The streams of the program end when the program ends or closes them.
void close_others(long one, long other) {
  const long low = one < other ? one : other, high = one < other ? other : one;
  constexpr long end = 0x7fffffff;
  if (low > 0) call(abi::close_range, 0, low - 1);
  if (high > low + 1) call(abi::close_range, low + 1, high - 1);
  if (call(abi::close_range, high + 1, end) != -ENOSYS) return;
  // Before 5.9. The caller passes few descriptors.
  for (long fd = 0; fd < 1024; fd++) {
    if (fd != one && fd != other) call(abi::close, fd);
  }
}

using Mask = uint64_t;

void set_mask(Mask mask, Mask* before = nullptr) {
  call(abi::rt_sigprocmask, SIG_SETMASK, at(&mask), at(before), sizeof mask);
}

// A descriptor for all signals. They have to be blocked.
long open_signals() {
  const Mask all = ~Mask{0};
  return call(abi::signalfd4, -1, at(&all), sizeof all, SFD_CLOEXEC);
}

// Tells a signal that was handed on from one that a group of processes gets.
constexpr int handed_on = 0x6f766c;

bool is_stop(int status) { return (status & 0xff) == 0x7f; }

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
  for (;;) {
    pollfd ready[] = {{statuses, POLLIN, 0}, {static_cast<int>(signals), POLLIN, 0}};
    call(abi::ppoll, at(ready), 2);
    if (ready[0].revents != 0) {
      int status = 0;
      if (call(abi::read, statuses, at(&status), sizeof status) != sizeof status) {
        call(abi::wait4, first, at(&status));
        end_like(ended < 0 ? status : ended);
      }
      if (is_stop(status)) call(abi::kill, call(abi::getpid), SIGSTOP);
      else ended = status;
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

// Empties the arguments, which name paths outside: programs inside can read them.
void forget_words() {
  for (char** word = words + 1; *word != nullptr; word++) {
    for (char* c = *word; *c != '\0'; c++) *c = '\0';
  }
}

// The first process of the namespace. When it ends, the kernel kills the others.
[[noreturn]] void reap(long program, int statuses, long signals) {
  close_others(statuses, signals);
  call(abi::chdir, at("/"));
  forget_words();
  for (;;) {
    signalfd_siginfo got;
    if (call(abi::read, signals, at(&got), sizeof got) != sizeof got) continue;
    if (got.ssi_signo == SIGCHLD) {
      int status = 0;
      for (long pid; (pid = call(abi::wait4, -1, at(&status), WNOHANG | WUNTRACED)) > 0;) {
        if (pid != program) continue;
        call(abi::write, statuses, at(&status), sizeof status);
        if (!is_stop(status)) leave(0);
      }
    } else if (got.ssi_code <= 0 && (got.ssi_pid != 0 || (got.ssi_code == SI_QUEUE && got.ssi_int == handed_on))) {
      // A process outside, whose id is 0 here, sends to the group, or through the one that waits.
      call(abi::kill, program, got.ssi_signo);
    }
  }
}

// Returns in the process of the program only.
long become_second() {
  int statuses[2];
  long result = call(abi::pipe2, at(statuses), O_CLOEXEC);
  if (result < 0) return result;
  Mask before;
  set_mask(~Mask{0}, &before);
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
  set_mask(before);
  return 0;
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
  return result == -ENOENT || result == -ENOTDIR || result == -EINVAL ? 0 : result;
}

// --------------------------------------------------------------------------------------------- users and networks

long write_map(long process, const char* name, const char* text) {
  char path[48];
  long size = write_decimal(path, process);
  for (; *name != '\0'; name++) path[size++] = *name;
  path[size] = '\0';
  long file = call(abi::openat, proc, at(path), O_WRONLY | O_CLOEXEC);
  if (file < 0) return file;
  long result = call(abi::write, file, at(text), length(text));
  call(abi::close, file);
  return result;
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
  if (result == 0) call(abi::write, made[1], at(""), 1);
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

long drop() {
  for (long capability = 0; call(abi::prctl, PR_CAPBSET_DROP, capability) == 0;) capability++;
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
    } else if (same(name, "cloexec")) {
      result = call(abi::fcntl, number(next()), F_SETFD, FD_CLOEXEC);
    } else if (same(name, "copy")) {
      result = copy(number(next()));
    } else if (same(name, "join")) {
      result = call(abi::setns, number(next()), CLONE_NEWUSER);
    } else if (same(name, "unshare")) {
      result = call(abi::unshare, number(next()));
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
    } else if (same(name, "readonly")) {
      result = make_readonly(path_next());
    } else if (same(name, "readonly-any")) {
      result = make_readonly(path_next());
      if (result == -ENOENT || result == -ENOTDIR) result = 0;
    } else if (same(name, "hide")) {
      result = hide(path_next());
    } else if (same(name, "attach")) {
      const char* path = path_next();
      result = mounts_attached < mounts_opened ? show(mounts[mounts_attached++], path) : -EINVAL;
    } else if (same(name, "hold")) {
      hold(number(next()));
    } else if (same(name, "take")) {
      result = take_tree(path_next());
    } else if (same(name, "proc")) {
      result = open_proc(same(next(), "new"));
    } else if (same(name, "show-proc")) {
      result = show_proc();
    } else if (same(name, "init")) {
      result = become_second();
    } else if (same(name, "lock")) {
      const long flags = number(next());
      const char* uids = next();
      result = lock(flags, uids, next());
    } else if (same(name, "network")) {
      result = bring_loopback_up();
    } else if (same(name, "ids")) {
      const char* uid = next();
      const char* gid = next();
      result = become(uid, gid, next());
    } else if (same(name, "drop")) {
      result = drop();
    } else if (same(name, "chdir")) {
      result = call(abi::chdir, at(path_next()));
    } else if (same(name, "argv0")) {
      argv0 = next();
      result = 0;
    }
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
