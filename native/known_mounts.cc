// The mounts that this process knows, and the steps that find new ones: listmount(2), 6.8.
#include <errno.h>
#include <string.h>

#include "plan.h"
#include "syscalls.h"
#include "text.h"

namespace overlayfs {

namespace {

// The known mounts of this process's namespace, for all its threads: those that its plans have attached, and those that
// it has read from the mount table. The kernel assigns an id when a mount is made, and a mount may be attached later
// than one with a higher id. So a search for new mounts begins some ids below the highest known one.
class KnownMounts {
 public:
  void add(uint64_t id) { __atomic_store_n(&ids_[id % size], id, __ATOMIC_RELEASE); }
  bool has(uint64_t id) const { return __atomic_load_n(&ids_[id % size], __ATOMIC_ACQUIRE) == id; }
  // The search compares ids above this one. All ids up to `newest_` are known; it begins `slack` below.
  uint64_t start() const {
    uint64_t newest = __atomic_load_n(&newest_, __ATOMIC_ACQUIRE);
    // The kernel takes 0, or an id to begin after; ids begin above 2^31.
    return newest <= slack + (uint64_t{1} << 31) ? 0 : newest - slack;
  }
  void know_all_to(uint64_t id) {
    uint64_t before = __atomic_load_n(&newest_, __ATOMIC_ACQUIRE);
    while (before < id && !__atomic_compare_exchange_n(&newest_, &before, id, true, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    }
  }

 private:
  static constexpr uint64_t slack = 512;
  static constexpr uint64_t size = 2 * slack;  // two ids of one search never share an entry
  uint64_t ids_[size] = {};
  uint64_t newest_ = 0;
};

KnownMounts known_mounts;

long list_newer(uint64_t last, uint64_t* ids, size_t room) {
  abi::MountIdRequest request{abi::mount_id_request_6_8, 0, abi::listmount_root, last, 0};
  return sys::listmount(&request, ids, room);
}

}  // namespace

// Called before the mount is attached: otherwise another thread could see the mount before it is known.
void Execution::remember_mount(const Step& attaching) {
  StatxReport report;
  if (find_report(attaching, &report)) known_mounts.add(report.mount);
}

// listmount(room, id in two halves): lists the ids of the namespace's mounts above this one, beginning where a search
// for new mounts does; output: the last id, then all ids, with 0 for a known one. The result is their number.
long Execution::list_mounts(const Step& step) {
  const uint64_t start = known_mounts.start(), after = whole(step.a[1], step.a[2]);
  auto* last = reinterpret_cast<uint64_t*>(block_ + step.output + 8);
  uint64_t* ids = last + 1;
  long count = list_newer(after > start ? after : start, ids, static_cast<size_t>(step.a[0]));
  if (count > 0) *last = ids[count - 1];
  for (long i = 0; i < count; i++) {
    if (known_mounts.has(ids[i])) ids[i] = 0;
  }
  return count;
}

// news(): fails if the namespace has mounts that this process does not know, Guard::mounts_are_unknown.
long Execution::check_news(const Step&) {
  constexpr long room = 256;
  uint64_t ids[room];
  uint64_t last = known_mounts.start();
  for (long count = room; count == room;) {
    count = list_newer(last, ids, room);
    if (count < 0) return count;
    for (long i = 0; i < count; i++) {
      if (!known_mounts.has(ids[i])) return fails_by(Guard::mounts_are_unknown);
    }
    if (count > 0) last = ids[count - 1];
  }
  known_mounts.know_all_to(last);
  return 0;
}

// seen(ids of 64 bits each): these mounts, and all below the last one, are known from now on.
long Execution::see_mounts(const Step& step) {
  Text ids(*this, step.a[0]);
  uint64_t id = 0;
  for (size_t at = 0; at + sizeof id <= ids.size(); at += sizeof id) {
    memcpy(&id, static_cast<const char*>(ids) + at, sizeof id);
    if (id != 0) known_mounts.add(id);
  }
  known_mounts.know_all_to(id);
  return 0;
}

}  // namespace overlayfs
