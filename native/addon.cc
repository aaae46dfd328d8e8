// The addon's exports: functions that perform plans, functions that hold descriptors, and the numbers of which plans
// consist. lib/native.ts is the typed view of this list.
#include <napi.h>

#include "operation.h"
#include "walk.h"
#include "write.h"

namespace overlayfs {

namespace {

napi_value init(napi_env env, napi_value exports) {
  if (Environment::attach(env) != napi_ok) return exports;

  napi_property_descriptor functions[] = {
      {"perform", nullptr, Environment::perform, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"start", nullptr, Environment::start, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"cancel", nullptr, Environment::cancel, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"disown", nullptr, Environment::disown, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"close", nullptr, Environment::close, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"openWalk", nullptr, Walk::open, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
      {"closeWalk", nullptr, Walk::close, nullptr, nullptr, nullptr, napi_enumerable, nullptr},
  };
  napi_define_properties(env, exports, sizeof functions / sizeof functions[0], functions);

  // Failures are ignored: a worker that is being terminated takes no more values and does not need them.
  auto set_number = [env](napi_value object, const char* name, int32_t number) {
    napi_value value = nullptr;
    if (napi_create_int32(env, number, &value) == napi_ok) napi_set_named_property(env, object, name, value);
  };
  auto set_object = [env, exports](const char* name) {
    napi_value object = nullptr;
    if (napi_create_object(env, &object) == napi_ok) napi_set_named_property(env, exports, name, object);
    return object;
  };

  napi_value calls = set_object("calls"), descriptors = set_object("descriptors");
#define OVERLAYFS_CALL(name, of_call)                              \
  set_number(calls, #name, static_cast<int32_t>(Call::name));      \
  set_number(descriptors, #name, of_call);
  OVERLAYFS_CALLS(OVERLAYFS_CALL)
#undef OVERLAYFS_CALL

  napi_value guards = set_object("guards");
#define OVERLAYFS_GUARD(name) set_number(guards, #name, static_cast<int32_t>(Guard::name));
  OVERLAYFS_GUARDS(OVERLAYFS_GUARD)
#undef OVERLAYFS_GUARD
  set_number(exports, "firstGuard", static_cast<int32_t>(first_guard));

  napi_value flags = set_object("flags");
  set_number(flags, "undo", undo);
  set_number(flags, "keep", keep);
  set_number(flags, "later", later);

  napi_value kinds = set_object("operations");
#define OVERLAYFS_KIND(name) set_number(kinds, #name, static_cast<int32_t>(Kind::name));
  OVERLAYFS_OPERATIONS(OVERLAYFS_KIND)
#undef OVERLAYFS_KIND

  napi_value asked = set_object("operationFlags");
#define OVERLAYFS_FLAG(name, bit) set_number(asked, #name, bit);
  OVERLAYFS_OPERATION_FLAGS(OVERLAYFS_FLAG)
#undef OVERLAYFS_FLAG

  napi_value stages = set_object("stages");
#define OVERLAYFS_STAGE(name) set_number(stages, #name, static_cast<int32_t>(Stage::name));
  OVERLAYFS_STAGES(OVERLAYFS_STAGE)
#undef OVERLAYFS_STAGE

  set_number(exports, "makesDescriptor", makes_descriptor);
  set_number(exports, "ownThread", own_thread);
  set_number(exports, "inChild", in_child);
  set_number(exports, "anyErrno", static_cast<int32_t>(any_errno));
  set_number(exports, "pageSize", static_cast<int32_t>(sysconf(_SC_PAGESIZE)));
  napi_set_named_property(env, exports, "results", Environment::of(env)->results());
  return exports;
}

}  // namespace

NAPI_MODULE(overlayfs, init)

}  // namespace overlayfs
