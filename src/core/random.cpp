#include "core/random.h"

#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "core/philox.h"

namespace vmoba {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  const PhiloxBlock block =
      philox_block(uint64_t(c[0]) | (uint64_t(c[1]) << 32), uint64_t(c[2]) | (uint64_t(c[3]) << 32), k[0], k[1]);
  return {block.words[0], block.words[1], block.words[2], block.words[3]};
}

uint64_t hash_name(std::string_view name) {
  uint64_t hash = 14695981039346656037ull;
  for (unsigned char ch : name) hash = (hash ^ ch) * 1099511628211ull;
  return hash;
}

std::array<uint32_t, 2> stream_key(uint64_t seed, std::string_view stream) {
  // Seed and stream share the 64-bit key: mixed by one Philox block, so that near seeds give unrelated keys.
  const uint64_t name = hash_name(stream);
  const auto mixed = philox4x32({uint32_t(seed), uint32_t(seed >> 32), uint32_t(name), uint32_t(name >> 32)},
                                {0x766D6F62u, 0x61726E67u});
  return {mixed[0], mixed[1]};
}

RandomStream::RandomStream(uint64_t seed, std::string_view stream, uint64_t index)
    : key_(stream_key(seed, stream)), index_(index) {}

uint64_t RandomStream::next_u64() {
  if (used_ >= 4) {
    block_ =
        philox4x32({uint32_t(position_), uint32_t(position_ >> 32), uint32_t(index_), uint32_t(index_ >> 32)}, key_);
    ++position_;
    used_ = 0;
  }
  const uint64_t value = uint64_t(block_[used_]) | (uint64_t(block_[used_ + 1]) << 32);
  used_ += 2;
  return value;
}

double RandomStream::uniform() {
  return unit_interval(next_u64());
}

double RandomStream::normal() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_;
  }
  // Box-Muller; 1 - uniform() lies in (0, 1], so the logarithm is finite.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  const double angle = 2.0 * std::numbers::pi * uniform();
  spare_ = radius * std::sin(angle);
  has_spare_ = true;
  return radius * std::cos(angle);
}

uint64_t RandomStream::below(uint64_t bound) {
  const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;  // reject the incomplete last range
  uint64_t value = next_u64();
  while (value >= limit) value = next_u64();
  return value % bound;
}

// A pair of normals takes two words, which is one block.
void RandomStream::skip_normals(uint64_t count) {
  position_ += count / 2;
}

void fill_normal(uint64_t seed, std::string_view stream, uint64_t index, float* out, int64_t count, int64_t skipped) {
  RandomStream random(seed, stream, index);
  random.skip_normals(uint64_t(skipped));
  for (int64_t i = 0; i < count; ++i) out[i] = float(random.normal());
}

std::vector<int64_t> random_permutation(uint64_t seed, std::string_view stream, uint64_t index, int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), int64_t{0});
  RandomStream random(seed, stream, index);
  for (int64_t i = count - 1; i > 0; --i) std::swap(order[i], order[random.below(uint64_t(i) + 1)]);
  return order;
}

}  // namespace vmoba
