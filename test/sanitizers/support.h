// Parts of the C++ programs that run under sanitizers: invariants, random numbers, plans.
#pragma once

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "../../native/plan.h"

extern "C" const char* __asan_default_options() { return "detect_stack_use_after_return=1"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace {

using namespace overlayfs;

[[noreturn]] __attribute__((format(printf, 1, 2))) void broken(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fprintf(stderr, "%s: broken: %s\n", program_invocation_short_name, text);
  fflush(stderr);
  _exit(1);
}

#define CHECK(condition, ...)              \
  do {                                     \
    if (!(condition)) broken(__VA_ARGS__); \
  } while (0)

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
  uint32_t below(uint32_t limit) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 33) % limit;
  }
  bool one_in(uint32_t count) { return below(count) == 0; }
  int between(int low, int high) { return low + static_cast<int>(below(static_cast<uint32_t>(high - low + 1))); }

 private:
  uint64_t state_;
};

// A plan, laid out as native/plan.h says.
class Plan {
 public:
  // A number, a text, or a text in pieces, of which numbers are descriptors.
  class Argument {
   public:
    Argument(int32_t number) : number_(number) {}
    Argument(unsigned number) : number_(static_cast<int32_t>(number)) {}
    Argument(std::nullptr_t) {}
    Argument(const std::string& text) : is_text_(true) {
      append(static_cast<int32_t>(text.size()));
      bytes_.append(text).push_back('\0');
      pad();
    }
    Argument(const char* text) : Argument(std::string(text)) {}
    static Argument pieces(std::initializer_list<Argument> pieces) {
      Argument whole(0);
      whole.is_text_ = true;
      std::string following;
      size_t room = 1;
      for (const Argument& piece : pieces) {
        room += piece.is_text_ ? piece.bytes_.size() : sizeof "-2147483648";
        if (piece.is_text_) {
          int32_t length;
          memcpy(&length, piece.bytes_.data(), sizeof length);
          std::string body = piece.bytes_.substr(0, sizeof length + static_cast<size_t>(length));
          body.resize((body.size() + 3) & ~size_t{3});
          following += body;
        } else {
          Argument number(0);
          number.append(-1);
          number.append(piece.number_);
          following += number.bytes_;
        }
      }
      whole.append(-static_cast<int32_t>(following.size()));
      whole.bytes_ += following;
      whole.bytes_.resize(whole.bytes_.size() + room);
      whole.pad();
      return whole;
    }

   private:
    friend class Plan;
    void append(int32_t number) { bytes_.append(reinterpret_cast<const char*>(&number), sizeof number); }
    void pad() { bytes_.resize((bytes_.size() + 3) & ~size_t{3}); }

    bool is_text_ = false;
    int32_t number_ = 0;
    std::string bytes_;
  };

  struct Options {
    int32_t flags = 0;
    uint32_t tolerated = 0;
    int32_t output = -1;  // so many bytes besides the result
  };

  // The number that stands for the descriptor of the step.
  int32_t add(Call call, std::initializer_list<Argument> arguments, Options options) {
    Step step{};
    step.call = call;
    step.flags = options.flags;
    step.tolerated = options.tolerated;
    int i = 0;
    for (const Argument& argument : arguments) {
      if (argument.is_text_) {
        texts_at_.push_back({steps_.size(), i});
        step.a[i] = static_cast<int32_t>(texts_.size());
        texts_ += argument.bytes_;
      } else {
        step.a[i] = argument.number_;
      }
      i++;
    }
    if (options.output >= 0) {
      outputs_at_.push_back(steps_.size());
      step.output = outputs_size_;
      outputs_size_ += 8 + ((options.output + 7) & ~7);
    }
    steps_.push_back(step);
    return made_by | static_cast<int32_t>(steps_.size() - 1);
  }
  int32_t add(Call call, std::initializer_list<Argument> arguments) { return add(call, arguments, Options()); }

  std::vector<uint8_t> block() const {
    std::vector<Step> steps = steps_;
    size_t texts = sizeof(Header) + steps.size() * sizeof(Step);
    size_t outputs = (texts + texts_.size() + 7) & ~size_t{7};
    for (const auto& [step, argument] : texts_at_) steps[step].a[argument] += static_cast<int32_t>(texts);
    for (size_t step : outputs_at_) steps[step].output += static_cast<int32_t>(outputs);
    std::vector<uint8_t> block(outputs + static_cast<size_t>(outputs_size_));
    Header header{static_cast<int32_t>(steps.size()), static_cast<int32_t>(outputs), outputs_size_, flags};
    memcpy(block.data(), &header, sizeof header);
    if (!steps.empty()) memcpy(block.data() + sizeof header, steps.data(), steps.size() * sizeof(Step));
    memcpy(block.data() + texts, texts_.data(), texts_.size());
    return block;
  }

  int32_t flags = 0;

 private:
  std::vector<Step> steps_;
  std::string texts_;
  int32_t outputs_size_ = 0;
  std::vector<std::pair<size_t, int>> texts_at_;
  std::vector<size_t> outputs_at_;
};

using Argument = Plan::Argument;

}  // namespace
