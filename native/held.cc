#include "held.h"

#include "syscalls.h"

namespace overlayfs {

namespace {

void close_held(int* held) {
  if (*held >= 0) sys::close(*held);
  *held = -1;
}

void on_collected(napi_env, void* data, void*) {
  auto* held = static_cast<int*>(data);
  close_held(held);
  delete held;
}

napi_value first_argument(napi_env env, napi_callback_info info) {
  napi_value argument = nullptr;
  size_t count = 1;
  napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr);
  return argument;
}

}  // namespace

napi_value hold(napi_env env, napi_callback_info info) {
  auto* held = new int(-1);
  napi_get_value_int32(env, first_argument(env, info), held);
  napi_value object = nullptr;
  if (napi_create_external(env, held, on_collected, nullptr, &object) != napi_ok) on_collected(env, held, nullptr);
  return object;
}

napi_value let_go(napi_env env, napi_callback_info info) {
  void* held = nullptr;
  if (napi_get_value_external(env, first_argument(env, info), &held) == napi_ok) close_held(static_cast<int*>(held));
  return nullptr;
}

}  // namespace overlayfs
