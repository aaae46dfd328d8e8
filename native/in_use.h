// Which directories overlays use as upper or work, for all threads of the process.
//
// The kernel accepts one upper for two overlays, and both go wrong then. This record holds the overlays that the
// process has mounted, and those that it has seen in the mount table. An overlay leaves the record only when the kernel
// says that its superblock is gone, since a clone, an open file or another namespace can keep it alive unseen:
//
// - ustat(2) finds its device number no more. It waits for a superblock that is ending.
// - A new superblock has the same device number.
// - Where ustat(2) is missing (arm64, some seccomp filters) or cannot find it, a watch on the root of the overlay reports
//   IN_UNMOUNT, inotify(7). A watch costs as much as a tenth of a mount on tmpfs, so it is not the first choice.
//
// A device number that lives may be another superblock's by now. An overlay whose mount the namespace still shows is
// in use for certain; of any other the record says that it does not know, and the caller has the kernel decide by an
// attempt to mount.
//
// No lock is held while ustat(2) is asked, which can wait as long as an upper is written back.
//
// reserve(), reserve_target() and is_mounted() neither take memory nor free it: they also run in a child that shares the
// memory of this process while its caller waits. Each change of a list is one write, so that a child that is killed
// leaves none in pieces.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace overlayfs {

// A directory. The kernel keeps the inode of one that is in use, so no other directory gets its number.
struct DirectoryKey {
  uint64_t device;
  uint64_t inode;

  bool operator==(const DirectoryKey&) const = default;
};

// What a directory is to an overlay, or to a plan.
enum class Role : int32_t { upper, work, target, count };

// A lock whose owner may be killed: a child process that shares this process's memory. Whoever has made the child takes
// the lock back then. A child is known by its own token; all others share `anybody`.
class OwnedLock {
 public:
  static constexpr uint32_t anybody = 1;

  void lock(uint32_t token);
  void unlock();
  // After the child with this token has been killed.
  void take_back(uint32_t token);

 private:
  uint32_t owner_ = 0;
  uint32_t waiting_ = 0;
};

// Which uses by others stand in the way of a reservation.
enum class Against : int32_t { nobody, everybody, certain };

class InUse {
 public:
  struct Overlay;

  // Who uses a directory.
  struct User {
    uint64_t mount;   // the id of the mount by which the overlay was seen; 0 while it is being mounted
    uint64_t device;  // of its superblock
    int64_t role;
  };

  // A reservation for one plan, of nothing yet; for one that a child performs, `in_child`.
  Overlay* prepare(bool in_child);

  // The child that has used the reservation was killed.
  void recover(Overlay* reservation);

  // 0, and the directory is reserved; EBUSY where an overlay uses it, or a plan is about to; ESTALE where nothing here
  // tells. Of a directory that the plan has made (`is_new`) only those count that have come since the plan began: the
  // others mean one that had its number before.
  int reserve(Overlay* reservation, DirectoryKey key, Role role, Against against, bool is_new);

  // How many plans have ended that had a target: what was seen of a target before may have changed since.
  uint64_t ended_targets() const { return __atomic_load_n(&ended_targets_, __ATOMIC_ACQUIRE); }

  // 0, and no other plan mounts on this target meanwhile; EBUSY where one is about to; EAGAIN where plans have ended
  // since there were so many.
  int reserve_target(Overlay* reservation, DirectoryKey key, uint64_t ended);

  // The overlay of the reservation is there. ROOT is a descriptor of its root.
  void is_mounted(Overlay* reservation, uint64_t mount, uint64_t device, int root);

  // The plan has ended: what it has reserved, and not mounted, is free.
  void end(Overlay* reservation);

  // An overlay that another program has mounted uses a directory. ROOT may be -1.
  void sees(DirectoryKey key, Role role, uint64_t mount, uint64_t device, int root);

  // As reserve() answers, and who it is about.
  int ask(DirectoryKey key, User* user);

  // The kernel says that this overlay does not use the directory any more. Another one may do so by now.
  void forget(DirectoryKey key, uint64_t mount, uint64_t device);

 private:
  struct Use;

  // ustat(2) goes through a list of all superblocks. With so many overlays a watch costs less.
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
  int state(DirectoryKey key, const Overlay* own, uint64_t since, Use** found);
  Use* find_unasked(DirectoryKey key, const Overlay* own, uint64_t since, uint64_t question) const;
  bool can_find(uint64_t device) const;
  void ask_kernel(DirectoryKey key, const Overlay& about, uint64_t question, uint32_t token);
  void begin(Overlay* overlay, uint64_t mount, uint64_t device, int root, bool is_findable);
  void watch(Overlay* overlay, int root);
  void hear();

  OwnedLock lock_;
  Overlay* dropped_ = nullptr;  // to be deleted, which takes a lock of malloc's that a child must not wait for
  Use** buckets_ = nullptr;
  size_t bucket_count_ = 0;  // a power of two
  size_t overlays_ = 0;      // how many are in the record, reservations among them
  Overlay* all_ = nullptr;
  uint64_t questions_ = 0;
  uint64_t ended_targets_ = 0;
  uint64_t time_ = 0;        // goes on with each plan that begins, and each use that is entered
  int inotify_ = -1;
  uint32_t unheard_ = 0;     // watches added since hear()
};

extern InUse directories_in_use;

}  // namespace overlayfs
