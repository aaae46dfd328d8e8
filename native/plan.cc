#include "plan.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "syscalls.h"
#include "text.h"
#include "read_files.h"
#include "write.h"

namespace overlayfs {

namespace {

constexpr uint32_t descriptor_arguments[] = {
#define OVERLAYFS_CALL(name, descriptors) descriptors,
    OVERLAYFS_CALLS(OVERLAYFS_CALL)
#undef OVERLAYFS_CALL
};

size_t page_size() {
  static size_t size = 0;  // every thread that finds it out finds the same
  size_t known = __atomic_load_n(&size, __ATOMIC_RELAXED);
  if (known == 0) __atomic_store_n(&size, known = static_cast<size_t>(sysconf(_SC_PAGESIZE)), __ATOMIC_RELAXED);
  return known;
}

bool makes_descriptor(Call call) {
  return call == Call::openat2 || call == Call::fsopen || call == Call::fsmount || call == Call::open_tree ||
         call == Call::fspick || call == Call::fanotify_init || call == Call::open_by_handle_at || call == Call::userns ||
         call == Call::userns_by || call == Call::userns_own;
}

bool is_tolerated(const Step& step, long result) {
  if (result >= 0 || step.tolerated == 0) return false;
  if (step.tolerated == any_errno) return true;
  for (uint32_t errnos = step.tolerated; errnos != 0; errnos >>= 8) {
    if ((errnos & 0xff) == static_cast<uint32_t>(-result)) return true;
  }
  return false;
}

// The mounts of this process's namespace that are no news, for all its threads: those that plans have attached, and
// those that a table look-up has seen. The kernel gives an id when a mount is made, and a mount may be attached later
// than one with a higher id. So a search for news begins some ids below the highest known one.
class KnownMounts {
 public:
  void add(uint64_t id) { __atomic_store_n(&ids_[id % size], id, __ATOMIC_RELEASE); }
  bool has(uint64_t id) const { return __atomic_load_n(&ids_[id % size], __ATOMIC_ACQUIRE) == id; }
  // Ids above this one are compared. If all ids are known up to `newest`, the comparison starts `slack` below it.
  uint64_t start() const {
    uint64_t newest = __atomic_load_n(&newest_, __ATOMIC_ACQUIRE);
    // The kernel takes 0 or an id to begin behind, and ids begin above 2^31.
    return newest <= slack + (uint64_t{1} << 31) ? 0 : newest - slack;
  }
  void know_all_to(uint64_t id) {
    uint64_t before = __atomic_load_n(&newest_, __ATOMIC_ACQUIRE);
    while (before < id && !__atomic_compare_exchange_n(&newest_, &before, id, true, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    }
  }

 private:
  static constexpr uint64_t slack = 512;
  static constexpr uint64_t size = 2 * slack;  // so that two ids that are compared never share a place
  uint64_t ids_[size] = {};
  uint64_t newest_ = 0;
};

KnownMounts known_mounts;

// For kernels before listmount(2): reads the table, whose lines begin with a mount's id and its parent's id.
bool has_submounts_in_table(uint64_t id) {
  int table = static_cast<int>(sys::openat2(AT_FDCWD, "/proc/thread-self/mountinfo", O_RDONLY | O_CLOEXEC, 0, 0));
  if (table < 0) return false;
  char text[4096];
  int column = 0;  // columns are separated by spaces
  uint64_t number = 0;
  bool found = false;
  for (long size; !found && (size = sys::read(table, text, sizeof text)) > 0;) {
    for (long i = 0; i < size && !found; i++) {
      if (text[i] == '\n' || text[i] == ' ') {
        found = column == 1 && number == id;
        column = text[i] == '\n' ? 0 : column + 1;
        number = 0;
      } else if (column == 1) {
        number = number * 10 + static_cast<uint64_t>(text[i] - '0');
      }
    }
  }
  sys::close(table);
  return found;
}

bool has_submounts(int mount) {
  abi::Statx found;
  if (sys::statx(mount, "", AT_EMPTY_PATH, abi::statx_mnt_id_unique | abi::statx_mnt_id, &found) < 0) return false;
  if (!(found.mask & abi::statx_mnt_id_unique)) return has_submounts_in_table(found.mnt_id);
  abi::MountIdRequest request{abi::mount_id_request_6_8, 0, found.mnt_id, 0, 0};
  uint64_t first;
  return sys::listmount(&request, &first, 1) > 0;
}

}  // namespace

size_t write_decimal(char* to, int number) {
  char digits[12];
  size_t count = 0;
  unsigned rest = number < 0 ? 0U - static_cast<unsigned>(number) : static_cast<unsigned>(number);
  do {
    digits[count++] = static_cast<char>('0' + rest % 10);
    rest /= 10;
  } while (rest != 0);
  if (number < 0) digits[count++] = '-';
  for (size_t i = 0; i < count; i++) to[i] = digits[count - 1 - i];
  return count;
}

Execution::Execution(uint8_t* block, uint32_t* steps_after_stop)
    : block_(block), steps_(reinterpret_cast<Step*>(block + sizeof(Header))), steps_after_stop_(steps_after_stop) {}

int Execution::descriptor(int32_t argument) const {
  return argument >= made_by ? steps_[argument - made_by].result : argument;
}

bool Execution::perform() {
  prepare_reservation();
  if (header().flags & in_child) return perform_in_child();
  if (!(header().flags & own_thread)) return perform_here();
  bool succeeded = false;
  int error = run_on_own_thread(&Execution::perform_here, &succeeded);
  if (error != 0) failure_.error = error;
  return succeeded;
}

void Execution::take_back() {
  // The effects of a child in its own namespaces end with these.
  if (!has_joined_) return take_back_here();
  bool succeeded = false;
  int error = run_on_own_thread(&Execution::rejoin_and_take_back, &succeeded);
  if (error != 0) failure_.undo_error = error;
}

// Returns 0, or the errno with which no thread could be made.
int Execution::run_on_own_thread(bool (Execution::*method)(), bool* succeeded) {
  struct Errand {
    Execution* execution;
    bool (Execution::*method)();
    bool succeeded;
  } errand{this, method, false};
  auto run_errand = [](void* data) -> void* {
    auto* self = static_cast<Errand*>(data);
    self->succeeded = (self->execution->*self->method)();
    return nullptr;
  };
  pthread_t thread;
  int error = pthread_create(&thread, nullptr, run_errand, &errand);
  if (error != 0) return error;
  pthread_join(thread, nullptr);
  *succeeded = errand.succeeded;
  return 0;
}

bool Execution::rejoin_and_take_back() {
  for (int i = 0; i < done_; i++) {
    Step& step = steps_[i];
    if (step.call != Call::unshare && step.call != Call::setns) continue;
    long result = run(step);
    if (result >= 0) continue;
    failure_.undo_error = static_cast<int>(-result);
    return false;
  }
  take_back_here();
  return true;
}

namespace {

// The stack of a child. One is kept for reuse; a second user at the same time makes another.
class Stack {
 public:
  static constexpr size_t size = 64 * 1024;

