// One description of what is to be done, a plan, in two forms: performed on the caller's thread while it
// waits, or on one of ours, with a promise for the caller.
//
// Whoever gives up a running operation (an AbortSignal, an environment that ends) gets it undone: on success
// an operation keeps what taking it back needs until its promise is settled.
#pragma once

#include <napi.h>

#include "plan.h"
#include "threads.h"

namespace overlayfs {

class Operation;

// What the addon holds for each JavaScript environment: the main one and every worker.
class Environment {
 public:
  static Environment* of(napi_env env);
  static napi_status attach(napi_env env);

  // perform(block): undefined, or the failure
  static napi_value perform(napi_env env, napi_callback_info info);
  // start(block, size, token): a promise of the outputs: undefined where there are none, their place in `results`,
  // valid until the event loop goes on, an ArrayBuffer where they are large; or of the failure. Whoever is told a
  // place counts it in the first 32 bits of `results`
  static napi_value start(napi_env env, napi_callback_info info);
  // cancel(token): gives up what was started with this token
  static napi_value cancel(napi_env env, napi_callback_info info);

  // disown(descriptor): a kept one that the caller is about to close
  static napi_value disown(napi_env env, napi_callback_info info);

  // close(descriptor): closes a kept one, or any
  static napi_value close(napi_env env, napi_callback_info info);

  // Where small outputs are found.
  napi_value results() const;

  // At the end of the process: gives up what runs in environments that have not ended.
  static void give_up_all();

 private:
  friend class Operation;

  explicit Environment(napi_env env) : env_(env) {}
  void finished(Operation* operation);
  void no_longer_awaited();
  Operation* take_finished();
  void settle_finished();
  napi_value outputs_value(const Execution& execution);
  static int take_kept(napi_env env, napi_callback_info info);
  void settle(Operation* operation, int submit_error);
  void remove(Operation* operation);
  void give_up();
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
  size_t results_size_ = 0;                      // of those that may not have been read yet
  uint32_t results_told_ = 0;                    // how often a place has been told
  std::vector<int> kept_;                        // descriptors of the caller's, closed with the environment

  // Shared with our threads, by atomic operations only. A lock would often be run into: ringing wakes the
  // environment, which may have the next operation finished on another thread before this one goes on.
  Operation* finished_ = nullptr;  // the last one first
  bool ended_ = false;
  uint32_t ringing_ = 0;     // how many threads may be about to ring
  uint32_t references_ = 1;  // this environment's and one for each operation
  uint32_t to_await_ = 0;    // operations that the end of the environment has to wait for
  uint32_t steps_after_stop_ = 0;
  Signal awaited_;
};

}  // namespace overlayfs
