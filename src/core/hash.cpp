#include "core/hash.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "core/check.h"

namespace vmoba {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63, kPrime5 = 0x27D4EB2F165667C5;
constexpr size_t kFileChunkBytes = 1 << 20;

static_assert(std::endian::native == std::endian::little, "lanes are read little-endian");

template <typename Word>
uint64_t read_word(const uint8_t* at) {
  Word word;
  std::memcpy(&word, at, sizeof(word));
  return word;
}

uint64_t round_lane(uint64_t lane, uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

}  // namespace

ContentHash::ContentHash(uint64_t seed)
    : seed_(seed), lanes_{seed + kPrime1 + kPrime2, seed + kPrime2, seed, seed - kPrime1} {}

void ContentHash::mix_stripe(const uint8_t* stripe) {
  for (size_t i = 0; i < 4; ++i) lanes_[i] = round_lane(lanes_[i], read_word<uint64_t>(stripe + 8 * i));
}

void ContentHash::add(const void* bytes, size_t count) {
  if (count == 0) return;
  const auto* at = static_cast<const uint8_t*>(bytes);
  total_bytes_ += count;
  if (buffered_ > 0) {
    const size_t taken = std::min(count, sizeof(buffer_) - buffered_);
    std::memcpy(buffer_ + buffered_, at, taken);
    buffered_ += taken;
    at += taken;
    count -= taken;
    if (buffered_ < sizeof(buffer_)) return;
    mix_stripe(buffer_);
    buffered_ = 0;
  }
  for (; count >= sizeof(buffer_); at += sizeof(buffer_), count -= sizeof(buffer_)) mix_stripe(at);
  std::memcpy(buffer_, at, count);
  buffered_ = count;
}

uint64_t ContentHash::value() const {
  uint64_t hash = seed_ + kPrime5;
  if (total_bytes_ >= sizeof(buffer_)) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) + std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) hash = (hash ^ round_lane(0, lane)) * kPrime1 + kPrime4;
  }
  hash += total_bytes_;
  const uint8_t* at = buffer_;
  size_t left = buffered_;
  for (; left >= 8; at += 8, left -= 8)
    hash = std::rotl(hash ^ round_lane(0, read_word<uint64_t>(at)), 27) * kPrime1 + kPrime4;
  for (; left >= 4; at += 4, left -= 4)
    hash = std::rotl(hash ^ read_word<uint32_t>(at) * kPrime1, 23) * kPrime2 + kPrime3;
  for (; left > 0; ++at, --left) hash = std::rotl(hash ^ *at * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

uint64_t content_hash(std::string_view bytes) {
  ContentHash hash;
  hash.add(bytes);
  return hash.value();
}

uint64_t file_hash(const std::string& path) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  VMOBA_CHECK_INPUT(file != nullptr, "expected a readable file at '{}', found: {}", path, std::strerror(errno));
  std::vector<char> chunk(kFileChunkBytes);
  ContentHash hash;
  size_t count = 0;
  while ((count = std::fread(chunk.data(), 1, chunk.size(), file.get())) > 0) hash.add(chunk.data(), count);
  VMOBA_CHECK_INPUT(std::ferror(file.get()) == 0, "expected to read '{}', found: {}", path, std::strerror(errno));
  return hash.value();
}

std::string hash_text(uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

}  // namespace vmoba
