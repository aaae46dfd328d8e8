// A plan is a list of kernel calls in one block of memory. TypeScript decides which calls it holds, in which order, and
// with which fallbacks. An Execution performs the plan. It takes back what it did when a step fails or when the caller
// gives up the result. This file holds no policy.
//
// The block, with all numbers in the machine's byte order:
//
//   Header        the number of steps, and the place of the outputs
//   Step[count]   a call, its arguments, the errors that it tolerates
//   texts         paths and values, each aligned to 4 bytes: int32 length, bytes, NUL
//   outputs       the steps' reports: int32 result, 4 bytes unused, then what the call returned
//
// Some steps return data of a size unknown beforehand (read_file, mount_ids, mount_table, mount_of, namespace_tables,
// walk, examine).
// It is in the plan's data, and the step's output holds its place: uint32 offset, uint32 size.
//
// A descriptor argument is a number as the kernel takes it, or `made_by` | the index of the step that makes it. A text
// argument is its offset in the block, 0 for NULL. A text of negative length names descriptors, so it is put together
// when its step is reached. Its length is -(bytes that follow), and pieces follow it. A piece is an int32 length and
// its bytes padded to 4, or -1 and a descriptor argument that is written in decimal. Behind the pieces there is room
// for the complete text.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "in_use.h"

