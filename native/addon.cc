// What the addon exports: the ways to hand it a plan, to hold a descriptor, and the numbers of which plans are made.
// lib/native.ts is the typed view of this list.
#include <napi.h>

#include "operation.h"

namespace overlayfs {

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  if (Environment::attach(env) != napi_ok) return exports;

  napi_property_descriptor functions[] = {
      {"perform", nullptr, Environment::perform, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"start", nullptr, Environment::start, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"cancel", nullptr, Environment::cancel, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"disown", nullptr, Environment::disown, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"close", nullptr, Environment::close, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
  };
  napi_define_properties(env, exports, sizeof functions / sizeof functions[0], functions);

  Napi::Object calls = Napi::Object::New(env);
#define OVERLAYFS_CALL(name, descriptors) \
  calls.Set(#name, Napi::Number::New(env, static_cast<int32_t>(Call::name)));
  OVERLAYFS_CALLS(OVERLAYFS_CALL)
#undef OVERLAYFS_CALL
  exports.Set("calls", calls);

  Napi::Object flags = Napi::Object::New(env);
  flags.Set("undo", Napi::Number::New(env, undo));
  flags.Set("keep", Napi::Number::New(env, keep));
  flags.Set("later", Napi::Number::New(env, later));
  exports.Set("flags", flags);

  exports.Set("ownThread", Napi::Number::New(env, own_thread));
  exports.Set("inChild", Napi::Number::New(env, in_child));
  exports.Set("anyErrno", Napi::Number::New(env, static_cast<int32_t>(any_errno)));
  exports.Set("results", Napi::Value(env, Environment::of(env)->results()));
  exports.Set("pageSize", Napi::Number::New(env, static_cast<double>(sysconf(_SC_PAGESIZE))));
  return exports;
}

}  // namespace

NODE_API_MODULE(overlayfs, init)

}  // namespace overlayfs
