// Performs a plan in one of two forms: on the caller's thread, which waits, or on one of the addon's threads, with a
// promise for the caller.
//
// A running operation that is given up (by an AbortSignal, or by an environment that ends) is undone. So an operation
// that succeeds keeps what taking it back needs until its promise is settled.
#pragma once

#include <napi.h>

#include "plan.h"
#include "threads.h"

namespace overlayfs {

class Operation;

// The addon's state for one JavaScript environment: the main one or a worker.
class Environment {
 public:
  static Environment* of(napi_env env);
  static napi_status attach(napi_env env);

  // perform(block, buffers): returns undefined, or the failure. `buffers` are lent to the plan; or undefined
  static napi_value perform(napi_env env, napi_callback_info info);
  // start(block, size, token, buffers): returns a promise of the outputs, or of the failure. The promise resolves to undefined
  // if there are no outputs, to an ArrayBuffer if they are large, and else to their place in `results`, which is valid
  // until the event loop goes on. The receiver of a place counts it in the first 32 bits of `results`
  static napi_value start(napi_env env, napi_callback_info info);
  // cancel(token): gives up the operation that was started with this token
  static napi_value cancel(napi_env env, napi_callback_info info);

  // disown(descriptor): forgets a kept descriptor that the caller is about to close
  static napi_value disown(napi_env env, napi_callback_info info);

  // close(descriptor): closes a descriptor, kept or not
  static napi_value close(napi_env env, napi_callback_info info);

  // The buffer of small outputs.
  napi_value results() const;

  // Gives up, at the end of the process, the operations of all environments that have not ended.
  static void give_up_all();

 private:
  friend class Operation;

  explicit Environment(napi_env env) : env_(env) {}
  void finished(Operation* operation);
  void no_longer_awaited(const Operation& operation);
  Operation* take_finished();
  void settle_finished();
  napi_value outputs_value(const Execution& execution);
  static int take_kept(napi_env env, napi_callback_info info);
  void settle(Operation* operation, int submit_error);
  void remove(Operation* operation);
  void give_up(bool frees_memory);
  void unref();

  static void remember(Environment* environment);
  static void forget(Environment* environment);

  static void on_finished(napi_env env, napi_value, void* context, void*);
  static void on_end(void* data);

  napi_env env_;
  Environment* next_live_ = nullptr;
  napi_threadsafe_function function_ = nullptr;  // wakes the environment when operations have finished
  Operation* operations_ = nullptr;              // all that are not settled
  uint32_t unsettled_ = 0;
  napi_ref results_ref_ = nullptr;
  uint8_t* results_ = nullptr;
  size_t results_size_ = 0;                      // among those that may not have been read yet
  uint32_t results_told_ = 0;                    // the number of places that have been returned
  std::vector<int> kept_;                        // the caller's descriptors, closed with the environment

  // Shared with the addon's threads, by atomic operations only. A lock would often be contended: ringing wakes the
  // environment, which may have another thread finish the next operation before this one goes on.
  Operation* finished_ = nullptr;  // the last one first
  bool ended_ = false;
  uint32_t ringing_ = 0;     // the number of threads that may be about to ring
  uint32_t references_ = 1;  // this environment's and one for each operation
  uint32_t to_await_ = 0;    // operations that the end of the environment waits for
  uint32_t borrowing_ = 0;   // those of them that use its memory
  uint32_t steps_after_stop_ = 0;
  Signal awaited_;
};

}  // namespace overlayfs
