// A second thread makes the calls: what any program has to do that does not block its loop. To the thread by futex and
// back by eventfd, on which the first one sleeps as an event loop does.
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "peer.h"

static struct call handed_over;
static void (*perform_handed)(struct call);
static uint32_t requests;
static int answers = -1;
static int loop = -1;

static void *serve_calls(void *unused) {
  (void)unused;
  for (uint32_t seen = 0;; seen++) {
    while (__atomic_load_n(&requests, __ATOMIC_ACQUIRE) == seen) {
      syscall(SYS_futex, &requests, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    }
    perform_handed(handed_over);
    uint64_t one = 1;
    if (write(answers, &one, sizeof one) != sizeof one) err(1, "eventfd");
  }
  return NULL;
}

static void start_thread(void) {
  if (loop >= 0) return;
  answers = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  loop = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN};
  if (answers < 0 || loop < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, answers, &event) != 0) err(1, "epoll");
  pthread_t thread;
  errno = pthread_create(&thread, NULL, serve_calls, NULL);
  if (errno != 0) err(1, "pthread_create");
}

static void hand_over(void (*perform)(struct call), struct call call) {
  start_thread();
  perform_handed = perform;
  handed_over = call;
  __atomic_add_fetch(&requests, 1, __ATOMIC_RELEASE);
  syscall(SYS_futex, &requests, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  struct epoll_event event;
  uint64_t count;
  while (epoll_wait(loop, &event, 1, -1) != 1 || read(answers, &count, sizeof count) != sizeof count) continue;
}

void hand_over_bare(struct call call) { hand_over(perform_bare, call); }
void hand_over_guarded(struct call call) { hand_over(perform_guarded, call); }
