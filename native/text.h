// The text arguments of a step, and numbers as text.
#pragma once

#include <string.h>

#include "plan.h"

namespace overlayfs {

// Returns the number of characters that it has written. Writes no NUL.
inline size_t write_decimal(char* to, int number) {
  char digits[12];
  size_t count = 0;
  unsigned rest = number < 0 ? 0U - static_cast<unsigned>(number) : static_cast<unsigned>(number);
  do {
    digits[count++] = static_cast<char>('0' + rest % 10);
    rest /= 10;
  } while (rest != 0);
  if (number < 0) digits[count++] = '-';
  for (size_t i = 0; i < count; i++) to[i] = digits[count - 1 - i];
  return count;
}

// A text argument as a C string. It is in the block, or is put together in the room that the block has for it.
class Execution::Text {
 public:
  Text(const Execution& execution, int32_t offset) {
    if (offset == 0) return;
    const uint8_t* at = execution.block_ + offset;
    int32_t length;
    memcpy(&length, at, sizeof length);
    at += sizeof length;
    if (length >= 0) {
      text_ = reinterpret_cast<const char*>(at);
      size_ = static_cast<size_t>(length);
      return;
    }
    put_together(execution, at, at - length);
  }
  Text(const Text&) = delete;
  Text& operator=(const Text&) = delete;

  operator const char*() const { return text_; }
  size_t size() const { return size_; }

 private:
  void put_together(const Execution& execution, const uint8_t* at, const uint8_t* end) {
    char* to = reinterpret_cast<char*>(execution.block_ + (end - execution.block_));
    while (at < end) {
      int32_t length;
      memcpy(&length, at, sizeof length);
      at += sizeof length;
      if (length < 0) {
        int32_t argument;
        memcpy(&argument, at, sizeof argument);
        at += sizeof argument;
        size_ += write_decimal(to + size_, execution.descriptor(argument));
      } else {
        memcpy(to + size_, at, static_cast<size_t>(length));
        size_ += static_cast<size_t>(length);
        at += (length + 3) & ~3;
      }
    }
    to[size_] = '\0';
    text_ = to;
  }

  const char* text_ = nullptr;
  size_t size_ = 0;
};

}  // namespace overlayfs
