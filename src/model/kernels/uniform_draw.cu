#include <algorithm>

#include "core/philox.h"
#include "model/kernels/uniform_draw.h"

namespace vmoba::draws {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 4096;  // the threads stride over what is left

// Doubling is exact, so that a contracted 2 u - 1 has the CPU's bits.
__device__ float value_of(uint64_t bits, double scale) {
  return float(scale * (2 * unit_interval(bits) - 1));
}

__global__ void __launch_bounds__(kThreads) uniform_kernel(const Uniform call) {
  constexpr int64_t kChunkPairs = kChunkValues / 2;
  const int64_t pairs = (call.count + 1) / 2, stride = int64_t(gridDim.x) * kThreads;
  for (int64_t pair = int64_t(blockIdx.x) * kThreads + threadIdx.x; pair < pairs; pair += stride) {
    const PhiloxBlock block =
        philox_block(uint64_t(pair % kChunkPairs), uint64_t(pair / kChunkPairs), call.key[0], call.key[1]);
    call.out[2 * pair] = value_of(block.word64(0), call.scale);
    if (2 * pair + 1 < call.count) call.out[2 * pair + 1] = value_of(block.word64(1), call.scale);
  }
}

}  // namespace

cudaError_t draw_uniform(const Uniform& call, cudaStream_t stream) {
  if (call.count < 0 || (call.count > 0 && call.out == nullptr)) return cudaErrorInvalidValue;
  if (call.count == 0) return cudaSuccess;
  const int64_t pairs = (call.count + 1) / 2;
  uniform_kernel<<<unsigned(std::min(kBlocks, (pairs + kThreads - 1) / kThreads)), kThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace vmoba::draws