namespace overlayfs {

// In the second column of the table below: the call returns a new descriptor. The other bits of the column are the
// positions of the call's descriptor arguments.
constexpr uint32_t makes_descriptor = 1U << 8;

// The calls that a plan may hold. lib/kernel/calls.ts describes their other arguments; it reads the numbers and the
// second column from the addon.
#define OVERLAYFS_CALLS(X) \
  X(openat2, makes_descriptor | 0b1) \
  X(close, 0b1)            \
  X(read, 0b1)             \
  X(fsopen, makes_descriptor) \
  X(fsconfig, 0b10001)     \
  X(fsmount, makes_descriptor | 0b1) \
  X(fspick, makes_descriptor | 0b1) \
  X(fstatfs, 0b1)          \
  X(statfs, 0)             \
  X(statx, 0b1)            \
  X(guard, 0)              \
  X(mount_setattr, 0b1000001) \
  X(open_tree, makes_descriptor | 0b1) \
  X(move_mount, 0b101)     \
  X(mount, 0b100000)       \
  X(umount2, 0)            \
  X(mkdirat, 0b1)          \
  X(resemble, 0b1)         \
  X(mknodat, 0b1)          \
  X(linkat, 0b101)         \
  X(unlinkat, 0b1)         \
  X(renameat2, 0b101)      \
  X(setxattr, 0)           \
  X(getxattr, 0)           \
  X(lgetxattr, 0)          \
  X(faccessat2, 0b1)       \
  X(readlinkat, 0b1)       \
  X(name_to_handle_at, 0b1) \
  X(open_by_handle_at, makes_descriptor | 0b1) \
  X(reserve, 0b1)          \
  X(reserve_target, 0b1)   \
  X(apart, 0b111)          \
  X(record, 0b1)           \
  X(sees, 0)               \
  X(use_of, 0b1)           \
  X(forget, 0b1)           \
  X(news, 0)               \
  X(seen, 0)               \
  X(whiteout, 0b1)         \
  X(replace, 0b1)          \
  X(remove, 0b1)           \
  X(scan, 0b1)             \
  X(write_tree, 0b1)       \
  X(unshare, 0)            \
  X(setns, 0b1)            \
  X(write, 0)              \
  X(userns, makes_descriptor) \
  X(userns_by, makes_descriptor) \
  X(userns_own, makes_descriptor) \
  X(chdir, 0)              \
  X(pivot, 0b1)            \
  X(flock, 0b1)            \
  X(fsync, 0b1)            \
  X(fchownat, 0b1)         \
  X(set_project, 0b1)      \
  X(set_flags, 0b1)        \
  X(quotactl_fd, 0b1)      \
  X(fanotify_init, makes_descriptor) \
  X(listmount, 0)          \
  X(statmount, 0)          \
  X(open_tree_attr, 0)     \
  X(fanotify_mark, 0b1001) \
  X(read_file, 0b1)        \
  X(mount_ids, 0b1)        \
  X(mount_table, 0b1)      \
  X(mount_of, 0b1)         \
  X(namespace_tables, 0b1) \
  X(walk, 0b1)             \
  X(examine, 0b1)          \
  X(compare, 0b101)        \
  X(read_files, 0)         \
  X(hash, 0)               \
  X(wait_for, 0b1)         \
  X(notify, 0)             \
  X(exit_after, 0)         \
  X(probe, 0)

enum class Call : int32_t {
#define OVERLAYFS_CALL(name, descriptors) name,
  OVERLAYFS_CALLS(OVERLAYFS_CALL)
#undef OVERLAYFS_CALL
};

// The faults that a plan guards against, because the kernel does not. A step that finds one fails and reports the guard
// instead of an errno. TypeScript reads the numbers from the addon (lib/kernel/guards.ts).
#define OVERLAYFS_GUARDS(X) \
  X(target_is_mount_point) \
  X(target_is_symlink) \
  X(target_is_reserved) \
  X(target_was_replaced) \
  X(mount_is_another) \
  X(mounts_are_unknown) \
  X(directory_is_removed) \
  X(directory_is_in_use) \
  X(layers_overlap) \
  X(upperdir_is_immutable) \
  X(superblock_is_read_only) \
  X(file_system_is_overlay) \
  X(file_system_is_no_overlay)

enum class Guard : int32_t {
#define OVERLAYFS_GUARD(name) name,
  OVERLAYFS_GUARDS(OVERLAYFS_GUARD)
#undef OVERLAYFS_GUARD
};

// The result of a step that a guard fails. The kernel's errnos are smaller.
constexpr long first_guard = 4096;
constexpr long fails_by(Guard guard) { return -(first_guard + static_cast<long>(guard)); }

// The flags of a step. TypeScript reads these from the addon too.
enum StepFlag : int32_t {
  undo = 1,   // take this step back when the plan fails or its caller gives it up
  keep = 2,   // the descriptor that this step makes is the caller's when the plan succeeds
  later = 4,  // performed only when the plan is taken back, not in its turn
};

// The flags of a plan.
enum PlanFlag : int32_t {
  // The steps change the working directory or the mount namespace, which the caller's thread shares with all other
  // threads of the process. So they are performed on a thread made for them, which ends with them. If they are taken
  // back later, that happens on another such thread, which repeats the steps `unshare` and `setns`. `setns` is marked
  // `undo`, so that its descriptor stays open until then. The steps before it are undone in the caller's namespace.
  own_thread = 1,
  // The steps change namespaces that a thread of a process with several threads cannot change. So they are performed in
  // a child process made for them. It shares memory and descriptors with this process and ends with the steps.
  in_child = 2,
};

constexpr int32_t made_by = 0x40000000;
constexpr uint32_t any_errno = 0xffffffff;

struct Header {
  int32_t count;
  int32_t outputs;       // offset in the block
  int32_t outputs_size;
  int32_t flags;
};

struct Step {
  Call call;
  int32_t flags;
  uint32_t tolerated;  // up to four errnos, a byte each, with which the step counts as done; or any_errno
  int32_t output;      // offset in the block, 0 for none
  int32_t result;      // filled in: what the call returned, or minus the errno, or fails_by()
  int32_t a[8];
};
static_assert(sizeof(Header) == 16 && sizeof(Step) == 52);

// A number of 64 bits is two arguments.
inline uint64_t whole(int32_t low, int32_t high) {
  return static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low);
}

