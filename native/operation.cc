#include "operation.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "poller.h"

namespace overlayfs {

namespace {

// Never destroyed: their threads may outlive every environment (the addon is linked with -z nodelete).
Threads threads;
Poller poller;

// Returns true if the task was still waiting; it will then never run.
bool withdraw(Task* task) { return threads.withdraw(task) || poller.withdraw(task); }

napi_value string_value(napi_env env, const std::string& text) {
  // The kernel quotes paths, which are bytes. So this is a Buffer, which the code that shows it decodes.
  napi_value value = nullptr;
  napi_create_buffer_copy(env, text.size(), text.data(), nullptr, &value);
  return value;
}

napi_value failure_value(napi_env env, const Failure& failure, bool cancelled) {
  napi_value value, field;
  napi_create_object(env, &value);
  napi_create_int32(env, failure.step, &field);
  napi_set_named_property(env, value, "step", field);
  napi_create_int32(env, failure.error, &field);
  napi_set_named_property(env, value, "errno", field);
  napi_create_int32(env, failure.guard, &field);
  napi_set_named_property(env, value, "guard", field);
  napi_create_int32(env, failure.undo_error, &field);
  napi_set_named_property(env, value, "undoErrno", field);
  napi_get_boolean(env, cancelled, &field);
  napi_set_named_property(env, value, "cancelled", field);
  napi_value log;
  napi_create_array_with_length(env, failure.log.size(), &log);
  for (size_t i = 0; i < failure.log.size(); i++) {
    napi_set_element(env, log, static_cast<uint32_t>(i), string_value(env, failure.log[i]));
  }
  napi_set_named_property(env, value, "log", log);
  return value;
}

// Returns an ArrayBuffer of the outputs and the data. Its size is a multiple of 4 bytes, so that it can be read as
// numbers of 32 bits.
napi_value buffer_value(napi_env env, const uint8_t* outputs, size_t outputs_size, const std::vector<uint8_t>& found) {
  napi_value value = nullptr;
  void* memory = nullptr;
  napi_create_arraybuffer(env, (outputs_size + found.size() + 3) & ~size_t{3}, &memory, &value);
  if (memory == nullptr) return value;
  if (outputs_size != 0) memcpy(memory, outputs, outputs_size);
  if (!found.empty()) memcpy(static_cast<uint8_t*>(memory) + outputs_size, found.data(), found.size());
  return value;
}

// The memory of the buffers in an array. The caller keeps them until the plan is done.
std::vector<Lent> memory_of(napi_env env, napi_value buffers) {
  bool is_array = false;
  napi_is_array(env, buffers, &is_array);
  uint32_t count = 0;
  if (is_array) napi_get_array_length(env, buffers, &count);
  std::vector<Lent> memory;
  for (uint32_t i = 0; i < count; i++) {
    napi_value buffer;
    void* at = nullptr;
    size_t size = 0;
    napi_get_element(env, buffers, i, &buffer);
    napi_get_typedarray_info(env, buffer, nullptr, &size, &at, nullptr, nullptr);
    memory.push_back({static_cast<uint8_t*>(at), size});
  }
  return memory;
}

uint8_t* block_of(napi_env env, napi_value value) {
  void* data = nullptr;
  napi_get_typedarray_info(env, value, nullptr, nullptr, &data, nullptr, nullptr);
  return static_cast<uint8_t*>(data);
}

}  // namespace

class Operation final : public Task {
 public:
  Operation(Environment* environment, const uint8_t* block, size_t size, uint32_t token)
      : environment_(environment), block_(copy(block, size)), execution_(block_, &environment->steps_after_stop_), token_(token) {}
  ~Operation() { free(block_); }

  // Performs the plan on one of the addon's threads. Takes it back if the plan is done and the caller has given it up.
  void run() override {
    if (!performed_) {
      performed_ = true;
      succeeded_ = execution_.perform();
      if (succeeded_ && !is_unwanted()) execution_.release();
    }
    if (is_unwanted()) take_back();
  }

  // True if it succeeded and was given up since. An operation that cannot be taken back (an unmount) counts as done.
  bool is_unwanted() const { return succeeded_ && is_cancelled() && execution_.can_be_taken_back(); }

  void announce() override { environment_->finished(this); }

  void take_back() {
    execution_.take_back();
    succeeded_ = false;
  }

  void cancel() { __atomic_store_n(&cancelled_, true, __ATOMIC_RELEASE); }
  bool is_cancelled() const { return __atomic_load_n(&cancelled_, __ATOMIC_ACQUIRE); }

 private:
  friend class Environment;