  Stack() : memory_(__atomic_exchange_n(&kept_, nullptr, __ATOMIC_ACQUIRE)) {
    if (memory_ != nullptr) return;
    long made = sys::call(abi::mmap, nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK,
                          -1, 0L);
    if (made < 0 && made > -4096) {
      error_ = static_cast<int>(-made);
    } else {
      memory_ = reinterpret_cast<char*>(made);
    }
  }
  ~Stack() {
    char* other = __atomic_exchange_n(&kept_, memory_, __ATOMIC_RELEASE);
    if (other != nullptr) sys::call(abi::munmap, other, size);
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // 0, or the errno with which no stack could be made.
  int error() const { return error_; }
  char* top() const { return memory_ + size; }

 private:
  static char* kept_;
  char* memory_;
  int error_ = 0;
};

char* Stack::kept_ = nullptr;

// A child shares the memory of this process. Its signals are blocked, so that it runs none of the program's handlers.
// It has no exit signal, so that the kernel sends no SIGCHLD and only this code reaps it.
namespace child {

// The calling thread waits in the kernel until the child ends or executes another program.
constexpr int waited_for = CLONE_VM | CLONE_VFORK;

int make(int (*main)(void*), void* data, const Stack& stack, int flags, long* pid, int* pidfd) {
  const uint64_t everything = ~UINT64_C(0);
  uint64_t before;
  sys::call(abi::rt_sigprocmask, SIG_SETMASK, &everything, &before, sizeof before);
  *pid = ::clone(main, stack.top(), abi::clone_pidfd | flags, data, pidfd);
  int error = *pid < 0 ? errno : 0;
  sys::call(abi::rt_sigprocmask, SIG_SETMASK, &before, nullptr, sizeof before);
  return error;
}

void reap(int pidfd) {
  sys::call(abi::waitid, abi::p_pidfd, pidfd, nullptr, WEXITED | __WALL, nullptr);
  sys::close(pidfd);
}

}  // namespace child

long write_whole(const char* path, const char* text, size_t size) {
  int file = sys::openat2(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0, 0);
  if (file < 0) return file;
  long result = sys::call(abi::write, file, text, size);
  sys::close(file);
  return result;
}

}  // namespace

bool Execution::perform_in_child() {
  Stack stack;
  if (stack.error() != 0) {
    failure_.error = stack.error();
    return false;
  }
  page_size();  // asked for here, not in the child
  auto main = [](void* data) -> int {
    static_cast<Execution*>(data)->run_steps();
    return 0;
  };
  // The child is made with the namespaces that its first step would unshare.
  constexpr int namespaces = CLONE_NEWUSER | CLONE_NEWNS;
  const bool has_own = header().count > 0 && steps_[0].call == Call::unshare && (steps_[0].a[0] & ~namespaces) == 0;
  const int flags = child::waited_for | CLONE_FILES | (has_own ? steps_[0].a[0] : 0);
  if (has_own) done_ = 1;
  long pid;
  int pidfd;
  int error = child::make(main, this, stack, flags, &pid, &pidfd);
  if (error != 0) {
    // A lack of memory or a limit on processes is not the step's fault.
    if (has_own && error != EAGAIN && error != ENOMEM) failure_.step = 0;
    failure_.error = error;
    done_ = 0;
    return false;
  }
  child::reap(pidfd);
  if (!ran_) {  // killed
    if (reservation_ != nullptr) directories_in_use.recover(reservation_);
    failure_.step = done_;
    failure_.error = EINTR;
  }
  return failure_.step < 0 || fail();
}

bool Execution::perform_here() { return run_steps() || fail(); }

// Takes no memory, since it also runs in a child that shares memory with a waiting thread. Its only lock is that of the
// directories in use, which is recovered from a child that is killed.
bool Execution::run_steps() {
  for (; done_ < header().count; done_++) {
    Step& step = steps_[done_];
    if (step.flags & later) continue;
    count_step();
    bool is_stopped = is_stopped_before(step);
    long result = is_stopped ? -ECANCELED : run(step);
    step.result = static_cast<int32_t>(result);
    if (step.output != 0) memcpy(block_ + step.output, &step.result, sizeof step.result);
    if (result >= 0 || (!is_stopped && is_tolerated(step, result))) continue;
    failure_.step = done_;
    failure_.error = static_cast<int>(-result);
    break;
  }
  ran_ = true;
  return failure_.step < 0;
}

namespace {

constexpr uint32_t stopped = 1;
constexpr uint32_t effective = 2;  // a step that has to be taken back has begun

// Joining a namespace has no effect of its own that could be taken back.
bool joins_namespace(Call call) { return call == Call::unshare || call == Call::setns; }

}  // namespace

bool Execution::stop() { return !(__atomic_fetch_or(&progress_, stopped, __ATOMIC_SEQ_CST) & effective); }

// A `later` step takes back mount(2). Making a superblock leaves directories in its workdir.
bool Execution::is_stopped_before(const Step& step) {
  bool makes_superblock = step.call == Call::fsconfig && step.a[1] == abi::fsconfig_cmd_create;
  bool has_effect =
      ((step.flags & undo) && !joins_namespace(step.call)) || step.call == Call::mount || makes_superblock;
  if (!has_effect || (__atomic_load_n(&progress_, __ATOMIC_RELAXED) & effective)) return false;
  return __atomic_fetch_or(&progress_, effective, __ATOMIC_SEQ_CST) & stopped;
}

void Execution::count_step() {
  if (steps_after_stop_ == nullptr || !(__atomic_load_n(&progress_, __ATOMIC_RELAXED) & stopped)) return;
  __atomic_add_fetch(steps_after_stop_, 1, __ATOMIC_RELAXED);
}

bool Execution::fail() {
  const Step& step = steps_[failure_.step];
  if (step.call == Call::fsconfig || step.call == Call::fsmount) read_log(descriptor(step.a[0]));
  take_back_here();
  return false;
}

void Execution::take_back_here() {
  int count = done_;
  while (done_ > 0) {
    Step& step = steps_[--done_];
    long result = 0;
    count_step();
    if (step.flags & later) {
      result = run(step);
      if (is_tolerated(step, result)) result = 0;
    } else if ((step.flags & undo) && step.result >= 0) {
      result = revert(step);
    }
    if (result < 0 && failure_.undo_error == 0) failure_.undo_error = static_cast<int>(-result);
  }
  // Descriptors are closed last, since taking back a step may need one that a later step made.
  while (count > 0) close_result(steps_[--count]);
  end_reservation();
}

bool Execution::waits_for(int* fd, uint32_t* events) const {
  if (header().count == 0 || steps_[0].call != Call::wait_for) return false;
  *fd = steps_[0].a[0];
  *events = static_cast<uint32_t>(steps_[0].a[1]);
  return true;
}

void Execution::refuse(int error) {
  failure_.step = 0;
  failure_.error = error;
}

bool Execution::can_be_taken_back() const {
  for (int i = 0; i < header().count; i++) {
    const Step& step = steps_[i];
    // Closing the descriptor of a detached mount takes it back.
    if ((step.flags & (undo | later | keep)) && !joins_namespace(step.call)) return true;
  }
  return false;
}

void Execution::release() {
  for (int i = 0; i < done_; i++) {
    Step& step = steps_[i];
    if (!makes_descriptor(step.call) || step.result < 0 || (step.flags & keep)) continue;
    bool needed = false;
    for (int j = 0; j < done_ && !needed; j++) {
      if (!(steps_[j].flags & (undo | later))) continue;
      uint32_t mask = descriptor_arguments[static_cast<int>(steps_[j].call)];
      for (int k = 0; mask != 0 && !needed; k++, mask >>= 1) {
        needed = (mask & 1) && steps_[j].a[k] == (made_by | i);
      }
    }
    if (!needed) close_result(step);
  }
}

void Execution::commit() {
  for (int i = 0; i < done_; i++) {
    if (!(steps_[i].flags & keep)) close_result(steps_[i]);
  }
  end_reservation();
}

void Execution::add_kept(std::vector<int>& to) const {
  for (int i = 0; i < done_; i++) {
    if (makes_descriptor(steps_[i].call) && (steps_[i].flags & keep) && steps_[i].result >= 0) {
      to.push_back(steps_[i].result);
    }
  }
}

void Execution::abandon() {
  for (int i = 0; i < header().count; i++) {
    if (steps_[i].call == Call::close && steps_[i].a[0] < made_by) sys::close(steps_[i].a[0]);
  }
}

void Execution::close_result(Step& step) {
  if (!makes_descriptor(step.call) || step.result < 0) return;
  sys::close(step.result);
  step.result = -EBADF;
}

// The kernel returns one message a read and drops what does not fit.
void Execution::read_log(int context) {
  char message[8192];
  for (;;) {
    long size = sys::read(context, message, sizeof message);
    if (size <= 0) return;
    if (message[size - 1] == '\n') size--;
    failure_.log.emplace_back(message, static_cast<size_t>(size));
  }
}

long Execution::run(Step& step) {
  const int32_t* a = step.a;
  auto fd = [&](int i) { return descriptor(a[i]); };
  auto unsigned_at = [&](int i) { return static_cast<uint32_t>(a[i]); };
  switch (step.call) {
    case Call::openat2:
      return sys::openat2(fd(0), Text(*this, a[1]), unsigned_at(2), 0, unsigned_at(3));
    case Call::close: {
      Step* maker = a[0] >= made_by ? &steps_[a[0] - made_by] : nullptr;
      if (maker != nullptr) {
        close_result(*maker);
      } else {
        sys::close(a[0]);
      }
      return 0;
    }
    case Call::read:
      return sys::read(fd(0), block_ + step.output + 8, static_cast<size_t>(a[1]));
    case Call::fsopen:
      return sys::fsopen(Text(*this, a[0]), unsigned_at(1));
    case Call::fsconfig:
      return sys::fsconfig(fd(0), unsigned_at(1), Text(*this, a[2]), Text(*this, a[3]), fd(4));
    case Call::fsmount:
      return sys::fsmount(fd(0), unsigned_at(1), unsigned_at(2));
    case Call::fspick:
      return sys::call(abi::fspick, fd(0), static_cast<const char*>(Text(*this, a[1])), unsigned_at(2));
    case Call::fstatfs: {
      abi::Statfs found;
      long result = sys::fstatfs(fd(0), &found);
      return check_statfs(step, result, found);
    }
    case Call::statfs: {
      abi::Statfs found;
      long result = sys::statfs(Text(*this, a[0]), &found);
      return check_statfs(step, result, found);
    }
    case Call::statx:
      return check_statx(step);
    case Call::mount_setattr:
      return sys::mount_setattr(fd(0), Text(*this, a[1]), unsigned_at(2),
                                {unsigned_at(3), unsigned_at(4), unsigned_at(5),
                                 static_cast<uint64_t>(fd(6))});
    case Call::open_tree:
      return sys::open_tree(fd(0), Text(*this, a[1]), unsigned_at(2));
    case Call::move_mount:
      remember_mount(step);
      return sys::move_mount(fd(0), Text(*this, a[1]), fd(2), Text(*this, a[3]), unsigned_at(4));
    case Call::mount: {
      Text data(*this, a[4]);
      // The kernel would cut off what exceeds a page, and use the rest.
      if (data.size() >= page_size()) return -E2BIG;
      return sys::mount(Text(*this, a[0]), Text(*this, a[1]), Text(*this, a[2]), unsigned_at(3),
                        static_cast<const char*>(data));
    }
    case Call::umount2:
      return sys::umount2(Text(*this, a[0]), a[1]);
    case Call::mkdirat:
      return sys::mkdirat(fd(0), Text(*this, a[1]), unsigned_at(2));
    case Call::mknodat:
      return sys::mknodat(fd(0), Text(*this, a[1]), unsigned_at(2), unsigned_at(3));
    case Call::linkat:
      return sys::linkat(fd(0), Text(*this, a[1]), fd(2), Text(*this, a[3]), a[4]);
    case Call::unlinkat:
      // unlinkat(dirfd, path, flags, the step that must have made something)
      if (a[3] >= made_by && steps_[a[3] - made_by].result < 0) return 0;
      return sys::unlinkat(fd(0), Text(*this, a[1]), a[2]);
    case Call::renameat2:
      return sys::renameat2(fd(0), Text(*this, a[1]), fd(2), Text(*this, a[3]), unsigned_at(4));
    case Call::setxattr: {
      Text value(*this, a[2]);
      return sys::setxattr(Text(*this, a[0]), Text(*this, a[1]), static_cast<const char*>(value),
                           value.size(), a[3]);
    }
    // Into the output, as far as there is room.
    case Call::getxattr:
      return sys::getxattr(Text(*this, a[0]), Text(*this, a[1]), block_ + step.output + 8, unsigned_at(2));
    case Call::lgetxattr:
      return sys::lgetxattr(Text(*this, a[0]), Text(*this, a[1]), block_ + step.output + 8, unsigned_at(2));
    case Call::readlinkat:
      return sys::readlinkat(fd(0), Text(*this, a[1]), block_ + step.output + 8, unsigned_at(2));
    case Call::faccessat2:
      return sys::faccessat2(fd(0), Text(*this, a[1]), a[2], a[3]);
    case Call::name_to_handle_at:
      return get_handle(step);
    case Call::open_by_handle_at:
      return open_handle(step);
    case Call::reserve:
      return reserve(step);
    case Call::reserve_target:
      return reserve_target(step);
    case Call::record:
      return record(step);
    case Call::sees:
      return see_use(step);
    case Call::use_of:
      return ask_use(step);
    case Call::forget:
      return forget_use(step);
    case Call::news:
      return check_news(step);
    case Call::seen:
      return see_mounts(step);
    case Call::whiteout:
      return make_whiteout(fd(0), Text(*this, a[1]));
    case Call::replace:
      return replace_with_whiteout(fd(0), Text(*this, a[1]), Text(*this, a[2]), a[3] != 0);
    // remove(dirfd, path, only what the kernel makes, limit, room for a path, whether directories in use are spared);
    // output: the path of what could not be
    // removed
    case Call::remove:
      return remove_tree(fd(0), Text(*this, a[1]),
                         {.opens_up = true,
                          .only_kernels = a[2] != 0,
                          .spares_used = a[5] != 0,
                          .asker = reservation_,
                          .limit = unsigned_at(3),
                          .path = reinterpret_cast<char*>(block_) + step.output + 8,
                          .room = static_cast<size_t>(a[4])});
    case Call::scan:
      return scan(step);
    case Call::write_tree:
      return write_tree(step);
    case Call::unshare:
      return sys::call(abi::unshare, unsigned_at(0));
    case Call::setns: {
      long result = sys::call(abi::setns, fd(0), a[1]);
      if (result >= 0 && (header().flags & own_thread) && !(header().flags & in_child)) has_joined_ = true;
      return result;
    }
    case Call::write:
      return write_file(step);
    case Call::userns:
      return make_user_namespace(step);
    case Call::userns_by:
      return make_user_namespace_by_programs(step);
    case Call::userns_own:
      return make_own_user_namespace(step);
    case Call::chdir:
      return sys::call(abi::chdir, static_cast<const char*>(Text(*this, a[0])));
    case Call::flock:
      return sys::call(abi::flock, fd(0), a[1]);
    case Call::fanotify_init:
      return sys::call(abi::fanotify_init, unsigned_at(0), unsigned_at(1));
    case Call::listmount:
      return list_mounts(step);
    case Call::statmount:
      return get_mount(step);
    // Only asks whether the call exists: without arguments it fails.
    case Call::open_tree_attr:
      return sys::call(abi::open_tree_attr, -1, nullptr, 0U, nullptr, 0L);
    case Call::fanotify_mark:
      return sys::call(abi::fanotify_mark, fd(0), unsigned_at(1), static_cast<uint64_t>(unsigned_at(2)), fd(3), nullptr);
    case Call::read_file:
      return read_file(step);
    case Call::walk:
      return walk(step);
    case Call::examine:
      return examine(step);
    case Call::compare:
      return compare(step);
    case Call::read_files:
      return read_files(step);
    case Call::mount_ids:
      return read_mount_ids(step);
    case Call::mount_table:
      return read_mount_table(step);
    case Call::mount_of:
      return read_mount_of(step);
    case Call::namespace_tables:
      return read_namespace_tables(step);
    // Done before the plan is performed (native/poller.h).
    case Call::wait_for:
      return 0;
  }
  return -ENOSYS;
}

namespace {

// Unmounts by way of the working directory, which must be the caller's own.
long unmount_from_inside(int root) {
  long result = sys::call(abi::fchdir, root);
  return result < 0 ? result : sys::call(abi::umount2, ".", abi::mnt_detach);
}

// Does the same in a child, which has a working directory of its own.
long unmount_in_child(int root) {
  struct Errand {
    int root;
    long result;
  } errand{root, -EINTR};
  Stack stack;
  if (stack.error() != 0) return -stack.error();
  auto main = [](void* data) -> int {
    auto* of = static_cast<Errand*>(data);
    of->result = unmount_from_inside(of->root);
    return 0;
  };
  long pid;
  int pidfd;
  int error = child::make(main, &errand, stack, child::waited_for | CLONE_FILES, &pid, &pidfd);
  if (error != 0) return -error;
  child::reap(pidfd);
  return errand.result;
}

}  // namespace

// Unmounts by a descriptor of the mount's root, which leads to where the mount is attached now, whatever has become of
// the path. Refuses if others have stacked a mount over it or mounted something inside: their mount would be removed
// with it, or in its stead.
long Execution::unmount_by_root(int root) const {
  if (has_submounts(root)) return -EBUSY;
  if (has_joined_) return unmount_from_inside(root);  // the other namespace may have no /proc, or that of another
  char path[32] = "/proc/self/fd/";
  size_t length = strlen(path);
  length += write_decimal(path + length, root);
  path[length] = '\0';
  long result = sys::umount2(path, abi::mnt_detach);
  return result == -ENOENT ? unmount_in_child(root) : result;  // no /proc
}

long Execution::revert(Step& step) {
  const int32_t* a = step.a;
  switch (step.call) {
    case Call::move_mount:
      return unmount_by_root(descriptor(a[0]));
    case Call::mount:
      // Without its root it can only be the last mount on the target.
      return a[5] >= made_by && descriptor(a[5]) >= 0 ? unmount_by_root(descriptor(a[5]))
                                   : sys::umount2(Text(*this, a[1]), abi::mnt_detach);
    case Call::unshare:
    case Call::setns:
      return 0;  // ends with its thread
    case Call::mkdirat:
      return is_left_to_others(step) ? 0 : sys::unlinkat(descriptor(a[0]), Text(*this, a[1]), AT_REMOVEDIR);
    case Call::mknodat:
    case Call::whiteout:
      return sys::unlinkat(descriptor(a[0]), Text(*this, a[1]), 0);
    case Call::linkat:
      return sys::unlinkat(descriptor(a[2]), Text(*this, a[3]), 0);
    case Call::renameat2:
      return sys::renameat2(descriptor(a[2]), Text(*this, a[3]), descriptor(a[0]), Text(*this, a[1]),
                            static_cast<uint32_t>(a[4]));
    default:
      return -EOPNOTSUPP;
  }
}

// statfs(path, refused f_flags, refused f_type, wanted f_type or 0), fstatfs(descriptor, …); output: f_type, f_flags,
// f_blocks, f_bavail, f_files, f_ffree. EROFS: it has a refused flag; EPERM: it is of the refused type; ESTALE: it is
// not of the wanted type.
long Execution::check_statfs(const Step& step, long result, const abi::Statfs& found) {
  if (result < 0) return result;
  if (step.output != 0) {
    int64_t report[] = {found.type,
                        found.flags,
                        static_cast<int64_t>(found.blocks),
                        static_cast<int64_t>(found.bavail),
                        static_cast<int64_t>(found.files),
                        static_cast<int64_t>(found.ffree)};
    memcpy(block_ + step.output + 8, report, sizeof report);
  }
  if (step.a[3] != 0 && found.type != static_cast<int64_t>(static_cast<uint32_t>(step.a[3]))) return -ESTALE;
  if (found.flags & static_cast<uint32_t>(step.a[1])) return -EROFS;
  return step.a[2] != 0 && found.type == static_cast<int64_t>(static_cast<uint32_t>(step.a[2])) ? -EPERM : 0;
}

// The places of the device and of the mount's id in the output of statx.
constexpr size_t device_at = 24;
constexpr size_t mount_id_at = 48;

// statx(dirfd, path, flags, mask, refused attributes, wanted mount id in two halves or 0, wanted S_IFMT or 0 or minus a
// refused one); output: see below. ENOTDIR: it is of another type; ELOOP: it is of the refused type; EBUSY: it has a
// refused attribute; ESTALE: it is on another mount; ENOENT: the step has no output, asks for the number of links, and
// finds none, so the file has been removed.
long Execution::check_statx(const Step& step) {
  const int32_t* a = step.a;
  abi::Statx found;
  long result = sys::statx(descriptor(a[0]), Text(*this, a[1]), a[2], static_cast<uint32_t>(a[3]), &found);
  if (result < 0) return result;
  if (step.output != 0) {
    uint64_t report[] = {found.mask,
                         found.mode,
                         found.ino,
                         static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor,
                         static_cast<uint64_t>(found.rdev_major) << 32 | found.rdev_minor,
                         found.size,
                         found.mnt_id,
                         found.attributes,
                         found.nlink};
    memcpy(block_ + step.output + 8, report, sizeof report);
  }
  int type = found.mode & S_IFMT;
  if (a[7] > 0 && type != a[7]) return -ENOTDIR;
  if (a[7] < 0 && type == -a[7]) return -ELOOP;
  if (found.attributes & static_cast<uint32_t>(a[4])) return -EBUSY;
  if (step.output == 0 && (a[3] & found.mask & abi::statx_nlink) && found.nlink == 0) return -ENOENT;
  uint64_t wanted = static_cast<uint64_t>(static_cast<uint32_t>(a[6])) << 32 | static_cast<uint32_t>(a[5]);
  return wanted != 0 && wanted != found.mnt_id ? -ESTALE : 0;
}

// scan(dirfd, path, mask, ids of 64 bits each, room for names); output: the names.
long Execution::scan(const Step& step) {
  Text ids(*this, step.a[3]);
  return names_on_mounts(descriptor(step.a[0]), Text(*this, step.a[1]), static_cast<uint32_t>(step.a[2]), ids,
                         ids.size(), reinterpret_cast<char*>(block_) + step.output + 8,
                         static_cast<size_t>(step.a[4]));
}

// write_tree(root, second root or -1, batch, staging directory or NULL, whether links are followed in the root); output:
// as WriteReport.
long Execution::write_tree(const Step& step) {
  Text batch(*this, step.a[2]), staging(*this, step.a[3]);
  // Neither a child nor a thread that has left the others shares its umask.
  const bool has_own_umask = (header().flags & in_child) != 0 ||
                             ((header().flags & own_thread) != 0 && sys::call(abi::unshare, CLONE_FS) >= 0);
  WriteReport report;
  const WriteOptions options{.root = descriptor(step.a[0]),
                             .second = descriptor(step.a[1]),
                             .staging = staging,
                             .in_root = step.a[4] != 0,
                             .has_own_umask = has_own_umask,
                             .stop = &progress_,
                             .stop_bit = stopped};
  long result = write_batch(batch, batch.size(), options, &report);
  memcpy(block_ + step.output + 8, &report, sizeof report);
  return result;
}

// read_files(batch); output: the place of the data, and the number of records that are done.
long Execution::read_files(const Step& step) {
  Text batch(*this, step.a[0]);
  uint8_t* to = add_data(step, room_for_files(batch, batch.size()));
  uint64_t done;
  long result = overlayfs::read_files(batch, batch.size(), to, &done);
  memcpy(block_ + step.output + 16, &done, sizeof done);
  return result;
}

// Makes room in the data for what a step has found, and writes its place to the step's output.
uint8_t* Execution::add_data(const Step& step, size_t size) {
  size_t offset = (data_.size() + 7) & ~size_t{7};
  data_.resize(offset + size);
  uint32_t place[] = {static_cast<uint32_t>(offset), static_cast<uint32_t>(size)};
  memcpy(block_ + step.output + 8, place, sizeof place);
  return data_.data() + offset;
}

// name_to_handle_at(dirfd, path, flags); output: the handle's type, its size, its bytes.
long Execution::get_handle(const Step& step) {
  abi::FileHandle handle{abi::max_handle_size, 0, {}};
  int mount_id;
  long result = sys::name_to_handle_at(descriptor(step.a[0]), Text(*this, step.a[1]), &handle, &mount_id, step.a[2]);
  if (result < 0) return result;
  uint8_t* to = block_ + step.output + 8;
  uint64_t head[] = {static_cast<uint32_t>(handle.type), handle.size};
  memcpy(to, head, sizeof head);
  memcpy(to + sizeof head, handle.bytes, handle.size);
  return 0;
}

// open_by_handle_at(a descriptor on its file system, type, bytes, flags)
long Execution::open_handle(const Step& step) {
  Text bytes(*this, step.a[2]);
  if (bytes.size() > abi::max_handle_size) return -EINVAL;
  abi::FileHandle handle{static_cast<uint32_t>(bytes.size()), step.a[1], {}};
  memcpy(handle.bytes, static_cast<const char*>(bytes), bytes.size());
  return sys::open_by_handle_at(descriptor(step.a[0]), &handle, step.a[3]);
}

// statmount(id in two halves, mask, room); output: struct statmount. Without arguments it fails.
long Execution::get_mount(const Step& step) {
  uint64_t id = static_cast<uint64_t>(static_cast<uint32_t>(step.a[1])) << 32 | static_cast<uint32_t>(step.a[0]);
  abi::MountIdRequest request{abi::mount_id_request_6_8, 0, id, static_cast<uint32_t>(step.a[2]), 0};
  auto* to = step.output == 0 ? nullptr : reinterpret_cast<abi::Statmount*>(block_ + step.output + 8);
  return sys::statmount(&request, to, static_cast<size_t>(step.a[3]));
}

// Adds the id that an earlier statx has found. This comes before the mount is attached: otherwise another thread could
// see the mount and not know it.
void Execution::remember_mount(const Step& attaching) {
  for (const Step* step = &attaching; step-- != steps_;) {
    if (step->call != Call::statx || step->a[0] != attaching.a[0] || step->output == 0) continue;
    uint64_t id;
    memcpy(&id, block_ + step->output + 8 + mount_id_at, sizeof id);
    known_mounts.add(id);
    return;
  }
}

namespace {

uint64_t whole(int32_t low, int32_t high) {
  return static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low);
}

long list_newer(uint64_t last, uint64_t* ids, size_t room) {
  abi::MountIdRequest request{abi::mount_id_request_6_8, 0, abi::listmount_root, last, 0};
  return sys::listmount(&request, ids, room);
}

// Returns 0, or minus the errno.
long find_key(int dirfd, const char* path, DirectoryKey* key) {
  abi::Statx found;
  long result = sys::statx(dirfd, path, AT_EMPTY_PATH | abi::at_statx_dont_sync, abi::statx_ino, &found);
  if (result < 0) return result;
  *key = {static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor, found.ino};
  return 0;
}

}  // namespace

// listmount(room, id in two halves): the ids of the namespace's mounts above this one, and above those that are known;
// output: the last id, then all of them, 0 for one that is known. The result is their number.
long Execution::list_mounts(const Step& step) {
  const uint64_t start = known_mounts.start(), after = whole(step.a[1], step.a[2]);
  auto* last = reinterpret_cast<uint64_t*>(block_ + step.output + 8);
  uint64_t* ids = last + 1;
  long count = list_newer(after > start ? after : start, ids, static_cast<size_t>(step.a[0]));
  if (count > 0) *last = ids[count - 1];
  for (long i = 0; i < count; i++) {
    if (known_mounts.has(ids[i])) ids[i] = 0;
  }
  return count;
}

// news(): ESTALE if the namespace has mounts that this process has neither looked up nor attached with its plans.
long Execution::check_news(const Step&) {
  constexpr long room = 256;
  uint64_t ids[room];
  uint64_t last = known_mounts.start();
  for (long count = room; count == room;) {
    count = list_newer(last, ids, room);
    if (count < 0) return count;
    for (long i = 0; i < count; i++) {
      if (!known_mounts.has(ids[i])) return -ESTALE;
    }
    if (count > 0) last = ids[count - 1];
  }
  known_mounts.know_all_to(last);
  return 0;
}

// seen(ids of 64 bits each): marks these mounts, and all below the last one, as looked up.
long Execution::see_mounts(const Step& step) {
  Text ids(*this, step.a[0]);
  uint64_t id = 0;
  for (size_t at = 0; at + sizeof id <= ids.size(); at += sizeof id) {
    memcpy(&id, static_cast<const char*>(ids) + at, sizeof id);
    if (id != 0) known_mounts.add(id);
  }
  known_mounts.know_all_to(id);
  return 0;
}

// Comes before a child is made, since the child shares this process's memory and takes none.
void Execution::prepare_reservation() {
  for (int i = 0; i < header().count && reservation_ == nullptr; i++) {
    const Call call = steps_[i].call;
    const bool is_in_child = (header().flags & in_child) != 0;
    if (call == Call::reserve || call == Call::reserve_target || (call == Call::remove && is_in_child)) {
      reservation_ = directories_in_use.prepare(is_in_child);
    }
  }
}

void Execution::end_reservation() {
  if (reservation_ == nullptr) return;
  directories_in_use.end(reservation_);
  reservation_ = nullptr;
}

// reserve(directory, role, against whom, the step that would have made it or 0): as InUse::reserve. Returns EBUSY also
// if nothing is known of the user; use_of() says which it is.
long Execution::reserve(const Step& step) {
  const int32_t* a = step.a;
  DirectoryKey key;
  long result = find_key(descriptor(a[0]), "", &key);
  if (result < 0) return result;
  const bool is_new = a[3] >= made_by && steps_[a[3] - made_by].result >= 0;
  const auto role = static_cast<Role>(a[1]);
  return directories_in_use.reserve(reservation_, key, role, static_cast<Against>(a[2]), is_new) == 0 ? 0 : -EBUSY;
}

// Returns whether another plan of this process now uses an upper or work directory that this plan made. Otherwise
// reserves it, so that no other plan uses it while it is removed.
bool Execution::is_left_to_others(const Step& making) {
  for (int i = 0; i < header().count; i++) {
    const Step& step = steps_[i];
    if (step.call != Call::reserve || step.a[2] == 0 || step.a[3] < made_by || &steps_[step.a[3] - made_by] != &making) {
      continue;
    }
    DirectoryKey key;
    if (find_key(descriptor(making.a[0]), Text(*this, making.a[1]), &key) < 0) return false;
    return directories_in_use.reserve(reservation_, key, static_cast<Role>(step.a[1]), Against::everybody, true) != 0;
  }
  return false;
}

// reserve_target(directory): as InUse::reserve_target, for a directory that is not a mount point. EEXIST: it is one.
long Execution::reserve_target(const Step& step) {
  for (;;) {
    const uint64_t ended = directories_in_use.ended_targets();
    abi::Statx found;
    const int flags = AT_EMPTY_PATH | abi::at_statx_dont_sync;
    long result = sys::statx(descriptor(step.a[0]), "", flags, abi::statx_ino | abi::statx_mnt_id, &found);
    if (result < 0) return result;
    if (found.attributes & abi::statx_attr_mount_root) return -EEXIST;
    // The key includes the mount, since one directory can be a target in several namespaces at once.
    const DirectoryKey key{found.mnt_id | UINT64_C(1) << 63, found.ino};
    int error = directories_in_use.reserve_target(reservation_, key, ended);
    if (error != EAGAIN) return -error;
  }
}

// record(root): the overlay whose directories this plan has reserved is mounted. An earlier statx of this descriptor
// has found its id and device.
long Execution::record(const Step& step) {
  for (const Step* look = &step; look-- != steps_;) {
    if (look->call != Call::statx || look->a[0] != step.a[0] || look->output == 0) continue;
    const uint8_t* report = block_ + look->output + 8;
    uint64_t id, device;
    memcpy(&id, report + mount_id_at, sizeof id);
    memcpy(&device, report + device_at, sizeof device);
    directories_in_use.is_mounted(reservation_, id, device, descriptor(step.a[0]));
    return 0;
  }
  return -EINVAL;
}

// sees(target, directory, role, id of the mount in two halves, its device in two halves): another program's overlay at
// this target uses the directory.
long Execution::see_use(const Step& step) {
  const int32_t* a = step.a;
  DirectoryKey key;
  long result = find_key(AT_FDCWD, Text(*this, a[1]), &key);
  if (result < 0) return result;
  const uint64_t mount = whole(a[3], a[4]);
  int root = sys::openat2(AT_FDCWD, Text(*this, a[0]), O_PATH | O_CLOEXEC, 0, 0);
  abi::Statx found{};
  const bool is_there = root >= 0 && sys::statx(root, "", AT_EMPTY_PATH, abi::statx_mnt_id_unique, &found) == 0 &&
                        found.mnt_id == mount;
  directories_in_use.sees(key, static_cast<Role>(a[2]), mount, whole(a[5], a[6]), is_there ? root : -1);
  if (root >= 0) sys::close(root);
  return 0;
}

// use_of(dirfd, path): as InUse::ask; output: the user.
long Execution::ask_use(const Step& step) {
  DirectoryKey key;
  long result = find_key(descriptor(step.a[0]), Text(*this, step.a[1]), &key);
  if (result < 0) return result;
  InUse::User user{};
  int error = directories_in_use.ask(key, &user);
  if (step.output != 0) memcpy(block_ + step.output + 8, &user, sizeof user);
  return -error;
}

// forget(dirfd, path, id of the mount in two halves, its device in two halves): as InUse::forget.
long Execution::forget_use(const Step& step) {
  DirectoryKey key;
  long result = find_key(descriptor(step.a[0]), Text(*this, step.a[1]), &key);
  if (result < 0) return result;
  directories_in_use.forget(key, whole(step.a[2], step.a[3]), whole(step.a[4], step.a[5]));
  return 0;
}

// write(path, value): opens an existing file, writes the value in one call, closes the file.
long Execution::write_file(const Step& step) {
  Text value(*this, step.a[1]);
  return write_whole(Text(*this, step.a[0]), value, value.size());
}

// userns(uid map, gid map): makes a user namespace and returns its descriptor. The namespace needs no process once it
// exists, but its maps are written through one. The child has ended by then, and is reaped last.
long Execution::make_user_namespace(const Step& step) {
  Stack stack;
  if (stack.error() != 0) return -stack.error();
  auto main = [](void*) -> int { return 0; };
  long pid;
  int pidfd;
  int error = child::make(main, nullptr, stack, child::waited_for | CLONE_NEWUSER, &pid, &pidfd);
  if (error != 0) return -error;
  char path[48] = "/proc/";
  size_t length = strlen(path);
  length += write_decimal(path + length, static_cast<int>(pid));
  long result = 0;
  constexpr const char* maps[] = {"/uid_map", "/gid_map"};
  for (int i = 0; i < 2 && result >= 0; i++) {
    memcpy(path + length, maps[i], sizeof "/uid_map");
    Text map(*this, step.a[i]);
    result = write_whole(path, map, map.size());
  }
  if (result >= 0) {
    memcpy(path + length, "/ns/user", sizeof "/ns/user");
    result = sys::openat2(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, 0);
  }
  child::reap(pidfd);
  return result;
}

namespace {

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

// The files of a process in /proc.
class ProcessFiles {
 public:
  explicit ProcessFiles(int pid) { end_ = start + write_decimal(path_ + start, pid); }

