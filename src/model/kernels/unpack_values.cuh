// The values of packed blocks and of fp8 numbers, eight at a time, for a GPU and for a CPU: the same bits on both. The
// layouts of blocks are those of model/common/packed.cpp.
#pragma once
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>

#include "model/kernels/unpack.h"

namespace vmoba::unpack {

constexpr int kEight = 8;

// Never contracted with a neighbour.
__host__ __device__ inline float times(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
__host__ __device__ inline float minus(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fsub_rn(a, b);
#else
  return a - b;
#endif
}

// Blocks begin at any even byte.
__host__ __device__ inline float half_at(const uint8_t* bytes) {
  __half_raw raw;
  raw.x = uint16_t(bytes[0] | bytes[1] << 8);
  return __half2float(__half(raw));
}

__host__ __device__ constexpr int values_of(Format format) {
  return format == Format::kQ8_0 ? 32 : 256;
}
__host__ __device__ constexpr int bytes_of(Format format) {
  return format == Format::kQ8_0 ? 34 : format == Format::kQ4_K ? 144 : format == Format::kQ5_K ? 176 : 210;
}

// Scale and minimum of a run of 32 values, six bits each, in the 12 bytes behind the two halves of a block.
__host__ __device__ inline void scale_and_minimum(const uint8_t* block, int run, float& factor, float& minimum) {
  const uint8_t* packed = block + 4;
  int scale = 0, least = 0;
  if (run < 4) {
    scale = packed[run] & 63;
    least = packed[4 + run] & 63;
  } else {
    scale = (packed[4 + run] & 15) | (packed[run - 4] >> 6) << 4;
    least = packed[4 + run] >> 4 | (packed[run] >> 6) << 4;
  }
  factor = times(half_at(block), float(scale));
  minimum = times(half_at(block + 2), float(least));
}

// Values first .. first + 7 of a block; `first` is a multiple of 8.
template <Format format>
__host__ __device__ inline void eight_of(const uint8_t* block, int first, float* out) {
  if constexpr (format == Format::kQ8_0) {
    const float factor = half_at(block);
    for (int i = 0; i < kEight; ++i) out[i] = times(factor, float(int8_t(block[2 + first + i])));
  } else if constexpr (format == Format::kQ6_K) {
    const int part = first / 128, quarter = first % 128 / 32, column = first % 32;
    const uint8_t* low = block + 64 * part + 32 * (quarter % 2) + column;
    const uint8_t* high = block + 128 + 32 * part + column;
    const float factor = times(half_at(block + 208), float(int8_t(block[192 + first / 16])));
    for (int i = 0; i < kEight; ++i) {
      const int lower = quarter < 2 ? low[i] & 15 : low[i] >> 4;
      out[i] = times(factor, float((lower | (high[i] >> 2 * quarter & 3) << 4) - 32));
    }
  } else {
    constexpr bool kFive = format == Format::kQ5_K;
    const int run = first / 32, column = first % 32;
    const uint8_t* low = block + (kFive ? 48 : 16) + 32 * (run / 2) + column;
    float factor = 0, minimum = 0;
    scale_and_minimum(block, run, factor, minimum);
    for (int i = 0; i < kEight; ++i) {
      int value = run % 2 == 0 ? low[i] & 15 : low[i] >> 4;
      if (kFive) value |= (block[16 + column + i] >> run & 1) << 4;
      out[i] = minus(times(factor, float(value)), minimum);
    }
  }
}

__host__ __device__ inline void eight_of_fp8(const uint8_t* bytes, float scale, float* out) {
  for (int i = 0; i < kEight; ++i) {
    __nv_fp8_e4m3 number;
    number.__x = bytes[i];
    out[i] = times(float(number), scale);
  }
}

}  // namespace vmoba::unpack
