// Calls that tests make on their own process; a user of the package never needs them.
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <napi.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>
#include <vector>

namespace {

Napi::Value outcome(const Napi::CallbackInfo& info, bool succeeded) {
  return Napi::Number::New(info.Env(), succeeded ? 0 : errno);
}

std::string text(const Napi::Value& value) { return value.As<Napi::String>(); }

// unshareMounts(): 0, or the errno. Puts the calling thread into a mount namespace of its own, from which no
// mount gets out.
Napi::Value unshare_mounts(const Napi::CallbackInfo& info) {
  return outcome(info,
                 unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
}

// mount(source, target, type, flags, data): 0, or the errno. For what a test needs besides overlays.
Napi::Value mount_any(const Napi::CallbackInfo& info) {
  std::string source = text(info[0]), target = text(info[1]), type = text(info[2]), data = text(info[4]);
  unsigned long flags = info[3].As<Napi::Number>().Uint32Value();
  return outcome(info, mount(source.c_str(), target.c_str(), type.c_str(), flags, data.c_str()) == 0);
}

// umount(target, flags): 0, or the errno
Napi::Value umount_any(const Napi::CallbackInfo& info) {
  return outcome(info, umount2(text(info[0]).c_str(), info[1].As<Napi::Number>().Int32Value()) == 0);
}

class PooledUmount : public Napi::AsyncWorker {
 public:
  PooledUmount(Napi::Env env, std::string target)
      : Napi::AsyncWorker(env), target_(std::move(target)), deferred_(Napi::Promise::Deferred::New(env)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }
  void Execute() override { errno_ = umount2(target_.c_str(), 0) == 0 ? 0 : errno; }
  void OnOK() override { deferred_.Resolve(Napi::Number::New(Env(), errno_)); }

 private:
  std::string target_;
  Napi::Promise::Deferred deferred_;
  int errno_ = 0;
};

// umountInPool(target): a promise of 0, or the errno. On a thread of libuv's pool, as most addons do it.
Napi::Value umount_in_pool(const Napi::CallbackInfo& info) {
  auto* worker = new PooledUmount(info.Env(), text(info[0]));
  worker->Queue();
  return worker->promise();
}

// denyCalls(numbers, errno): 0, or the errno. From now on the process's threads are answered the errno when they
// make one of these system calls.
Napi::Value deny_calls(const Napi::CallbackInfo& info) {
  auto numbers = info[0].As<Napi::Array>();
  auto answer = static_cast<unsigned>(info[1].As<Napi::Number>().Int32Value());
  std::vector<sock_filter> filter{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (uint32_t i = 0; i < numbers.Length(); i++) {
    unsigned number = numbers.Get(i).As<Napi::Number>().Uint32Value();
    filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1));
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | answer));
  }
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  return outcome(info, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
}

// restrictByLandlock(): 0, or the errno. From now on the calling thread, and those that it starts, are in a Landlock
// sandbox, whose only rule is that no FIFO may be made: all that changes mounts is refused besides. The numbers are
// older headers' to lack.
Napi::Value restrict_by_landlock(const Napi::CallbackInfo& info) {
  constexpr int create_ruleset = 444, restrict_self = 446;
  uint64_t handled = 1 << 10;
  long ruleset = syscall(create_ruleset, &handled, sizeof handled, 0);
  if (ruleset < 0) return outcome(info, false);
  bool succeeded = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(restrict_self, ruleset, 0) == 0;
  Napi::Value result = outcome(info, succeeded);
  close(static_cast<int>(ruleset));
  return result;
}

// landlockVersion(): what the kernel has of it; below 1 where it has none.
Napi::Value landlock_version(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(syscall(444, nullptr, 0, 1)));
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("unshareMounts", Napi::Function::New(env, unshare_mounts));
  exports.Set("mount", Napi::Function::New(env, mount_any));
  exports.Set("denyCalls", Napi::Function::New(env, deny_calls));
  exports.Set("restrictByLandlock", Napi::Function::New(env, restrict_by_landlock));
  exports.Set("landlockVersion", Napi::Function::New(env, landlock_version));
  exports.Set("umount", Napi::Function::New(env, umount_any));
  exports.Set("umountInPool", Napi::Function::New(env, umount_in_pool));
  return exports;
}

}  // namespace

NODE_API_MODULE(test_support, init)