// The output of the call statx; lib/kernel/stat.ts reads it.
struct StatxReport {
  uint64_t mask;
  uint64_t mode;
  uint64_t inode;
  uint64_t device;      // the major number in the upper half
  uint64_t represents;  // the same, of a device node
  uint64_t size;
  uint64_t mount;
  uint64_t attributes;
  uint64_t links;
};

// Memory of the caller that a plan reads or writes without a copy.
struct Lent {
  uint8_t* at;
  size_t size;
};

struct Failure {
  int step = -1;       // the step that failed; -1: none
  int error = 0;       // its errno; 0 if a guard failed
  int guard = -1;      // the guard that failed
  int undo_error = 0;  // the errno of the first step that could not be taken back; 0: all were taken back
  std::vector<std::string> log;  // the messages of the file system context, a line each
};

class Execution {
 public:
  // Borrows the block, which must outlive this object, and a counter of the steps that are made after stop().
  explicit Execution(uint8_t* block, uint32_t* steps_after_stop = nullptr);
  ~Execution() { end_reservation(); }
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  // Before perform(): the caller's memory, which stays in its place and unchanged until the plan is done.
  void lend(std::vector<Lent> memory) { lent_ = std::move(memory); }
  bool borrows() const { return !lent_.empty(); }

  // Performs the steps. If one fails, takes back what was done and returns false.
  bool perform();
  // Takes back what perform() did, and closes what it opened.
  void take_back();
  // After success: closes every descriptor that taking back would not need.
  void release();
  // After success: makes the result final. Closes every descriptor but those that the caller keeps.
  void commit();

  // For a plan that is never performed: closes the descriptors that it was given to close.
  void close_given();
  // After success: adds the caller's descriptors.
  void add_kept(std::vector<int>& to) const;

  bool can_be_taken_back() const;

  // Called from another thread when the environment ends: from now on, the plan begins nothing that would outlive the
  // process. Returns false if it already has.
  bool stop();
  const Failure& failure() const { return failure_; }
  const uint8_t* outputs() const { return block_ + header().outputs; }
  size_t outputs_size() const { return static_cast<size_t>(header().outputs_size); }
  const std::vector<uint8_t>& data() const { return data_; }

  // Returns whether the plan begins by waiting for a descriptor, and for which events (poll(2)).
  bool waits_for(int* fd, uint32_t* events) const;
  // Records that the plan could not begin to wait.
  void refuse(int error);

  // For the code of the steps.
  int descriptor(int32_t argument) const;

 private:
  class Text;
  // The last answers of statx and statfs, which the guards that follow judge. All is 0 where a call has failed.
  struct Found {
    uint32_t mode;
    uint64_t attributes;
    uint64_t mount;
    bool is_removed;
    int64_t file_system;  // f_type
    int64_t file_system_flags;
  };
  // The directories above the upperdir and the workdir, as far as their mount goes.
  struct Above {
    static constexpr int most = 64;
    uint64_t device = 0;
    uint64_t mount = 0;
    int count = -1;  // not looked for
    bool is_whole = true;
    uint64_t inodes[most];
  };
  struct WhiteoutSource {
    int dirfd = -1;
    const char* name = nullptr;
  };

