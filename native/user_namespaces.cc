// Makes user namespaces, and writes their maps: user_namespaces(7).
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>

#include "child.h"
#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

long write_whole(const char* path, const char* text, size_t size) {
  int file = sys::openat2(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0, 0);
  if (file < 0) return file;
  long result = sys::call(abi::write, file, text, size);
  sys::close(file);
  return result;
}

constexpr const char* maps[] = {"/uid_map", "/gid_map"};

// The files of a process in /proc.
class ProcessFiles {
 public:
  explicit ProcessFiles(int pid) { end_ = start + write_decimal(path_ + start, pid); }

  // NAME begins with a slash; the path is valid until the next call.
  const char* path(const char* name) {
    memcpy(path_ + end_, name, strlen(name) + 1);
    return path_;
  }
  // Returns a descriptor, or minus the errno.
  long open(const char* name) { return sys::openat2(AT_FDCWD, path(name), O_RDONLY | O_CLOEXEC, 0, 0); }
  const char* pid() {
    path_[end_] = '\0';
    return path_ + start;
  }

 private:
  static constexpr size_t start = sizeof "/proc/" - 1;
  char path_[48] = "/proc/";
  size_t end_;
};

class Pipe {
 public:
  Pipe() : error_(static_cast<int>(-sys::call(abi::pipe2, ends_, O_CLOEXEC))) {}
  ~Pipe() {
    if (error_ != 0) return;
    sys::close(ends_[0]);
    end_input();
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  // 0, or the errno with which no pipe could be made.
  int error() const { return error_; }
  int input() const { return ends_[1]; }
  // A process that has a copy of it may still write.
  void end_input() {
    if (ends_[1] >= 0) sys::close(ends_[1]);
    ends_[1] = -1;
  }
  long read(void* to, size_t size) { return sys::read(ends_[0], to, size); }

 private:
  int ends_[2] = {-1, -1};
  int error_;
};

// A process that does nothing, in a user namespace of its own, until it is killed. It executes a program to have memory
// of its own: if it shared this process's memory and this process had changed its user, root would own its maps.
class Holder {
 public:
  explicit Holder(const char* program) {
    if ((error_ = stack_.error()) != 0 || (error_ = ready_.error()) != 0) return;
    char parent[16] = "";
    write_decimal(parent, static_cast<int>(sys::call(abi::getpid)));
    const char* words[] = {program, "hold", parent, nullptr};
    words_ = words;
    auto main = [](void* data) -> int {
      auto* self = static_cast<Holder*>(data);
      constexpr char* no_environment[] = {nullptr};
      sys::call(abi::dup3, self->ready_.input(), 1, 0);
      // Its signals stay blocked: this process decides what a terminal's signal ends.
      self->error_ = static_cast<int>(-sys::call(abi::execve, self->words_[0], self->words_, no_environment));
      return 127;
    };
    int error = child::make(main, this, stack_, child::waited_for | CLONE_NEWUSER, &pid_, &pidfd_);
    words_ = nullptr;
    if (error != 0) {
      error_ = error;
      return;
    }
    if (error_ == 0 && !waits_until_ready()) error_ = ECHILD;
    if (error_ != 0) child::reap(pidfd_);
  }
  ~Holder() {
    if (error_ != 0) return;
    sys::call(abi::pidfd_send_signal, pidfd_, SIGKILL, nullptr, 0);
    child::reap(pidfd_);
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

  // 0, or the errno with which the process could not be made.
  int error() const { return error_; }
  int pid() const { return static_cast<int>(pid_); }
  // Returns the result of what was done with the process's files: of a process that was killed meanwhile, ECHILD.
  long checked(long result) const {
    pollfd ended{pidfd_, POLLIN, 0};
    constexpr int64_t now[2] = {0, 0};
    return result < 0 && sys::call(abi::ppoll, &ended, 1, now, nullptr, 0) > 0 ? -ECHILD : result;
  }

 private:
  // The kernel lets the caller go on once the child has its memory. The child's files in /proc get their owner later.
  bool waits_until_ready() {
    ready_.end_input();
    char byte;
    long size;
    while ((size = ready_.read(&byte, 1)) == -EINTR) {
    }
    return size == 1;
  }

  Stack stack_;
  Pipe ready_;
  const char** words_ = nullptr;
  int error_;
  int pidfd_ = -1;
  long pid_ = -1;
};

// Runs a program with its arguments to its end, and keeps the beginning of what it prints.
class Program {
 public:
  // WORDS: a NUL after each but the last. PID is inserted after the first.
  Program(const char* words, size_t size, const char* pid) {
    const char* end = words + size;
    for (const char* word = words; word < end && count_ < most_words - 2; word += strlen(word) + 1) {
      words_[count_++] = word;
      if (count_ == 1) words_[count_++] = pid;
    }
    words_[count_] = nullptr;
  }

