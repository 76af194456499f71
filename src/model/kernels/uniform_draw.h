// Launch interface of the kernel that draws a tensor's values on the GPU: those, bit for bit, that core/random.h's
// streams give on the CPU, so that a large model is drawn in seconds.
//
// The call is asynchronous on the stream, never synchronises, allocates or prints, and returns the first cudaError_t it
// met. No torch here: src/model/common/parameters.cpp binds it to tensors.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace vmoba::draws {

// Consecutive values that share a stream index; an even number, as a block of the generator makes two.
constexpr int64_t kChunkValues = 1 << 16;

// out[i] = value i % kChunkValues of the stream of this key with index i / kChunkValues, uniform in [-scale, scale).
struct Uniform {
  uint32_t key[2] = {0, 0};  // vmoba::stream_key
  double scale = 1;
  int64_t count = 0;
  float* out = nullptr;
};
cudaError_t draw_uniform(const Uniform& call, cudaStream_t stream);

}  // namespace vmoba::draws
