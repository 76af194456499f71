// One block of the generator Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), for
// the CPU and for kernels alike: no torch, and it compiles as CUDA. Programs draw with core/random.h.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define VMOBA_BOTH __host__ __device__ __forceinline__
#else
#define VMOBA_BOTH inline
#endif

namespace vmoba {

struct PhiloxBlock {
  uint32_t words[4];
  // The first 64 bits (0) or the second (1).
  VMOBA_BOTH uint64_t word64(int i) const { return uint64_t(words[2 * i]) | (uint64_t(words[2 * i + 1]) << 32); }
};

// Counter (low, high), each 64 bits.
VMOBA_BOTH PhiloxBlock philox_block(uint64_t low, uint64_t high, uint32_t key0, uint32_t key1) {
  uint32_t c[4] = {uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c[0], p1 = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t c1 = c[1], c3 = c[3];
    c[0] = uint32_t(p1 >> 32) ^ c1 ^ key0;
    c[1] = uint32_t(p1);
    c[2] = uint32_t(p0 >> 32) ^ c3 ^ key1;
    c[3] = uint32_t(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c[0], c[1], c[2], c[3]}};
}

// [0, 1), of the upper 53 bits.
VMOBA_BOTH double unit_interval(uint64_t bits) {
  return double(bits >> 11) * 0x1.0p-53;
}

}  // namespace vmoba
