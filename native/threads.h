// The threads that perform asynchronous operations: one set per process, shared by all environments. Threads start on
// demand, park when there is nothing to do, and end when they stay idle. Libuv's pool is no alternative: an unmount
// waits until a file system is synced, and four unmounts would stop every fs, dns and crypto call of the program.
//
// The thread that submits a task makes the new thread, which therefore starts in its mount namespace, root and working
// directory. A task goes only to threads that see the same tree as its submitter.
//
// Threads wait by futex: an unversioned pthread_cond_* binds to the wrong symbol on glibc, and this addon links against
// no library by name.
#pragma once

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

#include "syscalls.h"

namespace overlayfs {

// A word to sleep on until another thread has changed it.
class Signal {
 public:
  uint32_t value() const { return __atomic_load_n(&word_, __ATOMIC_ACQUIRE); }
  void raise() {
    change();
    wake();
  }
  void change() { __atomic_add_fetch(&word_, 1, __ATOMIC_RELEASE); }
  // Touches no memory, since the word may be gone by then. Any other waiter at its address looks again.
  void wake() { ::syscall(abi::futex, &word_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }
  // Returns true when the word is no longer `seen`, false if it does not change in time.
  bool wait(uint32_t seen, long milliseconds) {
    timespec left{milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (value() == seen) {
      if (::syscall(abi::futex, &word_, FUTEX_WAIT_PRIVATE, seen, &left, nullptr, 0) != 0 &&
          errno == ETIMEDOUT) {
        return value() != seen;
      }
    }
    return true;
  }

 private:
  uint32_t word_ = 0;
};

class Lock {
 public:
  explicit Lock(pthread_mutex_t& mutex) : mutex_(mutex) { pthread_mutex_lock(&mutex_); }
  ~Lock() { pthread_mutex_unlock(&mutex_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  pthread_mutex_t& mutex_;
};

// Starts a detached thread. Returns 0 or the errno. The thread blocks all signals, so that the program's own threads
// get them.
inline int start_thread(void* (*main)(void*), void* data) {
  sigset_t everything, before;
  sigfillset(&everything);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, 512 * 1024);
  pthread_sigmask(SIG_SETMASK, &everything, &before);
  pthread_t id;
  int error = pthread_create(&id, &attributes, main, data);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  return error;
}

// The root directory of a thread. A mount belongs to one namespace, so its id identifies the namespace too, as long as
// a thread is in there.
struct Root {
  uint64_t mount = 0;
  uint64_t device = 0;
  uint64_t inode = 0;

  bool operator==(const Root&) const = default;

  static Root of_this_thread() {
    abi::Statx found;
    if (sys::statx(AT_FDCWD, "/", 0, abi::statx_ino | abi::statx_mnt_id, &found) < 0) return {};
    return {found.mnt_id, static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor, found.ino};
  }
};

// A piece of work for a thread.
class Task {
 public:
  virtual void run() = 0;
  // Notifies the submitter. The thread is free again by then, so a task that is submitted in answer finds it awake. The
  // task may delete itself here.
  virtual void announce() = 0;

 protected:
  ~Task() = default;

 private:
  friend class Threads;
  Task* next_ = nullptr;
  Root root_;
};

class Threads {
 public:
  // The limit on threads, not counting those that have been in one call for long. A file system that does not answer
  // holds these for as long as it likes, and the others have to go on.
  static constexpr int most = 16;
  // The limit on all threads. When as many calls do not return, the next one waits.
  static constexpr int most_with_stuck = 128;
  // A call that takes longer than one to two of these counts as stuck.
  static constexpr long stuck_milliseconds = 500;
  static constexpr long idle_milliseconds = 2000;

  // Returns 0, or the errno with which no thread could be made for the task; the task is then the caller's again.
  int submit(Task* task) {
    task->next_ = nullptr;
    task->root_ = Root::of_this_thread();
    Signal* woken = nullptr;
    int error = hand_over(task, &woken);
    // Wakes after the lock is released: the thread may run at once, and need it.
    if (woken != nullptr) woken->wake();
    return error;
  }

  // Returns true if the task was still waiting; it will then never run.
  bool withdraw(Task* task) {
    Lock lock(mutex_);
    for (Task** at = &queue_; *at != nullptr; at = &(*at)->next_) {
      if (*at != task) continue;
      dequeue(at);
      return true;
    }
    return false;
  }

 private:
  struct Thread {
    Threads* threads;
    Thread* next;      // among the parked
    Thread* next_all;  // among all
    Root root;
    Task* task;
    Signal woken;
    bool is_busy = true;
    bool was_busy = false;  // with the same task when the watcher last looked
    bool is_stuck = false;
  };

  // Looks at the threads that serve one root, while tasks wait for them.
  struct Watcher {
    Threads* threads;
    Watcher* next;
    Root root;
  };

  // Gives the task to a parked thread, which the caller then wakes, or to a new one, or puts it into the queue.
  int hand_over(Task* task, Signal** woken) {
    Lock lock(mutex_);
    for (Thread** at = &parked_; *at != nullptr; at = &(*at)->next) {
      Thread* thread = *at;
      if (thread->root != task->root_) continue;
      *at = thread->next;
      thread->task = task;
      thread->is_busy = true;
      thread->woken.change();
      *woken = &thread->woken;
      return 0;
    }
    // A tree that no thread sees gets one, however many other threads there are: none of those may serve it.
    bool served = is_served(task->root_);
    if (may_start() || !served) {
      int error = start(task);
      if (error == 0 || !served) return error;
    }
    *queue_end_ = task;
    queue_end_ = &task->next_;
    watch(task->root_);
    return 0;
  }

  bool may_start() const { return count_ - stuck_ < most && count_ < most_with_stuck; }

  // With the lock held. If a watcher cannot be made now, the next task that waits tries again.
  void watch(const Root& root) {
    for (const Watcher* watcher = watchers_; watcher != nullptr; watcher = watcher->next) {
      if (watcher->root == root) return;
    }
    auto* watcher = new Watcher{this, watchers_, root};
    if (start_thread(&Threads::watcher_main, watcher) == 0) {
      watchers_ = watcher;
    } else {
      delete watcher;
    }
  }

  static void* watcher_main(void* data) {
    auto* watcher = static_cast<Watcher*>(data);
    prctl(PR_SET_NAME, "overlayfs");
    Signal never;
    do {
      never.wait(never.value(), stuck_milliseconds);
    } while (watcher->threads->relieve(watcher));
    delete watcher;
    return nullptr;
  }

  // Starts threads in place of those that are stuck. A new thread sees the same tree as the watcher, which was made by
  // the submitter of a task for that tree. Returns false when no task waits any more.
  bool relieve(Watcher* watcher) {
    Lock lock(mutex_);
    for (Thread* thread = all_; thread != nullptr; thread = thread->next_all) {
      if (thread->root != watcher->root || !thread->is_busy) continue;
      if (thread->was_busy && !thread->is_stuck) {
        thread->is_stuck = true;
        stuck_++;
      }
      thread->was_busy = true;
    }
    while (may_start()) {
      Task** at = find_queued(watcher->root);
      if (at == nullptr || start(*at) != 0) break;
      dequeue(at);
    }
    if (find_queued(watcher->root) != nullptr) return true;
    for (Watcher** at = &watchers_; *at != nullptr; at = &(*at)->next) {
      if (*at != watcher) continue;
      *at = watcher->next;
      break;
    }
    return false;
  }

  bool is_served(const Root& root) const {
    for (const Thread* thread = all_; thread != nullptr; thread = thread->next_all) {
      if (thread->root == root) return true;
    }
    return false;
  }

  // With the lock held.
  int start(Task* task) {
    auto* thread = new Thread{this, nullptr, all_, task->root_, task, {}};
    int error = start_thread(&Threads::main, thread);
    if (error != 0) {
      delete thread;
      return error;
    }
    all_ = thread;
    count_++;
    return 0;
  }

  static void* main(void* data) {
    auto* thread = static_cast<Thread*>(data);
    prctl(PR_SET_NAME, "overlayfs");
    thread->threads->serve(thread);
    delete thread;
    return nullptr;
  }

  void serve(Thread* thread) {
    for (;;) {
      Task* task = thread->task;
      task->run();

      uint32_t seen = thread->woken.value();
      bool is_parked;
      {
        Lock lock(mutex_);
        if (thread->is_stuck) stuck_--;
        thread->is_stuck = thread->was_busy = false;
        Task** queued = find_queued(thread->root);
        thread->task = queued == nullptr ? nullptr : dequeue(queued);
        is_parked = thread->task == nullptr;
        thread->is_busy = !is_parked;
        if (is_parked) {
          thread->next = parked_;
          parked_ = thread;
        }
      }
      task->announce();
      if (!is_parked || thread->woken.wait(seen, idle_milliseconds)) continue;
      {
        Lock lock(mutex_);
        if (thread->task != nullptr) continue;  // woken at the last moment
        forget(thread);
        return;
      }
    }
  }

  // Returns the first task that waits for a thread with this root.
  Task** find_queued(const Root& root) {
    for (Task** at = &queue_; *at != nullptr; at = &(*at)->next_) {
      if ((*at)->root_ == root) return at;
    }
    return nullptr;
  }

  Task* dequeue(Task** at) {
    Task* task = *at;
    *at = task->next_;
    if (queue_end_ == &task->next_) queue_end_ = at;
    return task;
  }

  void forget(Thread* thread) {
    for (Thread** at = &parked_; *at != nullptr; at = &(*at)->next) {
      if (*at != thread) continue;
      *at = thread->next;
      break;
    }
    for (Thread** at = &all_; *at != nullptr; at = &(*at)->next_all) {
      if (*at != thread) continue;
      *at = thread->next_all;
      break;
    }
    count_--;
  }

  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  Thread* parked_ = nullptr;  // the last one parked first: its stack is warm
  Thread* all_ = nullptr;
  Task* queue_ = nullptr;
  Task** queue_end_ = &queue_;
  Watcher* watchers_ = nullptr;
  int count_ = 0;
  int stuck_ = 0;
};

}  // namespace overlayfs
