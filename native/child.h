// Child processes that do what no thread of a process with several threads can do.
//
// A child shares the memory of this process, so it must take no memory from malloc and no lock that it cannot give
// back. Its signals are blocked, so that it runs none of the program's handlers. It has no exit signal: the kernel
// sends no SIGCHLD, and only this code reaps it.
#pragma once

#include <sched.h>
#include <stddef.h>

namespace overlayfs {

// The stack of a child. One is kept for reuse; a second user at the same time makes another.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // 0, or the errno with which no stack could be made.
  int error() const { return error_; }
  char* top() const { return memory_ + size; }

 private:
  static constexpr size_t size = 64 * 1024;
  static char* kept_;

  char* memory_;
  int error_ = 0;
};

namespace child {

// The calling thread waits in the kernel until the child ends or executes another program.
constexpr int waited_for = CLONE_VM | CLONE_VFORK;

// Returns 0, or the errno with which no child could be made.
int make(int (*main)(void*), void* data, const Stack& stack, int flags, long* pid, int* pidfd);

// In a child: executes a program without environment, with the signals that a program expects: none is blocked or
// ignored. Returns the errno if it cannot.
int execute(const char* const* words);

// Waits for the end of the child and closes its descriptor.
void reap(int pidfd);

}  // namespace child

}  // namespace overlayfs
