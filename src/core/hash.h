// Content hashes: XXH64 (libxxhash) of memory and files. For telling contents apart and finding damage, not for
// security.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct XXH64_state_s;

namespace vmoba {

class ContentHash {
 public:
  explicit ContentHash(uint64_t seed = 0);
  void add(const void* bytes, size_t count);
  void add(std::string_view text) { add(text.data(), text.size()); }
  // Of everything that was added so far.
  uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH64_state_s* state) const;
  };
  std::unique_ptr<XXH64_state_s, Free> state_;
};

uint64_t content_hash(std::string_view bytes);
// Of a file's bytes. Throws Error(kInput) where it cannot be read.
uint64_t file_hash(const std::string& path);
// 16 hexadecimal digits.
std::string hash_text(uint64_t hash);

// Of `count` values of 1, 2, 4 or 8 bytes that begin at number `first` of a whole. The checksums of a whole's parts add
// up (modulo 2^64) to that of the whole, however it is cut: ranks that each hold a part need not see the others'.
uint64_t values_checksum(const void* values, int64_t count, int64_t value_bytes, int64_t first);

}  // namespace vmoba
