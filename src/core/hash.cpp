#include "core/hash.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "core/file_kind.h"
#include "core/work_progress.h"

namespace vmoba {
namespace {

constexpr size_t kFileChunkBytes = 1 << 20;

// SplitMix64's finalisation: a bijection, so that another value at a place gives another term.
uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

template <typename Word>
uint64_t sum_of_words(const void* values, int64_t count, int64_t first) {
  constexpr uint64_t kStride = 0x9E3779B97F4A7C15;
  const auto* at = static_cast<const uint8_t*>(values);
  uint64_t sum = 0, place = (uint64_t(first) + 1) * kStride;
  for (int64_t i = 0; i < count; ++i, place += kStride) {
    Word word;
    std::memcpy(&word, at + i * int64_t(sizeof word), sizeof word);
    sum += mixed(place + word);
  }
  return sum;
}

}  // namespace

ContentHash::ContentHash(uint64_t seed) : state_(XXH64_createState()) {
  VMOBA_CHECK(state_ && XXH64_reset(state_.get(), seed) == XXH_OK, "expected memory for a hash, found none");
}

void ContentHash::Free::operator()(XXH64_state_s* state) const {
  XXH64_freeState(state);
}

void ContentHash::add(const void* bytes, size_t count) {
  if (count > 0) XXH64_update(state_.get(), bytes, count);
}

uint64_t ContentHash::value() const {
  return XXH64_digest(state_.get());
}

uint64_t content_hash(std::string_view bytes) {
  return XXH64(bytes.data(), bytes.size(), 0);
}

uint64_t file_hash(const std::string& path) {
  struct stat info {};
  VMOBA_CHECK_INPUT(::stat(path.c_str(), &info) != 0 || S_ISREG(info.st_mode),
                    "expected a readable file at '{}', found {}", path, what_is_this(path));
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  VMOBA_CHECK_INPUT(file != nullptr, "expected a readable file at '{}', found: {}", path, std::strerror(errno));
  std::vector<char> chunk(kFileChunkBytes);
  ContentHash hash;
  size_t count = 0;
  WorkProgress progress(fmt::format("hashing '{}'", path), int64_t(info.st_size));
  while ((count = std::fread(chunk.data(), 1, chunk.size(), file.get())) > 0) {
    hash.add(chunk.data(), count);
    progress.add(int64_t(count));
  }
  VMOBA_CHECK_INPUT(std::ferror(file.get()) == 0, "expected to read '{}', found: {}", path, std::strerror(errno));
  return hash.value();
}

uint64_t values_checksum(const void* values, int64_t count, int64_t value_bytes, int64_t first) {
  switch (value_bytes) {
    case 1:
      return sum_of_words<uint8_t>(values, count, first);
    case 2:
      return sum_of_words<uint16_t>(values, count, first);
    case 4:
      return sum_of_words<uint32_t>(values, count, first);
    case 8:
      return sum_of_words<uint64_t>(values, count, first);
  }
  throw_runtime("expected values of 1, 2, 4 or 8 bytes to sum up, found {} bytes", value_bytes);
}

std::string hash_text(uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

}  // namespace vmoba
