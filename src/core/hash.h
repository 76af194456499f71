// Content hashes: XXH64 (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md) of memory and files. For telling
// contents apart and finding damage, not for security.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace vmoba {

class ContentHash {
 public:
  explicit ContentHash(uint64_t seed = 0);
  void add(const void* bytes, size_t count);
  void add(std::string_view text) { add(text.data(), text.size()); }
  // Of everything that was added so far.
  uint64_t value() const;

 private:
  void mix_stripe(const uint8_t* stripe);

  uint64_t seed_, lanes_[4];
  uint64_t total_bytes_ = 0;
  uint8_t buffer_[32];
  size_t buffered_ = 0;
};

uint64_t content_hash(std::string_view bytes);
// Of a file's bytes. Throws Error(kInput) where it cannot be read.
uint64_t file_hash(const std::string& path);
// 16 hexadecimal digits.
std::string hash_text(uint64_t hash);

}  // namespace vmoba
