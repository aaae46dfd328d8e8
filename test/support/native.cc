// What tests do to their own process and a user of the package never needs.
#include <errno.h>
#include <napi.h>
#include <sched.h>
#include <sys/mount.h>

namespace {

// unshareMounts(): 0, or the errno. Puts the calling thread into a mount namespace of its own, from which no
// mount gets out.
Napi::Value unshare_mounts(const Napi::CallbackInfo& info) {
  int error = 0;
  if (unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    error = errno;
  }
  return Napi::Number::New(info.Env(), error);
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("unshareMounts", Napi::Function::New(env, unshare_mounts));
  return exports;
}

}  // namespace

NODE_API_MODULE(test_support, init)
