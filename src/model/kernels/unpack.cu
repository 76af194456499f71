#include <cuda_bf16.h>

#include <algorithm>

#include "model/kernels/unpack_values.cuh"

namespace vmoba::unpack {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 8192;  // the threads stride over what is left

unsigned blocks_for(int64_t eights) {
  return unsigned(std::min(kBlocks, (eights + kThreads - 1) / kThreads));
}

template <bool bf16>
__device__ void store(void* values, int64_t eight, const float* v) {
  if constexpr (bf16) {
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
    uint4 packed;
    memcpy(&packed, pairs, sizeof packed);
    static_cast<uint4*>(values)[eight] = packed;
  } else {
    float4* out = static_cast<float4*>(values) + 2 * eight;
    out[0] = make_float4(v[0], v[1], v[2], v[3]);
    out[1] = make_float4(v[4], v[5], v[6], v[7]);
  }
}

template <Format format, bool bf16>
__global__ void __launch_bounds__(kThreads) unpack_kernel(const Packed call) {
  constexpr int kEights = values_of(format) / kEight;
  const int64_t count = call.blocks * kEights, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    float v[kEight];
    eight_of<format>(call.bytes + i / kEights * bytes_of(format), int(i % kEights) * kEight, v);
    store<bf16>(call.values, i, v);
  }
}

template <bool bf16>
__global__ void __launch_bounds__(kThreads) multiply_kernel(const Scaled call) {
  const int64_t count = call.count / kEight, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const uint2 packed = reinterpret_cast<const uint2*>(call.bytes)[i];
    uint8_t bytes[kEight];
    memcpy(bytes, &packed, sizeof bytes);
    float v[kEight];
    eight_of_fp8(bytes, call.scale[i * kEight / call.run], v);
    store<bf16>(call.values, i, v);
  }
}

bool aligned(const void* pointer, uintptr_t bytes) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <Format format>
cudaError_t launch(const Packed& call, cudaStream_t stream) {
  const unsigned blocks = blocks_for(call.blocks * (values_of(format) / kEight));
  if (call.bf16)
    unpack_kernel<format, true><<<blocks, kThreads, 0, stream>>>(call);
  else
    unpack_kernel<format, false><<<blocks, kThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace

cudaError_t unpack(const Packed& call, cudaStream_t stream) {
  if (call.blocks == 0) return cudaSuccess;
  if (call.blocks < 0 || call.bytes == nullptr || !aligned(call.values, 16)) return cudaErrorInvalidValue;
  switch (call.format) {
    case Format::kQ8_0:
      return launch<Format::kQ8_0>(call, stream);
    case Format::kQ4_K:
      return launch<Format::kQ4_K>(call, stream);
    case Format::kQ5_K:
      return launch<Format::kQ5_K>(call, stream);
    case Format::kQ6_K:
      return launch<Format::kQ6_K>(call, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t multiply(const Scaled& call, cudaStream_t stream) {
  if (call.count == 0) return cudaSuccess;
  if (call.count < 0 || call.run <= 0 || call.run % kScaledStep != 0 || call.count % call.run != 0 ||
      call.scale == nullptr || !aligned(call.bytes, 8) || !aligned(call.values, 16))
    return cudaErrorInvalidValue;
  if (call.bf16)
    multiply_kernel<true><<<blocks_for(call.count / kEight), kThreads, 0, stream>>>(call);
  else
    multiply_kernel<false><<<blocks_for(call.count / kEight), kThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace vmoba::unpack
