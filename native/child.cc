#include "child.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "syscalls.h"

namespace overlayfs {

char* Stack::kept_ = nullptr;

Stack::Stack() : memory_(__atomic_exchange_n(&kept_, nullptr, __ATOMIC_ACQUIRE)) {
  if (memory_ != nullptr) return;
  constexpr int access = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK;
  long made = sys::call(abi::mmap, nullptr, size, access, kind, -1, 0L);
  if (made < 0 && made > -4096) {
    error_ = static_cast<int>(-made);
  } else {
    memory_ = reinterpret_cast<char*>(made);
  }
}

Stack::~Stack() {
  char* other = __atomic_exchange_n(&kept_, memory_, __ATOMIC_RELEASE);
  if (other != nullptr) sys::call(abi::munmap, other, size);
}

int child::make(int (*main)(void*), void* data, const Stack& stack, int flags, long* pid, int* pidfd) {
  const uint64_t everything = ~UINT64_C(0);
  uint64_t before;
  sys::call(abi::rt_sigprocmask, SIG_SETMASK, &everything, &before, sizeof before);
  *pid = ::clone(main, stack.top(), abi::clone_pidfd | flags, data, pidfd);
  int error = *pid < 0 ? errno : 0;
  sys::call(abi::rt_sigprocmask, SIG_SETMASK, &before, nullptr, sizeof before);
  return error;
}

int child::execute(const char* const* words) {
  // This process's handlers come first: one of them would run in this process's memory.
  constexpr uint64_t default_action[4] = {}, none = 0;
  for (int signal = 1; signal < NSIG; signal++) {
    sys::call(abi::rt_sigaction, signal, default_action, nullptr, sizeof none);
  }
  sys::call(abi::rt_sigprocmask, SIG_SETMASK, &none, nullptr, sizeof none);
  constexpr char* no_environment[] = {nullptr};
  return static_cast<int>(-sys::call(abi::execve, words[0], words, no_environment));
}

void child::reap(int pidfd) {
  sys::call(abi::waitid, abi::p_pidfd, pidfd, nullptr, WEXITED | __WALL, nullptr);
  sys::close(pidfd);
}

}  // namespace overlayfs