  bool may_change_namespaces() const { return (header().flags & (own_thread | in_child)) != 0; }
  const Header& header() const { return *reinterpret_cast<const Header*>(block_); }
  bool run_steps();
  bool is_stopped_before(const Step& step);
  void count_step();
  bool perform_here();
  bool perform_there();
  void undo_steps(bool has_joined);
  void take_back_here();
  int run_on_own_thread(bool (Execution::*)(), bool* succeeded);
  bool rejoin_and_undo();
  long unmount_by_root(int root, bool is_tree = false) const;
  bool perform_in_child();
  void begin_failure();
  bool fail();
  long run(Step& step);
  long revert(Step& step);
  long look_at_file_system(const Step& step, long result, const abi::Statfs& found);
  long look_at_file(const Step& step);
  long check_guard(const Step& step) const;
  long notify(Step& step);
  long scan(const Step& step);
  long write_tree(const Step& step);
  long read_mount_ids(const Step& step);
  long read_mount_table(const Step& step);
  long read_mount_of(const Step& step);
  long read_namespace_tables(const Step& step);
  long read_file(const Step& step);
  long walk(const Step& step);
  long examine(const Step& step);
  long compare(const Step& step);
  long read_files(const Step& step);
  long hash(const Step& step);
  uint8_t* add_data(const Step& step, size_t size);
  long get_handle(const Step& step);
  long open_handle(const Step& step);
  long get_mount(const Step& step);
  bool find_report(const Step& step, StatxReport* report) const;
  void remember_mount(const Step& attaching);
  long list_mounts(const Step& step);
  long check_news(const Step& step);
  long see_mounts(const Step& step);
  void prepare_reservation();
  void end_reservation();
  bool is_left_to_others(const Step& making);
  long resemble(const Step& step);
  long reserve(const Step& step);
  long check_apart(const Step& step);
  void find_above(int directory);
  long reserve_target(const Step& step);
  long record(const Step& step);
  long see_use(const Step& step);
  long ask_use(const Step& step);
  long forget_use(const Step& step);
  long write_text(const char* path, int32_t argument) const;
  long write_file(const Step& step);
  long make_user_namespace(const Step& step);
  long make_user_namespace_by_programs(const Step& step);
  long make_own_user_namespace(const Step& step);
  long make_whiteout(int dirfd, const char* name);
  void read_log(int context);
  void close_result(Step& step);

  uint8_t* block_;
  Step* steps_;
  uint32_t* steps_after_stop_;
  int done_ = 0;       // the steps before this one have been performed, and not undone
  int performed_ = 0;  // while steps are undone: how many had been performed
  bool has_joined_ = false;  // another namespace, on a thread of its own
  // A bit of progress_: stop() has been called.
  static constexpr uint32_t stopped = 1;

  uint32_t progress_ = 0;    // used by stop() and is_stopped_before(), by atomic operations
  bool ran_ = false;  // run_steps() has returned, with success or without
  InUse::Overlay* reservation_ = nullptr;
  Found found_{};
  Above above_;
  WhiteoutSource whiteout_source_;
  std::vector<uint8_t> data_;
  std::vector<Lent> lent_;
  Failure failure_;
};

// Makes NAME in DIRFD a whiteout, whatever it is now; a directory only if `recursive` is set. ASIDE is a free name
// beside it.
long replace_with_whiteout(int dirfd, const char* name, const char* aside, bool recursive);

// Writes the names of the links in directory PATH that lead to a file on one of the mounts with these ids. Each name
// ends with a NUL. Writes as many names as there is room for, and returns their size. If there are none, and the
// process may not examine some links, returns the errno of these. `mask` is the statx(2) mask for ids of this kind.
long names_on_mounts(int dirfd, const char* path, uint32_t mask, const char* ids, size_t ids_size, char* names,
                     size_t room);

struct RemoveOptions {
  // Opens up a directory that its mode closes, if this user owns it.
  bool opens_up = false;
  // In NAME itself, removes only what overlayfs makes in its directory `work`. ENOTEMPTY: there is more.
  bool only_kernels = false;
  // A directory that an overlay uses as upper or work, or may use, stays. It ends the removal:
  // Guard::directory_is_in_use.
  bool spares_used = false;
  // The reservation of the plan, if a child performs it: the record's lock can then be recovered from a killed child.
  const InUse::Overlay* asker = nullptr;
  // The most entries to remove; 0: no limit.
  uint32_t limit = 0;
  // Receives the path of a failure, from NAME on.
  char* path = nullptr;
  size_t room = 0;
};

// Removes the directory NAME in DIRFD with all that it holds. Follows no link and enters no other mount: EBUSY, EXDEV.
// Returns 1 if it reached the limit before the end.
long remove_tree(int dirfd, const char* name, const RemoveOptions& options = {});

}  // namespace overlayfs
