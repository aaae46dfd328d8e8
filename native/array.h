// An array that grows in place, in memory of its own.
#pragma once

#include <stddef.h>
#include <sys/mman.h>

#include "syscalls.h"

namespace overlayfs {

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer has to be told that an address is another mapping's by now, and knows libc's functions only.
inline void unmap(void* at, size_t size) { ::munmap(at, size); }
inline void* map_again(void* at, size_t size, size_t room) {
  void* made = at == nullptr ? ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                             : ::mremap(at, size, room, MREMAP_MAYMOVE);
  return made == MAP_FAILED ? nullptr : made;
}
#else
inline void unmap(void* at, size_t size) { sys::call(abi::munmap, at, size); }
inline void* map_again(void* at, size_t size, size_t room) {
  constexpr int access = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS;
  long made = at == nullptr ? sys::call(abi::mmap, nullptr, room, access, kind, -1, 0L)
                            : sys::call(abi::mremap, at, size, room, MREMAP_MAYMOVE);
  return made < 0 && made > -4096 ? nullptr : reinterpret_cast<void*>(made);
}
#endif

// Memory straight from the kernel: a child process that shares this process's memory must not wait for a lock of
// malloc's.
template <typename T>
class Array {
 public:
  Array() = default;
  ~Array() {
    if (items_ != nullptr) unmap(items_, room_ * sizeof(T));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  size_t size() const { return size_; }
  T& operator[](size_t i) { return items_[i]; }
  T& back() { return items_[size_ - 1]; }
  const T& operator[](size_t i) const { return items_[i]; }
  T* data() { return items_; }
  void resize(size_t size) { size_ = size; }

  bool reserve(size_t more) {
    if (size_ + more <= room_) return true;
    size_t room = room_ == 0 ? 65536 / sizeof(T) : room_;
    while (room < size_ + more) room *= 2;
    void* made = map_again(items_, room_ * sizeof(T), room * sizeof(T));
    if (made == nullptr) return false;
    items_ = static_cast<T*>(made);
    room_ = room;
    return true;
  }

 private:
  T* items_ = nullptr;
  size_t size_ = 0, room_ = 0;
};

}  // namespace overlayfs