  // Returns 0, or the errno with which it could not be started.
  int run() {
    if (output_.error() != 0) return output_.error();
    null_ = sys::openat2(AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0, 0);
    if (null_ < 0) return -null_;
    int error = start();
    sys::close(null_);
    return error;
  }

  const char* text() const { return text_; }
  size_t text_size() const { return text_size_; }

 private:
  int start() {
    Stack stack;
    if (stack.error() != 0) return stack.error();
    auto main = [](void* data) -> int {
      auto* self = static_cast<Program*>(data);
      const int standard[] = {self->null_, self->output_.input(), self->output_.input()};
      for (int fd = 0; fd < 3; fd++) sys::call(abi::dup3, standard[fd], fd, 0);
      self->start_error_ = child::execute(self->words_);
      return 127;
    };
    long pid;
    int pidfd;
    // The caller judges success by the map that the program writes, not by its exit status: the kernel does not report
    // a program's end to a process that ignores SIGCHLD.
    int error = child::make(main, this, stack, child::waited_for, &pid, &pidfd);
    if (error != 0) return error;
    // Otherwise the program's output would never end.
    output_.end_input();
    read_text();
    child::reap(pidfd);
    return start_error_;
  }

  void read_text() {
    char rest[256];
    for (;;) {
      const bool has_room = text_size_ < sizeof text_;
      long size = output_.read(has_room ? text_ + text_size_ : rest, has_room ? sizeof text_ - text_size_ : sizeof rest);
      if (size <= 0) return;
      if (has_room) text_size_ += static_cast<size_t>(size);
    }
  }

  // The kernel takes 340 ranges, of three numbers each.
  static constexpr size_t most_words = 1024;
  const char* words_[most_words];
  size_t count_ = 0;
  Pipe output_;
  int null_ = -1;
  int start_error_ = 0;
  char text_[1024];
  size_t text_size_ = 0;
};

}  // namespace

// Opens an existing file, writes a text argument in one call, and closes the file.
long Execution::write_text(const char* path, int32_t argument) const {
  Text text(*this, argument);
  return write_whole(path, text, text.size());
}

// write(path, value)
long Execution::write_file(const Step& step) { return write_text(Text(*this, step.a[0]), step.a[1]); }

// userns(uid map, gid map): makes a user namespace and returns its descriptor. Once it exists, the namespace needs no
// process. Its maps are written through the files of the child in /proc, which stay until the child is reaped.
long Execution::make_user_namespace(const Step& step) {
  Stack stack;
  if (stack.error() != 0) return -stack.error();
  auto main = [](void*) -> int { return 0; };
  long pid;
  int pidfd;
  int error = child::make(main, nullptr, stack, child::waited_for | CLONE_NEWUSER, &pid, &pidfd);
  if (error != 0) return -error;
  ProcessFiles files(static_cast<int>(pid));
  long result = write_text(files.path(maps[0]), step.a[0]);
  if (result >= 0) result = write_text(files.path(maps[1]), step.a[1]);
  if (result >= 0) result = files.open("/ns/user");
  child::reap(pidfd);
  return result;
}

// userns_by(holder, program for the uid map, program for the gid map), each program with its arguments: makes a user
// namespace and returns its descriptor. The programs write its maps, since they may do what this process may not. They
// get the holder's process id as their first argument. EPERM: a program has left no map; the failure then has what it
// printed, or an empty line.
long Execution::make_user_namespace_by_programs(const Step& step) {
  Holder holder(Text(*this, step.a[0]));
  if (holder.error() != 0) return -holder.error();
  ProcessFiles files(holder.pid());
  for (int i = 0; i < 2; i++) {
    Text words(*this, step.a[i + 1]);
    Program program(words, words.size(), files.pid());
    int error = program.run();
    long map = files.open(maps[i]);
    if (map < 0) return holder.checked(map);
    char first;
    const bool is_written = sys::read(static_cast<int>(map), &first, 1) == 1;
    sys::close(static_cast<int>(map));
    if (is_written) continue;
    if (holder.checked(-EPERM) != -EPERM) return -ECHILD;
    failure_.log.emplace_back(program.text(), program.text_size());
    return error != 0 ? -error : -EPERM;
  }
  return holder.checked(files.open("/ns/user"));
}

// userns_own(holder, uid map, gid map): makes a user namespace that maps one uid and one gid, the process's own, and
// returns its descriptor.
long Execution::make_own_user_namespace(const Step& step) {
  Holder holder(Text(*this, step.a[0]));
  if (holder.error() != 0) return -holder.error();
  ProcessFiles files(holder.pid());
  // Otherwise the kernel refuses the group map.
  constexpr char deny[] = "deny";
  long result = write_whole(files.path("/setgroups"), deny, strlen(deny));
  if (result >= 0) result = write_text(files.path(maps[0]), step.a[1]);
  if (result >= 0) result = write_text(files.path(maps[1]), step.a[2]);
  return holder.checked(result < 0 ? result : files.open("/ns/user"));
}

}  // namespace overlayfs
