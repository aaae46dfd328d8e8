// Records which directories overlays use as upper or work, for all threads of the process.
//
// The kernel accepts one upper for two overlays, and both then go wrong. This record holds the overlays that the
// process has mounted, and those that it has seen in the mount table. A clone, an open file or another namespace can
// keep an overlay alive unseen. So an overlay leaves the record only when the kernel reports that its superblock is
// gone, in one of three ways:
//
// - ustat(2) no longer finds its device number. ustat(2) waits for a superblock that is ending.
// - A new superblock has the same device number: an overlay that the record learns of, or a file system in /sys/class/bdi.
// - A watch on the root of the overlay reports IN_UNMOUNT, inotify(7). The record uses a watch if ustat(2) is missing
//   (arm64, some seccomp filters) or cannot find the overlay. It is not the first choice, since a watch costs up to a
//   tenth of a mount on tmpfs. A watch is also used for an overlay that was reserved against nobody: the kernel lets
//   only the first overlay claim a directory, so it would call the directory free while the second one lives.
//
// A device number that exists may belong to another superblock by now. An overlay whose mount the namespace still shows
// is certainly in use. The record reports any other overlay as unknown, and the caller lets the kernel decide by an
// attempt to mount.
//
// No lock is held during ustat(2), which can wait as long as an upper is being written back.
//
// reserve(), reserve_target() and is_mounted() neither take nor free memory: they also run in a child that shares the
// memory of this process while its caller waits. Each change of a list is one write, so a child that is killed leaves
// no list in pieces.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "abi.h"

namespace overlayfs {

// Identifies a directory. The record may hold an overlay that has ended, whose directory is gone and whose inode number
// belongs to another one. `birth` tells the two apart.
struct DirectoryKey {
  uint64_t device;
  uint64_t inode;
  uint64_t birth = 0;

  bool operator==(const DirectoryKey&) const = default;
};

// Finds the key of a directory. FLAGS: AT_SYMLINK_NOFOLLOW, or 0. FOUND also has the id of the mount. Returns 0, or
// minus the errno.
long find_key(int dirfd, const char* path, int flags, DirectoryKey* key, abi::Statx* found = nullptr);

// The role of a directory for an overlay, or for a plan.
enum class Role : int32_t { upper, work, target, count };

// A lock whose owner may be killed: a child process that shares this process's memory. The thread that made the child
// then takes the lock back. Each child has a token of its own; all other owners share `anybody`.
class OwnedLock {
 public:
  static constexpr uint32_t anybody = 1;

  void lock(uint32_t token);
  void unlock();
  // Releases the lock after the child with this token was killed.
  void take_back(uint32_t token);

 private:
  uint32_t owner_ = 0;
  uint32_t waiting_ = 0;
};

// The record of the use of a directory as upper or work. `possible`: it cannot tell if the user still
// exists.
enum class Usage : int32_t { none, possible, certain };

// The uses by others that block a reservation.
enum class Against : int32_t { nobody, everybody, certain };

class InUse {
 public:
  struct Overlay;

  // The user of a directory.
  struct User {
    uint64_t mount;   // the id of the mount by which the overlay was seen; 0 while it is being mounted
    uint64_t device;  // the device number of its superblock
    int64_t role;
  };

  // Returns an empty reservation for one plan. `in_child` is set if a child performs the plan.
  Overlay* prepare(bool in_child);

  // Recovers the lock after the child that used the reservation was killed.
  void recover(Overlay* reservation);

  // Reserves a directory, unless an overlay uses it, or may use it, or a plan is about to. For a directory that the
  // plan has made (`is_new`), only uses since the plan began count: earlier ones mean another directory that had the
  // same number.
  bool reserve(Overlay* reservation, DirectoryKey key, Role role, Against against, bool is_new);

  // Keeps other plans from mounting on this target. Fails if another plan has reserved it, or had until after this plan
  // began: this plan may have opened the directory that the other has mounted on.
  bool reserve_target(Overlay* reservation, DirectoryKey key);

  // Records that the overlay of the reservation is mounted. ROOT is a descriptor of its root.
  void is_mounted(Overlay* reservation, uint64_t mount, uint64_t device, int root);

  // Ends the plan's reservation: directories that it has reserved and not mounted become free.
  void end(Overlay* reservation);

  // Records that an overlay mounted by another program uses a directory. ROOT may be -1.
  void sees(DirectoryKey key, Role role, uint64_t mount, uint64_t device, int root);

  // Returns the use of a directory, and tells the user.
  Usage ask(DirectoryKey key, User* user, const Overlay* asker = nullptr);

  // Records the kernel's answer that this overlay no longer uses the directory. Another overlay may use it by now.
  void forget(DirectoryKey key, uint64_t mount, uint64_t device);

 private:
  struct Use;

  // ustat(2) walks a list of all superblocks. With this many overlays a watch costs less.
  static constexpr size_t many = 512;

  Use** bucket(DirectoryKey key) const;
  void link(Use* use);
  void enter(Use* use, DirectoryKey key);
  void unlink(Use* use);
  void drop(Overlay* overlay);
  template <typename Predicate>
  void drop_each(DirectoryKey key, Predicate is_dropped);
  void make_room();
  Overlay* add();
  Usage usage(DirectoryKey key, const Overlay* own, uint64_t since, Use** found);
  Use* find_unasked(DirectoryKey key, const Overlay* own, uint64_t since, uint64_t question) const;
  bool can_find(uint64_t device) const;
  void ask_kernel(DirectoryKey key, const Overlay& about, uint64_t question, uint32_t token);
  void begin(Overlay* overlay, uint64_t mount, uint64_t device, int root, bool is_findable);
  void watch(Overlay* overlay, int root);
  void hear();

  OwnedLock lock_;
  Overlay* dropped_ = nullptr;  // to be deleted, which takes a malloc lock that a child must not wait for
  Use** buckets_ = nullptr;
  size_t bucket_count_ = 0;  // a power of two
  size_t overlays_ = 0;      // the number in the record, reservations included
  Overlay* all_ = nullptr;
  uint64_t questions_ = 0;
  // The targets of plans that have ended, the last ones. More plans do not end during one.
  static constexpr size_t most_ended = 1024;
  struct EndedTarget {
    DirectoryKey key;
    uint64_t time;
  } ended_targets_[most_ended] = {};
  size_t ended_count_ = 0;
  uint64_t time_ = 0;        // advances with each plan that begins, and each use that is entered
  int inotify_ = -1;
  uint32_t unheard_ = 0;     // watches added since hear()
};

extern InUse directories_in_use;

}  // namespace overlayfs
