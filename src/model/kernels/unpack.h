// Launch interface of the kernels that bring frozen weights into the type they are multiplied in: packed blocks
// (model/common/packed.h) and fp8 values with scales. One pass over memory. Values have the bits of the tensor
// operations of model/common: each is computed in fp32, every operation rounded, and rounded once more into bf16.
//
// Calls are asynchronous on the stream, never synchronise, allocate or print, and return the first cudaError_t they
// met.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace vmoba::unpack {

enum class Format : int32_t { kQ8_0, kQ4_K, kQ5_K, kQ6_K };

struct Packed {
  Format format = Format::kQ8_0;
  const uint8_t* bytes = nullptr;  // of all blocks, one behind the other
  int64_t blocks = 0;
  void* values = nullptr;  // the result, 16-byte aligned
  bool bf16 = true;        // of the result; else fp32
};
cudaError_t unpack(const Packed& call, cudaStream_t stream);

constexpr int64_t kScaledStep = 8;  // values that share a scale: a multiple

struct Scaled {
  const uint8_t* bytes = nullptr;  // e4m3, 8-byte aligned
  const float* scale = nullptr;    // of each run of values
  int64_t count = 0, run = 0;      // values, and those that share a scale: multiples of kScaledStep
  void* values = nullptr;
  bool bf16 = true;
};
cudaError_t multiply(const Scaled& call, cudaStream_t stream);

}  // namespace vmoba::unpack
