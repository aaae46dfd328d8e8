// Holds the plans that begin when a descriptor is ready. One thread waits for all of them in epoll(7). It is made when
// a plan waits, and ends when none has waited for a while.
#pragma once

#include "threads.h"

namespace overlayfs {

class Poller {
 public:
  // Runs the task once, when the descriptor has one of the events. Returns 0, or the errno with which that is
  // impossible; the task is then the caller's again.
  int submit(Task* task, int fd, uint32_t events) {
    Lock lock(mutex_);
    int error = is_running_ ? 0 : start();
    if (error != 0) return error;
    auto* waiting = new Waiting{task, ++last_id_, fd, waiting_};
    abi::EpollEvent event{events | abi::epoll_oneshot, waiting->id};
    long result = sys::call(abi::epoll_ctl, epoll_, abi::epoll_ctl_add, fd, &event);
    if (result < 0) {
      delete waiting;
      return static_cast<int>(-result);
    }
    waiting_ = waiting;
    return 0;
  }

  // Returns true if the task was still waiting; it will then never run.
  bool withdraw(Task* task) {
    Lock lock(mutex_);
    for (Waiting** at = &waiting_; *at != nullptr; at = &(*at)->next) {
      if ((*at)->task != task) continue;
      take(at);
      // While a task waits, the thread sleeps without a time limit. This tells it that none waits any more.
      uint64_t one = 1;
      if (waiting_ == nullptr) sys::call(abi::write, wake_, &one, sizeof one);
      return true;
    }
    return false;
  }

 private:
  static constexpr uint64_t wake_id = 0;

  struct Waiting {
    Task* task;
    uint64_t id;
    int fd;
    Waiting* next;
  };

  // With the lock held.
  int start() {
    epoll_ = static_cast<int>(sys::call(abi::epoll_create1, abi::epoll_cloexec));
    wake_ = static_cast<int>(sys::call(abi::eventfd2, 0U, abi::eventfd_cloexec));
    abi::EpollEvent event{abi::epoll_in, wake_id};
    long result = epoll_ < 0 ? epoll_ : wake_ < 0 ? wake_ : sys::call(abi::epoll_ctl, epoll_, abi::epoll_ctl_add, wake_, &event);
    int error = result < 0 ? static_cast<int>(-result) : start_thread(&Poller::main, this);
    is_running_ = error == 0;
    if (!is_running_) close();
    return error;
  }

  void close() {
    if (epoll_ >= 0) sys::close(epoll_);
    if (wake_ >= 0) sys::close(wake_);
    epoll_ = wake_ = -1;
    is_running_ = false;
  }

  static void* main(void* data) {
    prctl(PR_SET_NAME, "overlayfs");
    static_cast<Poller*>(data)->serve();
    return nullptr;
  }

  void serve() {
    for (;;) {
      bool is_idle;
      {
        Lock lock(mutex_);
        is_idle = waiting_ == nullptr;
      }
      abi::EpollEvent event;
      int milliseconds = is_idle ? static_cast<int>(Threads::idle_milliseconds) : -1;
      long count = sys::call(abi::epoll_pwait, epoll_, &event, 1, milliseconds, nullptr, 0UL);
      Task* task = nullptr;
      {
        Lock lock(mutex_);
        if (count == 1 && event.data == wake_id) {
          uint64_t told;
          sys::read(wake_, &told, sizeof told);
        } else if (count == 1) {
          task = take_by_id(event.data);
        } else if (waiting_ == nullptr) {
          close();
          return;
        }
      }
      if (task == nullptr) continue;
      task->run();
      task->announce();
    }
  }

  // Returns null if it has been withdrawn meanwhile.
  Task* take_by_id(uint64_t id) {
    for (Waiting** at = &waiting_; *at != nullptr; at = &(*at)->next) {
      if ((*at)->id == id) return take(at);
    }
    return nullptr;
  }

  Task* take(Waiting** at) {
    Waiting* waiting = *at;
    *at = waiting->next;
    sys::call(abi::epoll_ctl, epoll_, abi::epoll_ctl_del, waiting->fd, nullptr);
    Task* task = waiting->task;
    delete waiting;
    return task;
  }

  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  Waiting* waiting_ = nullptr;
  uint64_t last_id_ = wake_id;
  int epoll_ = -1;
  int wake_ = -1;  // an eventfd
  bool is_running_ = false;
};

}  // namespace overlayfs
