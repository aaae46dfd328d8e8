// The addon's C++ under sanitizers, without an engine: native/ is compiled as it is, the kernel is the real
// one, and only Node-API is stood in for, by the few functions that native/operation.cc calls. Environments
// are threads here that start, cancel and await operations, and end while some are under way, as workers do;
// child processes leave by exit(3) with operations under way; and tasks are thrown at sets of threads around
// the moment at which these give up waiting. Walks go through a tree that changes all the time. The findings: reports of
// a sanitizer, and an invariant that does not hold, after which the program exits with 1.
//
// test/sanitizers/run.mjs compiles and runs it: hammer [--seconds N] [--seed N]
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../../native/operation.h"
#include "../../native/plan.h"
#include "../../native/threads.h"
#include "../../native/walk.h"
#include "support.h"

using namespace overlayfs;

namespace {

// ---------------------------------------------------------------------------------------------------------
// Time, counts

using Clock = std::chrono::steady_clock;

void sleep_us(int microseconds) {
  if (microseconds > 0) std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

// Around the moment at which threads that have had nothing to do since now give up waiting.
void sleep_until_threads_end(Random& random) {
  sleep_us(static_cast<int>(Threads::idle_milliseconds) * 1000 + random.between(-1500, 1500));
}

struct {
  std::atomic<int> environments, started, kept, failed, cancelled, refused, unsettled, performed;
  std::atomic<int> tasks, withdrawn, exits, namespaces;
  std::atomic<int> walks, walked, lost;
} counts;

// Objects with a destructor are never destroyed: threads that outlive main() use them.
std::string& scratch = *new std::string;  // a tmpfs of the hammer's own, where it can mount
bool can_mount = false;

}  // namespace

extern "C" const char* __tsan_default_options() {
  return "halt_on_error=1:exitcode=66:atexit_sleep_ms=0:report_thread_leaks=0";
}

namespace {

constexpr int at_cwd = AT_FDCWD;
constexpr unsigned whole_mount = 0x1000;       // STATX_MNT_ID
constexpr unsigned is_mount_root = 0x2000;     // STATX_ATTR_MOUNT_ROOT
constexpr unsigned empty_paths = 0x4 | 0x40;   // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH

bool is_mounted(const std::string& path) {
  abi::Statx found;
  return sys::statx(at_cwd, path.c_str(), AT_SYMLINK_NOFOLLOW, whole_mount, &found) == 0 &&
         (found.attributes & is_mount_root) != 0;
}

std::vector<std::string> entries(const std::string& path) {
  std::vector<std::string> names;
  DIR* directory = opendir(path.c_str());
  CHECK(directory != nullptr, "opendir %s: errno %d", path.c_str(), errno);
  while (dirent* entry = readdir(directory)) {
    std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  closedir(directory);
  return names;
}

// ---------------------------------------------------------------------------------------------------------
// What operations are about: a directory in which one happens at a time

class Slot {
 public:
  enum Kind { look, whiteouts, nodes, mount, context, keep_open, unmount, kinds };

  // One in so many of the plans waits at the gate.
  Slot(std::string dir, uint32_t odds) : gate_odds(odds), dir_(std::move(dir)) {
    ::mkdir(dir_.c_str(), 0755);
    for (const char* name : {"/lower", "/upper", "/work", "/merged", "/d"}) ::mkdir((dir_ + name).c_str(), 0755);
  }

  // A plan of this kind; one that `fails` does so at its last step.
  std::vector<uint8_t> plan(Kind wanted, bool fails, Random& random) {
    kind = wanted;
    Plan plan;
    int32_t own_output = 72;  // the fields that statx reports
    std::string d = dir_ + "/d", target = this->target();
    // Takes as long as nobody has opened the other end.
    if (random.one_in(gate_odds)) plan.add(Call::openat2, {at_cwd, scratch + "/gate", O_WRONLY | O_CLOEXEC, 0});
    switch (wanted) {
      case look:
        plan.add(Call::statx, {at_cwd, d, 0, 0x7ff}, {0, 0, own_output});
        plan.add(Call::statfs, {d}, {0, 0, 48});
        plan.add(Call::close, {plan.add(Call::open_tree, {at_cwd, d, 0x80000 /* OPEN_TREE_CLOEXEC */})});
        break;
      case whiteouts: {
        int32_t at = plan.add(Call::openat2, {at_cwd, d, O_PATH | O_DIRECTORY | O_CLOEXEC, 0});
        int count = random.between(1, 12);
        for (int i = 0; i < count; i++) plan.add(Call::whiteout, {at, "w" + std::to_string(i)}, {undo});
        break;
      }
      case nodes: {
        int32_t at = plan.add(Call::openat2, {at_cwd, d, O_PATH | O_DIRECTORY | O_CLOEXEC, 0});
        plan.add(Call::mkdirat, {at, "a", 0755}, {undo});
        plan.add(Call::mkdirat, {at, "a", 0755}, {undo, EEXIST});
        plan.add(Call::mkdirat, {at_cwd, Argument::pieces({"/proc/self/fd/", at, "/a/b"}), 0700}, {undo});
        plan.add(Call::mknodat, {at, "a/file", S_IFREG | 0600, 0}, {undo});
        plan.add(Call::linkat, {at, "a/file", at, "a/link", 0}, {undo});
        plan.add(Call::renameat2, {at, "a/link", at, "a/renamed", 1}, {undo});
        plan.add(Call::setxattr, {d + "/a/file", "trusted.hammer", "value", 0}, {0, any_errno});
        plan.add(Call::lgetxattr, {d + "/a/file", "trusted.hammer", 16}, {0, any_errno, 16});
        break;
      }
      case mount:
        plan.add(Call::statx, {at_cwd, target, AT_SYMLINK_NOFOLLOW, 1});
        plan.add(Call::guard, {static_cast<int32_t>(Guard::target_is_mount_point)});
        if (random.one_in(4)) {  // with layers below a working directory of its own
          plan.flags = own_thread;
          plan.add(Call::unshare, {CLONE_FS});
          plan.add(Call::chdir, {dir_});
          plan.add(Call::mount, {"hammer", target, "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work"});
        } else {
          plan.add(Call::mount, {"hammer", target, "overlay", 0, data()});
        }
        plan.add(Call::umount2, {target, abi::mnt_detach}, {later});
        plan.add(Call::statfs, {target});
        plan.add(Call::guard, {static_cast<int32_t>(Guard::superblock_is_read_only)});
        plan.add(Call::statx, {at_cwd, target, 0, whole_mount}, {0, 0, own_output});
        break;
      case context: {
        int32_t at = plan.add(Call::openat2, {at_cwd, target, O_PATH | O_DIRECTORY | O_CLOEXEC, 0});
        int32_t lower = plan.add(Call::openat2, {at_cwd, dir_ + "/lower", O_PATH | O_DIRECTORY | O_CLOEXEC, 0});
        int32_t made = plan.add(Call::fsopen, {"overlay", 1});
        auto set = [&](const char* key, Argument value) { plan.add(Call::fsconfig, {made, 1, key, value, 0}); };
        set("source", "hammer");
        set("lowerdir", Argument::pieces({"/proc/self/fd/", lower}));
        set("upperdir", dir_ + "/upper");
        set("workdir", dir_ + "/work");
        if (fails && random.one_in(2)) set("no_such_option", "1");  // with a line in the context's log
        plan.add(Call::fsconfig, {made, 6, nullptr, nullptr, 0});
        int32_t mounted = plan.add(Call::fsmount, {made, 1, 0});
        plan.add(Call::fstatfs, {mounted});
        plan.add(Call::guard, {static_cast<int32_t>(Guard::superblock_is_read_only)});
        plan.add(Call::statx, {mounted, "", AT_EMPTY_PATH, whole_mount}, {0, 0, own_output});
        plan.add(Call::move_mount, {mounted, "", at, "", empty_paths}, {undo});
        break;
      }
      case keep_open:
        plan.add(Call::openat2, {at_cwd, d, O_PATH | O_CLOEXEC, 0}, {overlayfs::keep, 0, 0});
        break;
      case unmount:
        plan.add(Call::umount2, {target, 0});
        break;
      case kinds:
        break;
    }
    if (fails) plan.add(Call::mkdirat, {at_cwd, dir_ + "/none/such", 0755});
    return plan.block();
  }

  bool is_mount() const { return kind == mount || kind == context; }
  // Nothing of what a plan with undoing did is there.
  void check_undone(const char* when) const {
    if (kind == unmount) return;
    CHECK(!is_mounted(target()), "%s is mounted %s", dir_.c_str(), when);
    std::vector<std::string> left = entries(dir_ + "/d");
    CHECK(left.empty(), "%s/d/%s is there %s (kind %d)", dir_.c_str(), left[0].c_str(), when, kind);
  }
  bool has_mount() const { return is_mounted(target()); }
  void check_done() const {
    if (is_mount()) CHECK(is_mounted(target()), "%s is not mounted", dir_.c_str());
    if (kind == whiteouts || kind == nodes) CHECK(!entries(dir_ + "/d").empty(), "%s/d is empty", dir_.c_str());
    if (kind == unmount) CHECK(!is_mounted(target()), "%s is still mounted", dir_.c_str());
  }
  // The owner's use of the outcome: one that uses `replace` and `remove`.
  std::vector<uint8_t> removal() const {
    Plan plan;
    std::string d = dir_ + "/d";
    if (is_mount()) plan.add(Call::umount2, {target(), 0});
    if (kind == nodes) plan.add(Call::replace, {at_cwd, d + "/a", d + "/aside", 1});
    if (kind == nodes || kind == whiteouts) {
      plan.add(Call::remove, {at_cwd, d, 0, 0, 0});
      plan.add(Call::mkdirat, {at_cwd, d, 0755});
    }
    return plan.block();
  }

  std::string target() const { return dir_ + "/merged"; }

  const uint32_t gate_odds;
  Kind kind = look;
  bool is_busy = false;
  uint32_t token = 0;

 private:
  std::string data() const {
    return "lowerdir=" + dir_ + "/lower,upperdir=" + dir_ + "/upper,workdir=" + dir_ + "/work";
  }
  std::string dir_;
};

// ---------------------------------------------------------------------------------------------------------
// The gate: a pipe whose other end is open now and then

std::atomic<bool> gate_ends{false};

void keep_gate() {
  Random random(42);
  std::string gate = scratch + "/gate";
  while (!gate_ends) {
    int fd = open(gate.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
    CHECK(fd >= 0, "open %s: errno %d", gate.c_str(), errno);
    sleep_us(random.between(0, 2000));
    close(fd);
    sleep_us(random.one_in(10) ? 30'000 : random.between(0, 4000));
  }
}

// Makes the next threads fail to start, on the thread that sets it.
thread_local Random* fails_to_start = nullptr;

}  // namespace

extern "C" int __real_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
extern "C" int __wrap_pthread_create(pthread_t* id, const pthread_attr_t* attributes, void* (*run)(void*),
                                     void* data) {
  if (fails_to_start != nullptr && fails_to_start->one_in(30)) return EAGAIN;
  return __real_pthread_create(id, attributes, run, data);
}

// ---------------------------------------------------------------------------------------------------------
// Node-API, as much of it as native/operation.cc calls

class Program;

struct napi_value__ {
  int32_t number = 0;
  bool is_place = false;  // in what is referenced
  bool is_object = false;
  std::map<std::string, napi_value> properties;
  std::vector<uint8_t> bytes;
};

struct napi_callback_info__ {
  std::vector<napi_value> arguments;
};

struct napi_deferred__ {
  Slot* slot = nullptr;
  bool is_settled = false;
};

// Rung from any thread, answered by the environment's; as in Node the queue that is left at the end is
// answered without an environment.
struct napi_threadsafe_function__ {
  std::mutex mutex;
  std::condition_variable rung;
  int pending = 0;
  bool has_ended = false;
  bool is_referenced = true;  // this and the following: the environment's thread only
  void* context = nullptr;
  napi_threadsafe_function_call_js answer = nullptr;
};

struct napi_env__ {
  struct Settled {
    napi_deferred deferred;
    bool succeeded;
    int32_t step, error, undo_error;
    bool cancelled;
    int descriptor;
    int place;
  };

  pthread_t thread = pthread_self();
  std::atomic<bool> is_terminated{false};  // by another thread: worker.terminate()
  void* instance = nullptr;
  napi_threadsafe_function function = nullptr;
  std::vector<std::pair<void (*)(void*), void*>> hooks;
  std::deque<napi_value__> handles;
  std::vector<uint8_t> referenced;
  int scopes = 0;
  std::deque<napi_deferred__> deferreds;
  std::vector<Settled> settled;

  napi_value make() {
    on_its_thread();
    CHECK(scopes > 0, "a handle without a scope");
    return &handles.emplace_back();
  }
  void on_its_thread() const { CHECK(pthread_equal(thread, pthread_self()), "Node-API on another thread"); }
  // Calls that need JavaScript fail from then on.
  bool takes_no_more() const {
    on_its_thread();
    return is_terminated;
  }
};

napi_status napi_set_instance_data(node_api_basic_env env, void* data, napi_finalize, void*) {
  env->instance = data;
  return napi_ok;
}

napi_status napi_get_instance_data(node_api_basic_env env, void** data) {
  env->on_its_thread();
  *data = env->instance;
  return napi_ok;
}

napi_status napi_add_env_cleanup_hook(node_api_basic_env env, napi_cleanup_hook hook, void* data) {
  env->hooks.push_back({hook, data});
  return napi_ok;
}

napi_status napi_remove_env_cleanup_hook(node_api_basic_env env, napi_cleanup_hook hook, void* data) {
  std::erase(env->hooks, std::pair<void (*)(void*), void*>{hook, data});
  return napi_ok;
}

napi_status napi_create_threadsafe_function(napi_env env, napi_value, napi_value, napi_value, size_t, size_t, void*,
                                            napi_finalize, void* context, napi_threadsafe_function_call_js answer,
                                            napi_threadsafe_function* result) {
  env->on_its_thread();
  CHECK(env->function == nullptr, "a second thread-safe function");
  env->function = *result = new napi_threadsafe_function__;
  env->function->context = context;
  env->function->answer = answer;
  return napi_ok;
}

napi_status napi_ref_threadsafe_function(node_api_basic_env env, napi_threadsafe_function function) {
  env->on_its_thread();
  function->is_referenced = true;
  return napi_ok;
}

napi_status napi_unref_threadsafe_function(node_api_basic_env env, napi_threadsafe_function function) {
  env->on_its_thread();
  function->is_referenced = false;
  return napi_ok;
}

napi_status napi_call_threadsafe_function(napi_threadsafe_function function, void*,
                                          napi_threadsafe_function_call_mode) {
  std::lock_guard lock(function->mutex);
  CHECK(!function->has_ended, "rung after the end");
  function->pending++;
  function->rung.notify_one();
  return napi_ok;
}

napi_status napi_release_threadsafe_function(napi_threadsafe_function function,
                                             napi_threadsafe_function_release_mode) {
  std::lock_guard lock(function->mutex);
  CHECK(!function->has_ended, "released twice");
  function->has_ended = true;
  return napi_ok;
}

napi_status napi_get_cb_info(napi_env env, napi_callback_info info, size_t* count, napi_value* arguments, napi_value*,
                             void**) {
  env->on_its_thread();
  CHECK(*count >= info->arguments.size(), "too many arguments");
  for (size_t i = 0; i < *count; i++) {
    if (i < info->arguments.size()) arguments[i] = info->arguments[i];
    else napi_get_undefined(env, &arguments[i]);
  }
  return napi_ok;
}

napi_status napi_get_typedarray_info(napi_env, napi_value value, napi_typedarray_type*, size_t*, void** data,
                                     napi_value*, size_t*) {
  *data = value->bytes.data();
  return napi_ok;
}

napi_status napi_get_value_uint32(napi_env, napi_value value, uint32_t* result) {
  *result = static_cast<uint32_t>(value->number);
  return napi_ok;
}

napi_status napi_get_value_int32(napi_env, napi_value value, int32_t* result) {
  *result = value->number;
  return napi_ok;
}

napi_status napi_get_value_bool(napi_env, napi_value value, bool* result) {
  *result = value->number != 0;
  return napi_ok;
}

napi_status napi_create_string_utf8(napi_env env, const char*, size_t, napi_value* result) {
  *result = env->make();
  return napi_ok;
}

napi_status napi_create_object(napi_env env, napi_value* result) {
  *result = env->make();
  (*result)->is_object = true;
  return napi_ok;
}

napi_status napi_create_array_with_length(napi_env env, size_t, napi_value* result) {
  *result = env->make();
  return napi_ok;
}

napi_status napi_create_int32(napi_env env, int32_t number, napi_value* result) {
  *result = env->make();
  (*result)->number = number;
  return napi_ok;
}

napi_status napi_get_boolean(napi_env env, bool value, napi_value* result) {
  return napi_create_int32(env, value, result);
}

napi_status napi_get_undefined(napi_env env, napi_value* result) {
  *result = env->make();
  return napi_ok;
}

napi_status napi_create_buffer_copy(napi_env env, size_t size, const void* data, void**, napi_value* result) {
  if (env->takes_no_more()) return napi_pending_exception;
  *result = env->make();
  (*result)->bytes.assign(static_cast<const uint8_t*>(data), static_cast<const uint8_t*>(data) + size);
  return napi_ok;
}

napi_status napi_create_arraybuffer(napi_env env, size_t size, void** data, napi_value* result) {
  if (env->takes_no_more()) return napi_pending_exception;
  *result = env->make();
  (*result)->bytes.resize(size);
  *data = (*result)->bytes.data();
  return napi_ok;
}

napi_status napi_create_reference(napi_env env, napi_value value, uint32_t, napi_ref* result) {
  if (env->takes_no_more()) return napi_pending_exception;
  env->referenced = std::move(value->bytes);
  *result = nullptr;
  return napi_ok;
}

napi_status napi_get_reference_value(napi_env env, napi_ref, napi_value* result) {
  return napi_get_undefined(env, result);
}

napi_status napi_create_uint32(napi_env env, uint32_t number, napi_value* result) {
  *result = env->make();
  (*result)->number = static_cast<int32_t>(number);
  (*result)->is_place = true;
  return napi_ok;
}

// The plans here borrow no memory.
napi_status napi_is_array(napi_env, napi_value, bool* result) {
  *result = false;
  return napi_ok;
}
napi_status napi_get_array_length(napi_env, napi_value, uint32_t*) { return napi_generic_failure; }
napi_status napi_get_element(napi_env, napi_value, uint32_t, napi_value*) { return napi_generic_failure; }

napi_status napi_wrap(napi_env, napi_value, void*, napi_finalize, void*, napi_ref*) { return napi_generic_failure; }

napi_status napi_set_named_property(napi_env env, napi_value object, const char* name, napi_value value) {
  if (env->takes_no_more()) return napi_pending_exception;
  object->properties[name] = value;
  return napi_ok;
}

napi_status napi_set_element(napi_env env, napi_value, uint32_t, napi_value) {
  return env->takes_no_more() ? napi_pending_exception : napi_ok;
}

napi_status napi_create_promise(napi_env env, napi_deferred* deferred, napi_value* promise) {
  if (env->takes_no_more()) return napi_pending_exception;
  *deferred = &env->deferreds.emplace_back();
  *promise = env->make();
  return napi_ok;
}

// The code that waits for the promise comes after the addon has returned, as microtasks do.
napi_status napi_resolve_deferred(napi_env env, napi_deferred deferred, napi_value value) {
  if (env->takes_no_more()) return napi_pending_exception;
  CHECK(deferred != nullptr && value != nullptr, "a promise or its value is missing");
  CHECK(!deferred->is_settled, "a promise was settled twice");
  deferred->is_settled = true;
  napi_env__::Settled settled{deferred, !value->is_object, 0, 0, 0, false, -1, value->is_place ? value->number : -1};
  if (value->is_object) {
    settled.step = value->properties.at("step")->number;
    settled.error = value->properties.at("errno")->number;
    settled.undo_error = value->properties.at("undoErrno")->number;
    settled.cancelled = value->properties.at("cancelled")->number != 0;
  } else if (value->bytes.size() >= sizeof settled.descriptor) {
    memcpy(&settled.descriptor, value->bytes.data(), sizeof settled.descriptor);
  }
  env->settled.push_back(settled);
  return napi_ok;
}

napi_status napi_open_handle_scope(napi_env env, napi_handle_scope*) {
  env->on_its_thread();
  env->scopes++;
  return napi_ok;
}

napi_status napi_close_handle_scope(napi_env env, napi_handle_scope) {
  env->on_its_thread();
  if (--env->scopes == 0) env->handles.clear();
  return napi_ok;
}

// ---------------------------------------------------------------------------------------------------------
// What JavaScript does in one environment

namespace {

std::mutex programs_mutex;
auto& programs = *new std::vector<napi_env__*>;  // those that may be terminated

}  // namespace

class Program {
 public:
  Program(const std::string& dir, uint64_t seed, bool may_leave_mounts)
      : random_(seed), may_leave_mounts_(may_leave_mounts) {
    int count = random_.between(4, 24);
    uint32_t gate_odds = random_.one_in(2) ? 4 : 40;
    ::mkdir(dir.c_str(), 0755);
    for (int i = 0; i < count; i++) slots_.emplace_back(dir + "/" + std::to_string(i), gate_odds);
    Scope scope(env_);
    CHECK(Environment::attach(&env_) == napi_ok, "attach");
    counts.environments++;
  }

  // Starts, cancels, performs, awaits, in no order.
  void run(int turns, bool may_leave_namespace) {
    for (int turn = 0; turn < turns && !env_.is_terminated; turn++) {
      switch (random_.below(8)) {
        case 0: case 1: case 2:
          for (int n = random_.between(1, 24); n > 0; n--) start_one();
          break;
        case 3:
          cancel_one();
          break;
        case 4:
          perform_one();
          break;
        case 5:
          if (may_leave_namespace && can_mount && random_.one_in(20)) leave_namespace();
          break;
        default:
          turn_loop(random_.one_in(3) ? 0 : random_.between(0, 3000));
      }
    }
  }

  // As a program does: until there is nothing to wait for.
  void drain() {
    auto end = Clock::now() + std::chrono::seconds(60);
    for (;;) {
      settled();  // one for which there was no thread is settled at once, with nothing to wait for
      if (!env_.function->is_referenced || env_.is_terminated) break;
      turn_loop(10'000);
      CHECK(Clock::now() < end, "promises have not been kept within a minute");
    }
    if (env_.is_terminated) return;
    for (const Slot& slot : slots_) CHECK(!slot.is_busy, "nothing to wait for, but a promise has not been kept");
  }

  // The environment's end, with what is under way.
  void end() {
    {
      std::lock_guard lock(programs_mutex);
      std::erase(programs, &env_);
    }
    {
      Scope scope(env_);
      while (!env_.hooks.empty()) {
        auto [hook, data] = env_.hooks.back();
        env_.hooks.pop_back();
        hook(data);
      }
      CHECK(env_.function->has_ended, "the thread-safe function outlives its environment");
      for (int i = env_.function->pending; i > 0; i--) {
        env_.function->answer(nullptr, nullptr, env_.function->context, nullptr);
      }
      delete env_.function;
    }
    settled();
    for (Slot& slot : slots_) {
      if (!slot.is_busy) continue;
      counts.unsettled++;
      slot.check_undone("after the end of its environment");
      // Which may have been done or not: the mount was the program's, not the addon's.
      if (slot.kind == Slot::unmount) umount2(slot.target().c_str(), MNT_DETACH);
    }
  }

  void may_be_terminated() {
    std::lock_guard lock(programs_mutex);
    programs.push_back(&env_);
  }

 private:
  struct Scope {
    explicit Scope(napi_env__& of) : env(of) { napi_open_handle_scope(&env, nullptr); }
    ~Scope() { napi_close_handle_scope(&env, nullptr); }
    napi_env__& env;
  };

  napi_value value(int32_t number, std::vector<uint8_t> bytes = {}) {
    napi_value made = env_.make();
    made->number = number;
    made->bytes = std::move(bytes);
    return made;
  }

  void start_one() {
    Slot& slot = slots_[random_.below(static_cast<uint32_t>(slots_.size()))];
    if (slot.is_busy) return;
    auto kind = static_cast<Slot::Kind>(random_.below(Slot::unmount));
    if (!can_mount && (kind == Slot::mount || kind == Slot::context)) kind = Slot::look;
    start(slot, kind, random_.one_in(6));
  }

  void start(Slot& slot, Slot::Kind kind, bool fails) {
    Scope scope(env_);
    std::vector<uint8_t> block = slot.plan(kind, fails, random_);
    auto size = static_cast<int32_t>(block.size());
    slot.is_busy = true;
    slot.token = ++last_token_;
    napi_callback_info__ info{{value(0, std::move(block)), value(size), value(static_cast<int32_t>(slot.token))}};
    size_t before = env_.deferreds.size();
    fails_to_start = &random_;
    napi_value promise = Environment::start(&env_, &info);
    fails_to_start = nullptr;
    counts.started++;
    if (promise != nullptr) env_.deferreds[before].slot = &slot;
  }

  void cancel_one() {
    Scope scope(env_);
    Slot& slot = slots_[random_.below(static_cast<uint32_t>(slots_.size()))];
    napi_callback_info__ info{{value(static_cast<int32_t>(slot.token))}};
    Environment::cancel(&env_, &info);
    settled();
  }

  void perform_one() {
    Slot& slot = slots_[random_.below(static_cast<uint32_t>(slots_.size()))];
    if (slot.is_busy) return;
    bool fails = random_.one_in(3);
    Scope scope(env_);
    napi_callback_info__ info{{value(0, slot.plan(can_mount ? Slot::mount : Slot::whiteouts, fails, random_))}};
    napi_value failure = Environment::perform(&env_, &info);
    counts.performed++;
    CHECK((failure != nullptr) == fails, "a plan performed at once came out otherwise");
    if (fails) return slot.check_undone("after a failure");
    slot.check_done();
    remove(slot);
  }

  void remove(Slot& slot) {
    napi_callback_info__ info{{value(0, slot.removal())}};
    napi_value failure = Environment::perform(&env_, &info);
    CHECK(failure == nullptr, "what was done cannot be removed: %s",
          failure == nullptr || failure->properties.empty()
              ? "?" : std::to_string(failure->properties.at("errno")->number).c_str());
    slot.check_undone("after its removal");
  }

  // With nothing under way: what is mounted meanwhile would be copied, and undone in one of the two.
  void leave_namespace() {
    drain();
    if (env_.is_terminated) return;
    CHECK(unshare(CLONE_NEWNS) == 0, "unshare: errno %d", errno);
    counts.namespaces++;
  }

  void turn_loop(int microseconds) {
    Scope scope(env_);
    napi_threadsafe_function function = env_.function;
    int pending;
    {
      std::unique_lock lock(function->mutex);
      if (microseconds > 0) {
        // Not by the steady clock, whose waiting the thread sanitizer of GCC 12 does not know.
        function->rung.wait_until(lock, std::chrono::system_clock::now() + std::chrono::microseconds(microseconds),
                                  [&] { return function->pending > 0; });
      }
      pending = function->pending;
      function->pending = 0;
    }
    fails_to_start = &random_;
    for (; pending > 0; pending--) function->answer(&env_, nullptr, function->context, nullptr);
    fails_to_start = nullptr;
    settled();
  }

  void settled() {
    Scope scope(env_);
    std::vector<napi_env__::Settled> list;
    list.swap(env_.settled);
    for (const auto& each : list) {
      Slot* slot = each.deferred->slot;
      if (slot == nullptr) broken("a promise that nobody has was kept");
      slot->is_busy = false;
      if (each.place >= 0) count_taken();
      if (!each.succeeded) {
        (each.cancelled ? counts.cancelled : each.error == EAGAIN ? counts.refused : counts.failed)++;
        CHECK(each.undo_error == 0, "undoing: errno %d", each.undo_error);
        bool expected = each.cancelled || each.error == EAGAIN || each.error == ENOENT || each.error == EINVAL;
        CHECK(expected, "step %d of kind %d: errno %d", each.step, slot->kind, each.error);
        slot->check_undone("after a failure");
        if (slot->kind == Slot::unmount) unmount_at_once(*slot);
        continue;
      }
      counts.kept++;
      slot->check_done();
      if (slot->kind == Slot::keep_open) {
        int32_t descriptor = each.descriptor;
        if (each.place >= 0) memcpy(&descriptor, env_.referenced.data() + each.place, sizeof descriptor);
        napi_callback_info__ info{{value(descriptor)}};
        CHECK(fcntl(descriptor, F_GETFD) >= 0, "descriptor %d", descriptor);
        if (random_.one_in(2)) {
          Environment::close(&env_, &info);
        } else {
          Environment::disown(&env_, &info);
          close(descriptor);
        }
      } else if (slot->is_mount() && may_leave_mounts_ && random_.one_in(3)) {
        start(*slot, Slot::unmount, false);
      } else {
        remove(*slot);
      }
    }
  }

  void count_taken() {
    uint32_t taken;
    memcpy(&taken, env_.referenced.data(), sizeof taken);
    taken++;
    memcpy(env_.referenced.data(), &taken, sizeof taken);
  }

  // An unmount that was cancelled may have been done: there is no taking it back.
  void unmount_at_once(Slot& slot) {
    slot.kind = Slot::mount;
    if (slot.has_mount()) remove(slot);
  }

  napi_env__ env_;
  Random random_;
  std::deque<Slot> slots_;
  uint32_t last_token_ = 0;
  bool may_leave_mounts_;
};

namespace {

// ---------------------------------------------------------------------------------------------------------
// Environments, one after the other on each of some threads

std::atomic<bool> is_over{false};

// Everybody at the same place, if they come in time.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  void wait() {
    std::unique_lock lock(mutex_);
    int generation = generation_;
    if (++waiting_ >= members_) {
      release();
    } else {
      changed_.wait(lock, [&] { return generation != generation_; });
    }
  }
  void leave() {
    std::lock_guard lock(mutex_);
    if (waiting_ >= --members_) release();
  }

 private:
  void release() {
    waiting_ = 0;
    generation_++;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  int members_;
  int waiting_ = 0, generation_ = 0;
};

void run_environments(int lane, uint64_t seed, Barrier* barrier) {
  Random random(seed);
  auto pause = Clock::now() + std::chrono::seconds(3);
  for (int round = 0; !is_over; round++) {
    if (Clock::now() > pause) {
      barrier->wait();
      sleep_until_threads_end(random);
      pause = Clock::now() + std::chrono::seconds(3);
    }
    std::string dir = scratch + "/env-" + std::to_string(lane) + "-" + std::to_string(round);
    Program program(dir, seed + static_cast<uint64_t>(round), true);
    if (random.one_in(3)) program.may_be_terminated();
    program.run(random.between(1, 60), true);
    if (random.one_in(3)) program.drain();
    program.end();
  }
  barrier->leave();
}

void terminate_some() {
  Random random(7);
  while (!is_over) {
    sleep_us(random.between(500, 20'000));
    std::lock_guard lock(programs_mutex);
    if (programs.empty()) continue;
    napi_env__* env = programs[random.below(static_cast<uint32_t>(programs.size()))];
    env->is_terminated = true;
    std::lock_guard function_lock(env->function->mutex);
    env->function->rung.notify_one();
  }
}

// ---------------------------------------------------------------------------------------------------------
// Sets of threads alone: tasks that perform plans, submitted all at once, and after pauses

class Job final : public Task {
 public:
  Job(Slot* slot, Slot::Kind kind, Random& random)
      : slot_(slot), block_(slot->plan(kind, false, random)), execution_(block_.data()), ending_(random.below(3)) {}

  void run() override {
    CHECK(++runs_ == 1, "a task ran twice");
    CHECK(execution_.perform(), "step %d: errno %d", execution_.failure().step, execution_.failure().error);
    if (ending_ != 0) execution_.release();
    if (ending_ == 1) execution_.take_back();
  }

  void announce() override {
    CHECK(runs_ == 1, "a task was announced that did not run");
    CHECK(announced_.fetch_add(1) == 0, "a task was announced twice");
    done_.raise();
  }

  void await() {
    CHECK(done_.wait(0, 30'000), "a task has not been announced within 30 seconds");
    if (ending_ != 1) {
      slot_->check_done();
      execution_.take_back();
    }
    slot_->check_undone("after a task was taken back");
  }

  void check_withdrawn() const { CHECK(runs_ == 0 && announced_ == 0, "a task that was withdrawn ran"); }

 private:
  Slot* slot_;
  std::vector<uint8_t> block_;
  Execution execution_;
  uint32_t ending_;  // 0: as performed, 1: taken back, 2: released
  std::atomic<int> runs_{0}, announced_{0};
  Signal done_;
};

constexpr int submitters = 20;  // more than there are threads in a set

struct Set {
  Threads threads;
  Barrier barrier{submitters};
  std::atomic<int> pause{-1};  // the round before which all pause
};

void submit_jobs(Set* set, int lane, uint64_t seed) {
  Random random(seed);
  std::string dir = scratch + "/job-" + std::to_string(lane);
  ::mkdir(dir.c_str(), 0755);
  std::deque<Slot> slots;
  for (int i = 0; i < 3; i++) slots.emplace_back(dir + "/" + std::to_string(i), 40);
  bool is_first = lane % submitters == 0;
  auto pause = Clock::now() + std::chrono::seconds(2);
  for (int round = 0; !is_over; round++) {
    if (can_mount && random.one_in(2000)) {
      CHECK(unshare(CLONE_NEWNS) == 0, "unshare: errno %d", errno);
      counts.namespaces++;
    }
    std::deque<Job> jobs;
    int count = random.between(1, 3);
    for (int i = 0; i < count; i++) {
      auto kind = static_cast<Slot::Kind>(random.below(Slot::nodes + 1));
      jobs.emplace_back(&slots[static_cast<size_t>(i)], kind, random);
    }
    if (is_first && Clock::now() > pause) {
      set->pause = round;
      pause = Clock::now() + std::chrono::seconds(4);
    }
    set->barrier.wait();
    if (set->pause == round) sleep_until_threads_end(random);
    for (Job& job : jobs) {
      int error = set->threads.submit(&job);
      CHECK(error == 0, "submit: errno %d", error);
      counts.tasks++;
    }
    bool withdraws = random.one_in(3);
    for (Job& job : jobs) {
      if (withdraws && set->threads.withdraw(&job)) {
        job.check_withdrawn();
        counts.withdrawn++;
      } else {
        job.await();
      }
    }
  }
  set->barrier.leave();
}

// ---------------------------------------------------------------------------------------------------------
// Walks of a tree while it changes

constexpr int walkers = 2;

std::string walk_tree() { return scratch + "/walked"; }
std::string outside_tree() { return scratch + "/outside"; }

std::string random_place(Random& random) {
  std::string path = walk_tree();
  for (uint32_t depth = 1 + random.below(6); depth > 0; depth--) path += "/" + std::string(1, static_cast<char>('a' + random.below(4)));
  return path;
}

// Makes, moves and removes entries, and puts links to another tree in their places.
void change_tree(uint64_t seed) {
  Random random(seed);
  while (!is_over) {
    std::string path = random_place(random), other = random_place(random);
    switch (random.below(8)) {
      case 0:
      case 1:
      case 2:
        mkdir(path.c_str(), 0755);
        break;
      case 3: {
        int fd = open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
        if (fd >= 0) close(fd);
        setxattr(path.c_str(), "user.overlay.opaque", "x", 1, 0);
        break;
      }
      case 4:
        rename(path.c_str(), other.c_str());
        break;
      case 5:
        if (symlink(outside_tree().c_str(), path.c_str()) != 0) unlink(path.c_str());
        break;
      case 6:
        if (random.one_in(20)) remove_tree(AT_FDCWD, path.c_str());
        break;
      case 7:
        renameat2(AT_FDCWD, path.c_str(), AT_FDCWD, other.c_str(), abi::rename_exchange);
        break;
    }
  }
}

// Checks that the records of a batch are whole, and that each entry has its directory before it.
void check_records(Records& records, uint32_t* depth, bool* is_broken) {
  const uint8_t* at = records.data();
  const uint8_t* end = at + records.size();
  while (at < end) {
    Record record;
    memcpy(&record, at, sizeof record);
    CHECK(record.size >= sizeof record && record.size % 8 == 0 && record.size <= static_cast<size_t>(end - at), "size %u", record.size);
    CHECK(sizeof record + record.name_size + record.target_size + record.attributes_size <= record.size, "parts");
    std::string name(reinterpret_cast<const char*>(at + sizeof record), record.name_size);
    CHECK(name != "secret", "a walk is outside of its tree");
    *is_broken = (record.flags & is_broken_off) != 0;
    CHECK(*is_broken || record.depth <= *depth + 1, "depth %u after %u", record.depth, *depth);
    *depth = record.depth;
    counts.walked++;
    at += record.size;
  }
}

void run_walks(uint64_t seed) {
  Random random(seed);
  while (!is_over) {
    auto* walk = new Walk(random.below(16) | follow_root);
    uint32_t depth = 0, entry = 0;
    bool is_broken = false;
    const bool is_left_early = random.one_in(10);
    for (int round = 0; !is_left_early || round < 2; round++) {
      uint32_t to_skip = random.one_in(3) ? random.below(entry + 1) : 0;
      long count = walk->next(AT_FDCWD, walk_tree().c_str(), 1 + random.below(4096), to_skip);
      CHECK(count >= 0, "a walk fails: %ld", count);
      if (count == 0) break;
      CHECK(!is_broken, "a walk goes on behind its end");
      check_records(walk->records(), &depth, &is_broken);
      entry += static_cast<uint32_t>(count);
    }
    if (is_broken) counts.lost++;
    counts.walks++;
    delete walk;
  }
}

void make_walked() {
  for (const std::string& path : {walk_tree(), outside_tree(), outside_tree() + "/secret"}) {
    CHECK(mkdir(path.c_str(), 0755) == 0, "mkdir %s: errno %d", path.c_str(), errno);
  }
}

void remove_walked() {
  for (const std::string& path : {walk_tree(), outside_tree()}) {
    long result = remove_tree(AT_FDCWD, path.c_str());
    CHECK(result == 0, "%s: %ld", path.c_str(), result);
  }
}

// ---------------------------------------------------------------------------------------------------------
// Processes that exit with operations under way

int exit_under_way(const std::string& dir, uint64_t seed) {
  std::thread(keep_gate).detach();
  Random random(seed);
  auto* program = new Program(dir, seed, false);
  program->run(random.between(1, 40), false);
  exit(0);  // runs no hooks, as process.exit() on the main thread
}

std::vector<std::string> mounts_below(const std::string& dir) {
  std::vector<std::string> found;
  FILE* file = fopen("/proc/thread-self/mountinfo", "re");
  CHECK(file != nullptr, "mountinfo: errno %d", errno);
  char* line = nullptr;
  size_t size = 0;
  while (getline(&line, &size, file) > 0) {
    char target[4096];
    if (sscanf(line, "%*s %*s %*s %*s %4095s", target) == 1 && std::string(target).starts_with(dir + "/")) {
      found.push_back(target);
    }
  }
  free(line);
  fclose(file);
  return found;
}

void run_exits(int count, uint64_t seed) {
  std::map<pid_t, std::string> running;
  for (int i = 0; i < count || !running.empty();) {
    if (i < count && running.size() < 3) {
      std::string dir = scratch + "/exit-" + std::to_string(i);
      std::string number = std::to_string(seed + static_cast<uint64_t>(i));
      const char* arguments[] = {"hammer", "--exit", dir.c_str(), scratch.c_str(), number.c_str(), nullptr};
      pid_t child;
      int error = posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, const_cast<char**>(arguments), environ);
      CHECK(error == 0, "posix_spawn: errno %d", error);
      running[child] = dir;
      i++;
      continue;
    }
    int status;
    pid_t child = waitpid(-1, &status, 0);
    CHECK(child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0, "a process that exits: status %x", status);
    std::string dir = running[child];
    running.erase(child);
    counts.exits++;
    std::vector<std::string> left = mounts_below(dir);
    CHECK(left.empty(), "%s is mounted after its process exited", left[0].c_str());
    for (const std::string& slot : entries(dir)) {
      left = entries(dir + "/" + slot + "/d");
      CHECK(left.empty(), "%s/%s/d/%s is there after its process exited", dir.c_str(), slot.c_str(), left[0].c_str());
    }
  }
}

// ---------------------------------------------------------------------------------------------------------
// The whole

int count_descriptors() { return static_cast<int>(entries("/proc/self/fd").size()); }

int count_own_threads() {
  int count = 0;
  for (const std::string& id : entries("/proc/self/task")) {
    char name[16] = "";
    FILE* file = fopen(("/proc/self/task/" + id + "/comm").c_str(), "re");
    if (file == nullptr) continue;
    if (fgets(name, sizeof name, file) != nullptr && strcmp(name, "overlayfs\n") == 0) count++;
    fclose(file);
  }
  return count;
}

void make_scratch() {
  const char* tmp = getenv("TMPDIR");
  std::string path = std::string(tmp != nullptr ? tmp : "/tmp") + "/overlayfs-hammer-XXXXXX";
  CHECK(mkdtemp(path.data()) != nullptr, "mkdtemp %s: errno %d", path.c_str(), errno);
  scratch = path;
  can_mount = unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
              ::mount("hammer", scratch.c_str(), "tmpfs", 0, "") == 0;
  if (!can_mount) printf("hammer: cannot mount here, does without (errno %d)\n", errno);
  CHECK(mkfifo((scratch + "/gate").c_str(), 0600) == 0, "mkfifo: errno %d", errno);
}

void remove_scratch() {
  if (can_mount) {
    std::vector<std::string> left = mounts_below(scratch);
    CHECK(left.empty(), "%s is still mounted", left[0].c_str());
    CHECK(umount2(scratch.c_str(), MNT_DETACH) == 0, "umount: errno %d", errno);
    CHECK(rmdir(scratch.c_str()) == 0, "rmdir: errno %d", errno);
  } else {
    long result = remove_tree(AT_FDCWD, scratch.c_str());
    CHECK(result == 0, "%s: %ld", scratch.c_str(), result);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 5 && strcmp(arguments[1], "--exit") == 0) {
    scratch = arguments[3];
    can_mount = is_mounted(scratch);
    return exit_under_way(arguments[2], strtoull(arguments[4], nullptr, 10));
  }
  int seconds = 20;
  uint64_t seed = static_cast<uint64_t>(time(nullptr));
  for (int i = 1; i + 1 < count; i += 2) {
    if (strcmp(arguments[i], "--seconds") == 0) seconds = atoi(arguments[i + 1]);
    if (strcmp(arguments[i], "--seed") == 0) seed = strtoull(arguments[i + 1], nullptr, 10);
  }
  printf("hammer: --seconds %d --seed %llu\n", seconds, static_cast<unsigned long long>(seed));
  fflush(stdout);

  make_scratch();
  run_exits(seconds * 2, seed);
  int descriptors = count_descriptors();

  std::thread gate(keep_gate);
  std::vector<std::thread> members;
  constexpr int lanes = 8, sets = 2;
  static Barrier lane_barrier(lanes);
  static Set* const all_sets = new Set[sets];  // never deleted: their threads may be about to end
  for (int lane = 0; lane < lanes; lane++) {
    members.emplace_back(run_environments, lane, seed * 1000 + static_cast<uint64_t>(lane), &lane_barrier);
  }
  for (int i = 0; i < sets; i++) {
    for (int lane = i * submitters; lane < (i + 1) * submitters; lane++) {
      members.emplace_back(submit_jobs, &all_sets[i], lane, seed * 2000 + static_cast<uint64_t>(lane));
    }
  }
  make_walked();
  members.emplace_back(change_tree, seed * 3000);
  for (int i = 1; i <= walkers; i++) members.emplace_back(run_walks, seed * 3000 + static_cast<uint64_t>(i));
  std::thread terminator(terminate_some);
  sleep_us(seconds * 1'000'000);
  is_over = true;
  for (std::thread& member : members) member.join();
  terminator.join();

  auto end = Clock::now() + std::chrono::seconds(30);
  while (count_own_threads() > 0) {
    CHECK(Clock::now() < end, "%d threads have not ended", count_own_threads());
    sleep_us(20'000);
  }
  gate_ends = true;
  gate.join();
  remove_walked();
  int left = count_descriptors();
  CHECK(left == descriptors, "%d descriptors, %d before", left, descriptors);
  remove_scratch();

  printf("hammer: %d environments, %d promises: %d kept, %d failed, %d cancelled, %d without a thread, "
         "%d left by their environments; %d plans at once; %d tasks, %d withdrawn; %d namespaces; %d exits; "
         "%d walks of %d entries, %d lost their way\n",
         counts.environments.load(), counts.started.load(), counts.kept.load(), counts.failed.load(),
         counts.cancelled.load(), counts.refused.load(), counts.unsettled.load(), counts.performed.load(),
         counts.tasks.load(), counts.withdrawn.load(), counts.namespaces.load(), counts.exits.load(),
         counts.walks.load(), counts.walked.load(), counts.lost.load());
  return 0;
}