  static uint8_t* copy(const uint8_t* block, size_t size) {
    void* own = malloc(size);
    if (own == nullptr) abort();
    return static_cast<uint8_t*>(memcpy(own, block, size));
  }

  Environment* environment_;
  uint8_t* block_;
  Execution execution_;
  uint32_t token_;
  napi_deferred deferred_ = nullptr;
  Operation* next_ = nullptr;           // among the environment's unsettled
  Operation* previous_ = nullptr;
  Operation* next_finished_ = nullptr;  // among its finished
  bool performed_ = false;
  bool succeeded_ = false;
  bool is_awaited_ = false;             // by the end of its environment
  bool is_borrowing_ = false;           // and because it uses the environment's memory
  bool cancelled_ = false;
};

Environment* Environment::of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return static_cast<Environment*>(data);
}

namespace {

constexpr size_t results_room = 64 * 1024;
// The counter of the places that have been read, rounded up to 8 bytes.
constexpr size_t results_start = 8;

}  // namespace

napi_status Environment::attach(napi_env env) {
  auto* self = new Environment(env);
  napi_value name, results;
  void* memory = nullptr;
  napi_create_string_utf8(env, "overlayfs", NAPI_AUTO_LENGTH, &name);
  napi_status status = napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr,
                                                       self, on_finished, &self->function_);
  // Referenced only while an operation is unsettled; otherwise no program would ever end.
  if (status == napi_ok) status = napi_unref_threadsafe_function(env, self->function_);
  if (status == napi_ok) status = napi_create_arraybuffer(env, results_room, &memory, &results);
  if (status == napi_ok) status = napi_create_reference(env, results, 1, &self->results_ref_);
  self->results_ = static_cast<uint8_t*>(memory);
  self->results_size_ = results_start;
  if (status == napi_ok) status = napi_set_instance_data(env, self, nullptr, nullptr);
  // Node runs cleanup hooks last in, first out. This one still needs the function, so it must run before the function's
  // own.
  if (status == napi_ok) status = napi_add_env_cleanup_hook(env, on_end, self);
  if (status == napi_ok) {
    remember(self);
  } else {
    // The worker is being terminated; no other code has seen this environment yet.
    if (self->function_ != nullptr) napi_release_threadsafe_function(self->function_, napi_tsfn_abort);
    self->unref();
  }
  return status;
}

napi_value Environment::results() const {
  napi_value value = nullptr;
  napi_get_reference_value(env_, results_ref_, &value);
  return value;
}

napi_value Environment::perform(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  size_t count = 2;
  napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr);
  Execution execution(block_of(env, arguments[0]));
  execution.lend(memory_of(env, arguments[1]));
  if (!execution.perform()) return failure_value(env, execution.failure(), false);
  execution.add_kept(of(env)->kept_);
  execution.commit();
  const std::vector<uint8_t>& found = execution.data();
  return found.empty() ? nullptr : buffer_value(env, nullptr, 0, found);
}

napi_value Environment::start(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  size_t count = 4;
  napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr);
  Environment* self = of(env);
  uint32_t size = 0, token = 0;
  napi_get_value_uint32(env, arguments[1], &size);
  napi_get_value_uint32(env, arguments[2], &token);

  if (self->unsettled_ == 0) napi_ref_threadsafe_function(env, self->function_);
  auto* operation = new Operation(self, block_of(env, arguments[0]), size, token);
  operation->execution_.lend(memory_of(env, arguments[3]));
  napi_value promise = nullptr;
  napi_create_promise(env, &operation->deferred_, &promise);
  operation->next_ = self->operations_;
  if (self->operations_ != nullptr) self->operations_->previous_ = operation;
  self->operations_ = operation;
  self->unsettled_++;
  __atomic_add_fetch(&self->references_, 1, __ATOMIC_RELAXED);

  int fd;
  uint32_t events;
  if (operation->execution_.waits_for(&fd, &events)) {
    int error = poller.submit(operation, fd, events);
    if (error == 0) return promise;
    operation->execution_.refuse(error);
    self->settle(operation, 0);
    return promise;
  }
  int error = threads.submit(operation);
  if (error != 0) self->settle(operation, error);
  return promise;
}

napi_value Environment::cancel(napi_env env, napi_callback_info info) {
  napi_value argument;
  size_t count = 1;
  napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr);
  Environment* self = of(env);
  uint32_t token = 0;
  napi_get_value_uint32(env, argument, &token);
  for (Operation* operation = self->operations_; operation != nullptr; operation = operation->next_) {
    if (operation->token_ != token) continue;
    // An operation that waits to be taken back goes on waiting.
    bool is_new = !operation->is_cancelled();
    operation->cancel();
    if (is_new && withdraw(operation)) self->settle(operation, 0);
    break;
  }
  return nullptr;
}