  // NAME begins with a slash; the path is valid until the next call.
  const char* path(const char* name) {
    memcpy(path_ + end_, name, strlen(name) + 1);
    return path_;
  }
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
      constexpr char* no_environment[] = {nullptr};
      const int standard[] = {self->null_, self->output_.input(), self->output_.input()};
      for (int fd = 0; fd < 3; fd++) sys::call(abi::dup3, standard[fd], fd, 0);
      self->start_error_ = static_cast<int>(-sys::call(abi::execve, self->words_[0], self->words_, no_environment));
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

// userns_by(holder, program for the uid map, program for the gid map), each program with its arguments: makes a user
// namespace and returns its descriptor. The programs write its maps, since they may do what this process may not. They
// get the holder's process id as their first argument. EPERM: a program has left no map; the failure then has what it
// printed, or an empty line.
long Execution::make_user_namespace_by_programs(const Step& step) {
  Holder holder(Text(*this, step.a[0]));
  if (holder.error() != 0) return -holder.error();
  ProcessFiles files(holder.pid());
  constexpr const char* maps[] = {"/uid_map", "/gid_map"};
  for (int i = 0; i < 2; i++) {
    Text words(*this, step.a[i + 1]);
    Program program(words, words.size(), files.pid());
    int error = program.run();
    long map = files.open(maps[i]);
    if (map < 0) return map;
    char first;
    const bool is_written = sys::read(static_cast<int>(map), &first, 1) == 1;
    sys::close(static_cast<int>(map));
    if (is_written) continue;
    failure_.log.emplace_back(program.text(), program.text_size());
    return error != 0 ? -error : -EPERM;
  }
  return files.open("/ns/user");
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
  constexpr const char* maps[] = {"/uid_map", "/gid_map"};
  for (int i = 0; i < 2 && result >= 0; i++) {
    Text map(*this, step.a[i + 1]);
    result = write_whole(files.path(maps[i]), map, map.size());
  }
  return result < 0 ? result : files.open("/ns/user");
}

}  // namespace overlayfs
