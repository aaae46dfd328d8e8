// Performs a plan: the order of its steps, what a failure undoes, and on which thread or in which process it runs.
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "child.h"
#include "plan.h"
#include "syscalls.h"

namespace overlayfs {

namespace {

constexpr uint32_t descriptors_of_calls[] = {
#define OVERLAYFS_CALL(name, descriptors) descriptors,
    OVERLAYFS_CALLS(OVERLAYFS_CALL)
#undef OVERLAYFS_CALL
};

// The second column of OVERLAYFS_CALLS.
uint32_t descriptors_of(const Step& step) { return descriptors_of_calls[static_cast<int>(step.call)]; }

bool has_made_descriptor(const Step& step) { return (descriptors_of(step) & makes_descriptor) && step.result >= 0; }

bool is_tolerated(const Step& step, long result) {
  if (result >= 0 || step.tolerated == 0) return false;
  if (step.tolerated == any_errno) return true;
  for (uint32_t errnos = step.tolerated; errnos != 0; errnos >>= 8) {
    if ((errnos & 0xff) == static_cast<uint32_t>(-result)) return true;
  }
  return false;
}

}  // namespace

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
  int error = run_on_own_thread(&Execution::perform_there, &succeeded);
  if (error != 0) failure_.error = error;
  if (succeeded) return true;
  has_joined_ = false;  // this thread has not
  take_back_here();
  return false;
}

void Execution::take_back() {
  performed_ = done_;
  if (has_joined_) {
    bool succeeded = false;
    int error = run_on_own_thread(&Execution::rejoin_and_undo, &succeeded);
    if (error != 0) failure_.undo_error = error;
    // The mount lives on, so the directories that earlier steps made are in use.
    if (!succeeded) done_ = 0;
    has_joined_ = false;
  }
  take_back_here();
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

// Performs the steps on a thread of their own. After a failure, undoes those after the last join of a namespace: the
// paths of the others mean directories in the namespace of the waiting thread.
bool Execution::perform_there() {
  if (run_steps()) return true;
  begin_failure();
  undo_steps(has_joined_);
  return false;
}

bool Execution::rejoin_and_undo() {
  for (int i = 0; i < done_; i++) {
    Step& step = steps_[i];
    if (step.call != Call::unshare && step.call != Call::setns) continue;
    long result = run(step);
    if (result >= 0) continue;
    failure_.undo_error = static_cast<int>(-result);
    return false;
  }
  undo_steps(true);
  return true;
}

bool Execution::perform_in_child() {
  Stack stack;
  if (stack.error() != 0) {
    failure_.error = stack.error();
    return false;
  }
  sys::page_size();  // asked for here, not in the child
  auto main = [](void* data) -> int {
    // The child is a process of its own, which a kill of this one does not reach.
    sys::call(abi::prctl, PR_SET_PDEATHSIG, SIGKILL);
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
    // It may have performed its last step.
    failure_.step = done_ < header().count ? done_ : header().count - 1;
    failure_.error = ECHILD;
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
    if (-result < first_guard) failure_.error = static_cast<int>(-result);
    else failure_.guard = static_cast<int>(-result - first_guard);
    break;
  }
  ran_ = true;
  return failure_.step < 0;
}

namespace {

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

void Execution::begin_failure() {
  const Step& step = steps_[failure_.step];
  if (step.call == Call::fsconfig || step.call == Call::fsmount) read_log(descriptor(step.a[0]));
  performed_ = done_;
}

bool Execution::fail() {
  begin_failure();
  take_back_here();
  return false;
}

// Goes back through the steps. `has_joined`: this thread has joined a namespace, and the steps before that are left.
void Execution::undo_steps(bool has_joined) {
  while (done_ > 0) {
    Step& step = steps_[done_ - 1];
    if (has_joined && step.call == Call::setns) return;
    done_--;
    long result = 0;
    count_step();
    if (step.flags & later) {
      result = run(step);
      if (is_tolerated(step, result)) result = 0;
    } else if ((step.flags & undo) && step.result >= 0) {
      result = revert(step);
    }
    if (result < 0 && failure_.undo_error == 0) failure_.undo_error = static_cast<int>(-result);
    // The mount lives on, so the directories that earlier steps made are in use.
    if (result < 0 && (step.call == Call::move_mount || step.call == Call::mount)) done_ = 0;
  }
}

void Execution::take_back_here() {
  undo_steps(false);
  // Descriptors are closed last, since taking back a step may need one that a later step made.
  while (performed_ > 0) close_result(steps_[--performed_]);
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
    if (!has_made_descriptor(step) || (step.flags & keep)) continue;
    bool needed = false;
    for (int j = 0; j < done_ && !needed; j++) {
      if (!(steps_[j].flags & (undo | later))) continue;
      uint32_t positions = descriptors_of(steps_[j]) & ~makes_descriptor;
      for (int k = 0; positions != 0 && !needed; k++, positions >>= 1) {
        needed = (positions & 1) && steps_[j].a[k] == (made_by | i);
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
    if (has_made_descriptor(steps_[i]) && (steps_[i].flags & keep)) to.push_back(steps_[i].result);
  }
}

void Execution::close_given() {
  for (int i = 0; i < header().count; i++) {
    if (steps_[i].call == Call::close && steps_[i].a[0] < made_by) sys::close(steps_[i].a[0]);
  }
}

void Execution::close_result(Step& step) {
  if (!has_made_descriptor(step)) return;
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

}  // namespace overlayfs
