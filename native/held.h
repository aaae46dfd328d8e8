// Descriptors that JavaScript holds by an object: closed when it says so, when the object is collected, or when
// its environment ends.
#pragma once

#include <node_api.h>

namespace overlayfs {

// hold(descriptor): the object
napi_value hold(napi_env env, napi_callback_info info);
// letGo(object): closes the descriptor; a second time does nothing
napi_value let_go(napi_env env, napi_callback_info info);

}  // namespace overlayfs