// Returns the descriptor in the argument, which the environment no longer closes at its end.
int Environment::take_kept(napi_env env, napi_callback_info info) {
  napi_value argument;
  size_t count = 1;
  napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr);
  int32_t descriptor = -1;
  napi_get_value_int32(env, argument, &descriptor);
  std::vector<int>& kept = of(env)->kept_;
  for (size_t i = 0; i < kept.size(); i++) {
    if (kept[i] != descriptor) continue;
    kept[i] = kept.back();
    kept.pop_back();
    break;
  }
  return descriptor;
}

napi_value Environment::disown(napi_env env, napi_callback_info info) {
  take_kept(env, info);
  return nullptr;
}

napi_value Environment::close(napi_env env, napi_callback_info info) {
  sys::close(take_kept(env, info));
  return nullptr;
}

// Runs on the thread that ran the operation.
void Environment::finished(Operation* operation) {
  __atomic_add_fetch(&ringing_, 1, __ATOMIC_SEQ_CST);
  bool has_ended = __atomic_load_n(&ended_, __ATOMIC_SEQ_CST);
  if (!has_ended) {
    // The thread that finds the list empty rings.
    Operation* last = __atomic_load_n(&finished_, __ATOMIC_RELAXED);
    do {
      operation->next_finished_ = last;
    } while (!__atomic_compare_exchange_n(&finished_, &last, operation, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    if (last == nullptr) napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking);
  }
  __atomic_sub_fetch(&ringing_, 1, __ATOMIC_SEQ_CST);
  if (!has_ended) return;
  // The environment has ended without it. Its effects are undone, unless it was cancelled in time.
  if (operation->succeeded_) operation->take_back();
  if (operation->is_awaited_) no_longer_awaited(*operation);
  delete operation;
  unref();
}

void Environment::no_longer_awaited(const Operation& operation) {
  if (operation.is_borrowing_) __atomic_sub_fetch(&borrowing_, 1, __ATOMIC_ACQ_REL);
  __atomic_sub_fetch(&to_await_, 1, __ATOMIC_ACQ_REL);
  awaited_.raise();
}

void Environment::on_finished(napi_env env, napi_value, void* context, void*) {
  if (env != nullptr) static_cast<Environment*>(context)->settle_finished();
}

// Returns them in the order in which they finished.
Operation* Environment::take_finished() {
  Operation* reversed = __atomic_exchange_n(&finished_, nullptr, __ATOMIC_ACQUIRE);
  Operation* list = nullptr;
  while (reversed != nullptr) {
    Operation* next = reversed->next_finished_;
    reversed->next_finished_ = list;
    list = reversed;
    reversed = next;
  }
  return list;
}

void Environment::settle_finished() {
  // The receivers of the last places have run since, unless other callbacks of the event loop threw.
  uint32_t taken = 0;
  memcpy(&taken, results_, sizeof taken);
  if (taken == results_told_) results_size_ = results_start;
  Operation* list = take_finished();
  while (list != nullptr) {
    Operation* operation = list;
    list = operation->next_finished_;
    operation->next_finished_ = nullptr;
    // Given up between its end and now. It goes back to a thread, since taking it back may take long.
    if (operation->is_unwanted()) {
      if (threads.submit(operation) == 0) continue;
      operation->take_back();
    }
    settle(operation, 0);
  }
}

napi_value Environment::outputs_value(const Execution& execution) {
  napi_value value = nullptr;
  size_t size = (execution.outputs_size() + 7) & ~size_t{7};
  if (size + execution.data().size() == 0) {
    napi_get_undefined(env_, &value);
  } else if (execution.data().empty() && results_size_ + size <= results_room) {
    memcpy(results_ + results_size_, execution.outputs(), execution.outputs_size());
    napi_create_uint32(env_, static_cast<uint32_t>(results_size_), &value);
    results_size_ += size;
    results_told_++;
  } else {
    value = buffer_value(env_, execution.outputs(), execution.outputs_size(), execution.data());
  }
  return value;
}

void Environment::settle(Operation* operation, int submit_error) {
  napi_handle_scope scope;
  napi_open_handle_scope(env_, &scope);
  napi_value value = nullptr;
  if (operation->succeeded_) {
    value = outputs_value(operation->execution_);
  } else {
    if (!operation->performed_) operation->execution_.close_given();
    Failure failure = operation->execution_.failure();
    if (submit_error != 0) failure.error = submit_error;
    value = failure_value(env_, failure, operation->is_cancelled());
  }
  bool is_kept = napi_resolve_deferred(env_, operation->deferred_, value) == napi_ok;
  if (operation->succeeded_) {
    // An environment that is being torn down takes no more results.
    if (is_kept) {
      operation->execution_.add_kept(kept_);
      operation->execution_.commit();
    } else {
      operation->take_back();
    }
  }
  napi_close_handle_scope(env_, scope);
  remove(operation);
  if (unsettled_ == 0) napi_unref_threadsafe_function(env_, function_);
}

void Environment::remove(Operation* operation) {
  if (operation->previous_ != nullptr) {
    operation->previous_->next_ = operation->next_;
  } else {
    operations_ = operation->next_;
  }
  if (operation->next_ != nullptr) operation->next_->previous_ = operation->previous_;
  unsettled_--;
  delete operation;
  unref();
}

void Environment::on_end(void* data) {
  auto* self = static_cast<Environment*>(data);
  forget(self);
  self->give_up(true);
  for (int descriptor : self->kept_) sys::close(descriptor);
  self->kept_.clear();
  napi_release_threadsafe_function(self->function_, napi_tsfn_abort);
  self->unref();
}

// The environment ends with operations under way. It drops those that wait and takes back those that have finished
// unseen. Threads take back those that run. The environment waits for these; otherwise the process could end between a
// mount and its undoing. It does not wait for a call that has done nothing yet: stop() keeps that call from beginning.
// A plan that uses memory of an environment whose memory is freed is waited for in any case, as Node waits for a read.
void Environment::give_up(bool frees_memory) {
  for (Operation* operation = operations_; operation != nullptr;) {
    Operation* next = operation->next_;
    if (withdraw(operation)) {
      if (operation->succeeded_) operation->take_back();  // it waited for a thread to do so
      if (!operation->performed_) operation->execution_.close_given();
      remove(operation);
    }
    operation = next;
  }
  for (Operation* operation = operations_; operation != nullptr; operation = operation->next_) {
    operation->cancel();
    const bool borrows = frees_memory && operation->execution_.borrows();
    if ((operation->execution_.stop() || !operation->execution_.can_be_taken_back()) && !borrows) continue;
    operation->is_awaited_ = true;
    operation->is_borrowing_ = borrows;
    if (borrows) __atomic_add_fetch(&borrowing_, 1, __ATOMIC_ACQ_REL);
    __atomic_add_fetch(&to_await_, 1, __ATOMIC_ACQ_REL);
  }
  __atomic_store_n(&ended_, true, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&ringing_, __ATOMIC_SEQ_CST) != 0) sched_yield();
  for (Operation* operation = take_finished(); operation != nullptr;) {
    Operation* next = operation->next_finished_;
    if (operation->succeeded_) operation->take_back();
    if (operation->is_awaited_) no_longer_awaited(*operation);
    delete operation;
    unref();
    operation = next;
  }
  // Waits until none of them has made progress for half a second: a file system that does not answer may hold them. The
  // slices are short, so that the half second begins with the last progress.
  constexpr long slice_milliseconds = 50;
  constexpr int patience_slices = 10;
  uint32_t steps = 0;
  for (int idle = 0; idle < patience_slices || __atomic_load_n(&borrowing_, __ATOMIC_ACQUIRE) != 0; idle++) {
    uint32_t seen = awaited_.value();
    if (__atomic_load_n(&to_await_, __ATOMIC_ACQUIRE) == 0) break;
    bool has_ended = awaited_.wait(seen, slice_milliseconds);
    uint32_t before = steps;
    steps = __atomic_load_n(&steps_after_stop_, __ATOMIC_RELAXED);
    if (has_ended || steps != before) idle = -1;
  }
}

namespace {

pthread_mutex_t live_mutex = PTHREAD_MUTEX_INITIALIZER;
Environment* live = nullptr;

}  // namespace

void Environment::remember(Environment* environment) {
  Lock lock(live_mutex);
  environment->next_live_ = live;
  live = environment;
}

void Environment::forget(Environment* environment) {
  Lock lock(live_mutex);
  for (Environment** at = &live; *at != nullptr; at = &(*at)->next_live_) {
    if (*at != environment) continue;
    *at = environment->next_live_;
    return;
  }
}

void Environment::give_up_all() {
  for (Environment* environment = live; environment != nullptr; environment = environment->next_live_) {
    environment->give_up(false);
  }
}

namespace {

// process.exit() runs no cleanup hooks on the main thread. The loader still runs this in exit(3).
__attribute__((destructor)) void at_exit() { Environment::give_up_all(); }

}  // namespace

void Environment::unref() {
  if (__atomic_sub_fetch(&references_, 1, __ATOMIC_ACQ_REL) == 0) delete this;
}

}  // namespace overlayfs
