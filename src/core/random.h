// Counter-based randomness: every draw is a function of (seed, stream name, index), never hidden state, so that it
// does not depend on threads, loader workers, ranks or on where a run was resumed.
//
// The generator is Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): the key
// is mixed from (seed, stream name), the counter is (index, position). Normals are Box-Muller in double precision.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace vmoba {

// One block of the generator. Reference vectors: tests/core/test_random.cpp (from the authors' Random123 package).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// 64-bit FNV-1a of a name; the same on every platform.
uint64_t hash_name(std::string_view name);

// The key that the blocks of a stream are made with.
std::array<uint32_t, 2> stream_key(uint64_t seed, std::string_view stream);

class RandomStream {
 public:
  // `index` is the global sample number, step number or whatever the stream is drawn for.
  RandomStream(uint64_t seed, std::string_view stream, uint64_t index);

  uint64_t next_u64();
  double uniform();                // [0, 1), 53 bits
  double normal();                 // standard normal
  uint64_t below(uint64_t bound);  // [0, bound), unbiased; bound > 0
  // On a fresh stream: goes on as if `count` normals, an even number, had been drawn.
  void skip_normals(uint64_t count);

 private:
  std::array<uint32_t, 2> key_;
  uint64_t index_;
  uint64_t position_ = 0;
  std::array<uint32_t, 4> block_{};
  int used_ = 4;
  bool has_spare_ = false;
  double spare_ = 0;
};

// `count` standard normals of the stream as floats, behind its first `skipped`, an even number: so threads can share
// one stream's values.
void fill_normal(uint64_t seed, std::string_view stream, uint64_t index, float* out, int64_t count,
                 int64_t skipped = 0);

// The permutation of [0, count) of the given epoch (Fisher-Yates on the stream).
std::vector<int64_t> random_permutation(uint64_t seed, std::string_view stream, uint64_t index, int64_t count);

}  // namespace vmoba
