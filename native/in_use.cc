#include "in_use.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/inotify.h>

#include "syscalls.h"
#include "text.h"

namespace overlayfs {

InUse directories_in_use;

namespace {

// Returns whether ustat(2) exists and answers. It walks all superblocks, so it is not used when there are many.
bool has_ustat() {
  static int known = 0;  // 1: yes, -1: no; every thread that finds it out finds the same
  int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
  if (answer == 0) {
    // No superblock has this number.
    answer = sys::ustat(UINT64_MAX) == -EINVAL ? 1 : -1;
    __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
  }
  return answer > 0;
}

// Returns whether a file system with a backing device of its own has this number: FUSE, NFS and others that may not
// answer. ustat(2) asks the file system for its figures, and waits for them; sysfs knows without it. No overlay has one.
bool is_taken(uint64_t device) {
  char path[64] = "/sys/class/bdi/";
  size_t length = strlen(path);
  length += write_decimal(path + length, static_cast<int>(device >> 32));
  path[length++] = ':';
  length += write_decimal(path + length, static_cast<int>(device & 0xffffffff));
  path[length] = '\0';
  abi::Statx found;
  return sys::statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, 0, &found) == 0;
}

// Returns whether this mount namespace shows the mount, and the mount is of this superblock.
bool is_shown(uint64_t mount, uint64_t device) {
  if (mount <= INT32_MAX) return false;  // an id that is not unique may belong to another mount by now
  abi::Statmount found;
  abi::MountIdRequest request{abi::mount_id_request_6_8, 0, mount, abi::statmount_sb_basic, 0};
  return sys::statmount(&request, &found, sizeof found) == 0 &&
         (static_cast<uint64_t>(found.sb_dev_major) << 32 | found.sb_dev_minor) == device;
}

class Locked {
 public:
  Locked(OwnedLock& lock, uint32_t token) : lock_(lock) { lock_.lock(token); }
  ~Locked() { lock_.unlock(); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  OwnedLock& lock_;
};

// Keys that find an overlay by its device number and by its watch: no directory has such an inode.
DirectoryKey by_device(uint64_t device) { return {device, UINT64_MAX}; }
DirectoryKey by_watch(int watch) { return {static_cast<uint64_t>(watch), UINT64_MAX - 1}; }

}  // namespace

// The birth is a hash of the file handle, which holds the generation of the inode. The time of birth stands in only where
// there are no handles: the clock of a file system stands still for milliseconds.
long find_key(int dirfd, const char* path, int flags, DirectoryKey* key, abi::Statx* to) {
  abi::Statx found;
  const unsigned mask = abi::statx_ino | abi::statx_btime | abi::statx_mnt_id;
  long result = sys::statx(dirfd, path, flags | AT_EMPTY_PATH | abi::at_statx_dont_sync, mask, &found);
  if (result < 0) return result;
  *key = {static_cast<uint64_t>(found.dev_major) << 32 | found.dev_minor, found.ino,
          static_cast<uint64_t>(found.btime.tv_sec) * 1'000'000'000 + found.btime.tv_nsec};
  if (to != nullptr) *to = found;
  abi::FileHandle handle{abi::max_handle_size, 0, {}};
  int mount_id;
  const int follow = flags & AT_SYMLINK_NOFOLLOW ? 0 : AT_SYMLINK_FOLLOW;
  if (sys::name_to_handle_at(dirfd, path, &handle, &mount_id, follow | AT_EMPTY_PATH) < 0) return 0;
  key->birth = 0xcbf29ce484222325;  // FNV-1a
  for (uint32_t i = 0; i < handle.size; i++) key->birth = (key->birth ^ handle.bytes[i]) * 0x100000001b3;
  return 0;
}

void OwnedLock::lock(uint32_t token) {
  for (;;) {
    uint32_t owner = 0;
    if (__atomic_compare_exchange_n(&owner_, &owner, token, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
    __atomic_add_fetch(&waiting_, 1, __ATOMIC_SEQ_CST);
    ::syscall(abi::futex, &owner_, FUTEX_WAIT_PRIVATE, owner, nullptr, nullptr, 0);
    __atomic_sub_fetch(&waiting_, 1, __ATOMIC_SEQ_CST);
  }
}

void OwnedLock::unlock() {
  __atomic_store_n(&owner_, 0, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&waiting_, __ATOMIC_SEQ_CST) != 0) {
    ::syscall(abi::futex, &owner_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
}

void OwnedLock::take_back(uint32_t token) {
  if (__atomic_load_n(&owner_, __ATOMIC_ACQUIRE) == token) unlock();
}

// One directory that an overlay, or a plan, uses.
struct InUse::Use {
  DirectoryKey key{};
  Overlay* overlay = nullptr;
  Use* next = nullptr;
  Role role = Role::upper;
  uint64_t since = 0;
  bool is_linked = false;
};

struct InUse::Overlay {
  uint64_t mount = 0;
  uint64_t device = 0;
  int watch = -1;
  bool is_mounted = false;  // else a reservation
  bool is_findable = false; // by ustat(2)
  bool is_seen = false;     // another program's
  bool is_ours = false;     // a plan's that has not ended: end() deletes it
  bool is_shared = false;   // reserved against nobody, so the kernel may count another overlay as the user
  bool is_shown = false;    // the answer to question `asked`
  uint64_t asked = 0;
  uint64_t begun = 0;       // when its plan began
  uint32_t token = OwnedLock::anybody;
  Overlay* next = nullptr;
  Overlay** at = nullptr;   // the pointer to it in the list of all
  Use uses[static_cast<size_t>(Role::count)];
  Use device_use;
  Use watch_use;
};

InUse::Use** InUse::bucket(DirectoryKey key) const {
  uint64_t hash = (key.inode ^ key.device * 0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd;
  return &buckets_[(hash >> 32) & (bucket_count_ - 1)];
}

void InUse::link(Use* use) {
  Use** at = bucket(use->key);
  use->next = *at;
  use->is_linked = true;
  *at = use;
}

void InUse::enter(Use* use, DirectoryKey key) {
  use->key = key;
  use->since = ++time_;
  link(use);
}

void InUse::unlink(Use* use) {
  if (!use->is_linked) return;
  use->is_linked = false;
  Use** at = bucket(use->key);
  while (*at != nullptr && *at != use) at = &(*at)->next;
  if (*at != nullptr) *at = use->next;
}

void InUse::drop(Overlay* overlay) {
  for (Use& use : overlay->uses) unlink(&use);
  unlink(&overlay->device_use);
  unlink(&overlay->watch_use);
  if (overlay->at == nullptr) return;
  *overlay->at = overlay->next;
  if (overlay->next != nullptr) overlay->next->at = overlay->at;
  overlay->at = nullptr;
  overlays_--;
  if (overlay->is_ours) return;  // end() deletes it
  overlay->next = dropped_;
  dropped_ = overlay;
}

template <typename Predicate>
void InUse::drop_each(DirectoryKey key, Predicate is_dropped) {
  for (Use* use = *bucket(key); use != nullptr;) {
    if (!(use->key == key) || !is_dropped(*use->overlay)) {
      use = use->next;
      continue;
    }
    drop(use->overlay);
    use = *bucket(key);  // the next one may have been the same overlay's
  }
}

// The record stays as long as the number of overlays that lived at the same time: the kernel reuses device numbers at
// once, the lowest first, and each reuse removes the overlay that had the number before.
void InUse::make_room() {
  if (overlays_ < bucket_count_ / 2) return;
  Use** old = buckets_;
  bucket_count_ = bucket_count_ == 0 ? 256 : 2 * bucket_count_;
  buckets_ = new Use*[bucket_count_]();
  auto link_again = [this](Use& use) {
    if (use.is_linked) link(&use);
  };
  for (Overlay* overlay = all_; overlay != nullptr; overlay = overlay->next) {
    for (Use& use : overlay->uses) link_again(use);
    link_again(overlay->device_use);
    link_again(overlay->watch_use);
  }
  delete[] old;
}

InUse::Overlay* InUse::add() {
  while (dropped_ != nullptr) {
    Overlay* overlay = dropped_;
    dropped_ = overlay->next;
    delete overlay;
  }
  make_room();
  auto* overlay = new Overlay;
  for (size_t i = 0; i < static_cast<size_t>(Role::count); i++) {
    overlay->uses[i].overlay = overlay;
    overlay->uses[i].role = static_cast<Role>(i);
  }
  overlay->device_use.overlay = overlay->watch_use.overlay = overlay;
  overlay->next = all_;
  overlay->at = &all_;
  if (all_ != nullptr) all_->at = &overlay->next;
  all_ = overlay;
  overlays_++;
  return overlay;
}

InUse::Overlay* InUse::prepare(bool in_child) {
  Locked locked(lock_, OwnedLock::anybody);
  Overlay* reservation = add();
  reservation->is_ours = true;
  reservation->begun = ++time_;
  // Differs from `anybody`, from 0, and from the tokens of other children at the same time.
  if (in_child) reservation->token = static_cast<uint32_t>(reservation->begun) << 1 | 0x80000000;
  return reservation;
}

void InUse::recover(Overlay* reservation) { lock_.take_back(reservation->token); }

// Returns whether ustat(2) finds a superblock that exists. The kernel looks only at the first superblock with the
// device number. The first can be one that has ended and given its number away, but is still on the list. Once the
// superblock has been found it is the first, and a later EINVAL means that it is gone.
bool InUse::can_find(uint64_t device) const {
  const bool are_few = __atomic_load_n(&overlays_, __ATOMIC_RELAXED) < many;
  return are_few && has_ustat() && sys::ustat(device) == 0;
}

// Returns the use of the directory by an overlay about which the kernel has not been asked.
InUse::Use* InUse::find_unasked(DirectoryKey key, const Overlay* own, uint64_t since, uint64_t question) const {
  for (Use* use = *bucket(key); use != nullptr; use = use->next) {
    const Overlay* other = use->overlay;
    if (!(use->key == key) || other == own || !other->is_mounted || use->since < since) continue;
    if (other->watch < 0 && other->asked < question) return use;
  }
  return nullptr;
}

// Asks without the lock, so the overlay may have left the record meanwhile.
void InUse::ask_kernel(DirectoryKey key, const Overlay& about, uint64_t question, uint32_t token) {
  const uint64_t mount = about.mount, device = about.device;
  const bool is_findable = about.is_findable;
  lock_.unlock();
  const bool is_gone = is_findable && (is_taken(device) || sys::ustat(device) == -EINVAL);
  const bool is_in_sight = !is_gone && is_shown(mount, device);
  lock_.lock(token);
  for (Use* use = *bucket(key); use != nullptr; use = use->next) {
    Overlay* overlay = use->overlay;
    if (!(use->key == key) || !overlay->is_mounted || overlay->mount != mount || overlay->device != device) continue;
    if (overlay->asked < question) overlay->asked = question;
    overlay->is_shown = is_in_sight;
    if (is_gone) drop(overlay);
    return;
  }
}

// Returns the use of the directory, leaving out that by OWN and uses before SINCE. The caller holds the lock, which is
// released meanwhile.
Usage InUse::usage(DirectoryKey key, const Overlay* own, uint64_t since, Use** found) {
  const uint64_t question = ++questions_;
  const uint32_t token = own == nullptr ? OwnedLock::anybody : own->token;
  while (const Use* use = find_unasked(key, own, since, question)) {
    ask_kernel(key, *use->overlay, question, token);
  }
  hear();
  Usage result = Usage::none;
  for (Use* use = *bucket(key); use != nullptr; use = use->next) {
    const Overlay* other = use->overlay;
    if (!(use->key == key) || other == own || use->role == Role::target || use->since < since) continue;
    // The path of another program's overlay may mean a directory that has been removed and made anew since.
    const bool is_certain = !other->is_mounted || (!other->is_seen && (other->watch >= 0 || other->is_shown));
    const Usage found_usage = is_certain ? Usage::certain : Usage::possible;
    if (found_usage <= result) continue;
    result = found_usage;
    if (found != nullptr) *found = use;
  }
  return result;
}

bool InUse::reserve(Overlay* reservation, DirectoryKey key, Role role, Against against, bool is_new) {
  Locked locked(lock_, reservation->token);
  Use& use = reservation->uses[static_cast<size_t>(role)];
  if (use.is_linked) return use.key == key;
  if (against == Against::nobody) reservation->is_shared = true;
  if (against != Against::nobody) {
    const Usage by_others = usage(key, reservation, is_new ? reservation->begun : 0, nullptr);
    if (by_others == Usage::certain || (by_others == Usage::possible && against == Against::everybody)) return false;
  }
  enter(&use, key);
  return true;
}

bool InUse::reserve_target(Overlay* reservation, DirectoryKey key) {
  Locked locked(lock_, reservation->token);
  for (Use* use = *bucket(key); use != nullptr; use = use->next) {
    if (use->key == key && use->role == Role::target) return false;
  }
  for (size_t i = 1; i <= most_ended && i <= ended_count_; i++) {
    const EndedTarget& ended = ended_targets_[(ended_count_ - i) % most_ended];
    if (ended.time < reservation->begun) break;
    if (ended.key == key) return false;
  }
  enter(&reservation->uses[static_cast<size_t>(Role::target)], key);
  return true;
}

void InUse::begin(Overlay* overlay, uint64_t mount, uint64_t device, int root, bool is_findable) {
  overlay->mount = mount;
  overlay->device = device;
  overlay->is_mounted = true;
  overlay->is_findable = is_findable;
  overlay->device_use.key = by_device(device);
  link(&overlay->device_use);
  if (!is_findable || overlay->is_shared) watch(overlay, root);
}

void InUse::is_mounted(Overlay* reservation, uint64_t mount, uint64_t device, int root) {
  const bool is_findable = can_find(device);
  Locked locked(lock_, reservation->token);
  // The superblock is new, so any overlay that had its device number before is gone.
  drop_each(by_device(device), [](const Overlay&) { return true; });
  begin(reservation, mount, device, root, is_findable);
}

void InUse::end(Overlay* reservation) {
  Locked locked(lock_, OwnedLock::anybody);
  reservation->is_ours = false;
  const Use& target = reservation->uses[static_cast<size_t>(Role::target)];
  if (target.is_linked) ended_targets_[ended_count_++ % most_ended] = {target.key, ++time_};
  if (reservation->at == nullptr) {
    delete reservation;  // its overlay has ended meanwhile
  } else if (reservation->is_mounted) {
    unlink(&reservation->uses[static_cast<size_t>(Role::target)]);
  } else {
    drop(reservation);
  }
}

void InUse::sees(DirectoryKey key, Role role, uint64_t mount, uint64_t device, int root) {
  const bool is_findable = !is_taken(device) && can_find(device);
  Locked locked(lock_, OwnedLock::anybody);
  if (bucket_count_ == 0) make_room();
  for (Use* use = *bucket(key); use != nullptr; use = use->next) {
    const Overlay* known = use->overlay;
    if (!(use->key == key) || !known->is_mounted || known->device != device) continue;
    // A bind or a clone has a mount of its own and the same superblock.
    if (is_shown(known->mount, device)) return;
  }
  // Drops other programs' overlays with this device number that are no longer shown. The overlays that this process has
  // mounted stay: a bind of a superblock whose directories have moved has the same number.
  drop_each(by_device(device), [mount, device](const Overlay& other) {
    return other.is_seen && other.mount != mount && !is_shown(other.mount, device);
  });
  Overlay* seen = add();
  enter(&seen->uses[static_cast<size_t>(role)], key);
  seen->is_seen = true;
  begin(seen, mount, device, root, is_findable);
}

Usage InUse::ask(DirectoryKey key, User* user, const Overlay* asker) {
  Locked locked(lock_, asker == nullptr ? OwnedLock::anybody : asker->token);
  if (bucket_count_ == 0) return Usage::none;
  Use* found = nullptr;
  const Usage result = usage(key, asker, 0, &found);
  if (found != nullptr) *user = {found->overlay->mount, found->overlay->device, static_cast<int64_t>(found->role)};
  return result;
}

void InUse::forget(DirectoryKey key, uint64_t mount, uint64_t device) {
  Locked locked(lock_, OwnedLock::anybody);
  if (bucket_count_ == 0) return;
  drop_each(key, [mount, device](const Overlay& overlay) {
    return overlay.is_mounted && overlay.mount == mount && overlay.device == device;
  });
}

// If no watch can be added, the record cannot tell whether the overlay still exists.
void InUse::watch(Overlay* overlay, int root) {
  if (root < 0) return;
  if (inotify_ < 0) inotify_ = static_cast<int>(sys::call(abi::inotify_init1, IN_NONBLOCK | IN_CLOEXEC));
  if (inotify_ < 0) return;
  // The kernel keeps 16,384 events, two for each watch.
  if (++unheard_ == 2048) hear();
  char path[32] = "/proc/self/fd/";
  size_t length = strlen(path);
  length += write_decimal(path + length, root);
  path[length] = '\0';
  // The kernel always reports IN_UNMOUNT. The mask must not be empty; the root of a file system is never deleted.
  overlay->watch = static_cast<int>(sys::call(abi::inotify_add_watch, inotify_, path, IN_DELETE_SELF));
  if (overlay->watch < 0) return;
  overlay->watch_use.key = by_watch(overlay->watch);
  link(&overlay->watch_use);
}

void InUse::hear() {
  if (inotify_ < 0) return;
  unheard_ = 0;
  alignas(inotify_event) char buffer[4096];
  for (long size; (size = sys::read(inotify_, buffer, sizeof buffer)) > 0;) {
    for (long at = 0; at < size;) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
      at += static_cast<long>(sizeof *event + event->len);
      if (event->mask & IN_UNMOUNT) drop_each(by_watch(event->wd), [](const Overlay&) { return true; });
      if (!(event->mask & IN_Q_OVERFLOW)) continue;
      for (Overlay* overlay = all_; overlay != nullptr; overlay = overlay->next) {
        unlink(&overlay->watch_use);
        overlay->watch = -1;
      }
    }
  }
}

}  // namespace overlayfs
