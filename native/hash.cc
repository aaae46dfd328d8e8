// SHA-256 on the library's threads, by the OpenSSL that Node exports to its addons.
#include <errno.h>
#include <string.h>

#include "plan.h"
#include "text.h"

// Weak: a runtime that does not export them has none, and the caller hashes by itself. The state is a plain structure
// (SHA256_CTX in openssl/sha.h), so no object has to live from one plan to the next.
extern "C" {
__attribute__((weak, visibility("default"))) int SHA256_Init(void* state);
__attribute__((weak, visibility("default"))) int SHA256_Update(void* state, const void* data, size_t size);
__attribute__((weak, visibility("default"))) int SHA256_Final(unsigned char* digest, void* state);
}

namespace overlayfs {

namespace {

constexpr size_t state_size = 112, digest_size = 32;

}  // namespace

// hash(state or NULL, 1 at the end): adds the buffers that the caller has lent. Output: the state, or the digest.
long Execution::hash(const Step& step) {
  if (SHA256_Init == nullptr || SHA256_Update == nullptr || SHA256_Final == nullptr) return -ENOSYS;
  alignas(16) uint8_t state[state_size + 16];
  Text before(*this, step.a[0]);
  if (before.size() == state_size) {
    memcpy(state, before, state_size);
  } else {
    SHA256_Init(state);
  }
  for (const Lent& lent : lent_) SHA256_Update(state, lent.at, lent.size);
  uint8_t* to = block_ + step.output + 8;
  if (step.a[1] == 0) {
    memcpy(to, state, state_size);
    return 0;
  }
  uint8_t digest[digest_size];
  SHA256_Final(digest, state);
  memcpy(to, digest, digest_size);
  return 0;
}

}  // namespace overlayfs
