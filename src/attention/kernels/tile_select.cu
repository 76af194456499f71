// Top-k of every query tile among its gates, without a sort: the smallest gate that is taken is found digit by digit in
// a histogram of what still competes. One block of threads a tile and head; the gates stay in L1 and L2.
#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;

// Ordered as the gates are, NaN above all: 0 is no gate's.
__device__ __forceinline__ uint32_t ordered(float gate) {
  if (isnan(gate)) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(gate == 0 ? 0.f : gate);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Digit {
  int value, above;  // the digit in which the last taken gate lies, and how many gates have a greater one
};

// The greatest digit at which the gates with this digit or a greater one are at least `wanted`. One warp.
__device__ __forceinline__ Digit find_digit(const int* count, int wanted) {
  constexpr int kOwn = kDigits / 32;
  const int lane = threadIdx.x % 32, first = kDigits - (lane + 1) * kOwn;  // lane 0 has the greatest digits
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) sum += count[first + i];
  int through = sum;
#pragma unroll
  for (int i = 1; i < 32; i *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, through, i);
    if (lane >= i) through += before;
  }
  const int owner = __ffs(__ballot_sync(0xffffffffu, through >= wanted)) - 1;
  int value = first + kOwn - 1, above = through - sum;
  while (value > first && above + count[value] < wanted) above += count[value--];
  return {__shfl_sync(0xffffffffu, value, owner), __shfl_sync(0xffffffffu, above, owner)};
}

__global__ void __launch_bounds__(kThreads) topk_kernel(const __grid_constant__ TileTopkArgs args) {
  __shared__ int count[kDigits];
  __shared__ Digit found;
  __shared__ int equal;
  const int blocks = args.shape.blocks, own = __ldg(args.partition.tile_block + blockIdx.x % args.shape.tiles);
  const float* gate = args.gate + int64_t(blockIdx.x) * blocks;
  uint8_t* mask = args.mask + int64_t(blockIdx.x) * blocks;
  const int tile = int(blockIdx.x % unsigned(args.shape.heads * args.shape.tiles));
  const int more = args.one_more != nullptr && __ldg(args.one_more + tile) != 0 ? 1 : 0;
  int wanted = min(args.topk - 1 + more, blocks - 1);  // among the gates that share the digits found so far
  uint32_t last = 0;                                   // those digits: in the end the smallest gate that is taken
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = threadIdx.x; i < kDigits; i += kThreads) count[i] = 0;
    __syncthreads();
    for (int c = threadIdx.x; c < blocks; c += kThreads) {
      const uint32_t key = ordered(__ldg(gate + c));
      const bool competes = c != own && (shift == 32 - kDigitBits || (key ^ last) >> (shift + kDigitBits) == 0);
      if (competes) atomicAdd(&count[key >> shift & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      const Digit digit = find_digit(count, wanted);
      if (threadIdx.x == 0) found = digit, equal = count[digit.value];
    }
    __syncthreads();
    last |= uint32_t(found.value) << shift;
    wanted -= found.above;
  }
  for (int c = threadIdx.x; c < blocks; c += kThreads) {
    const uint32_t key = ordered(__ldg(gate + c));
    mask[c] = c == own || key > last || (key == last && equal == wanted);
  }
  if (equal == wanted) return;
  // Of equal gates the lower blocks come first.
  __syncthreads();
  if (threadIdx.x >= 32) return;
  for (int first = 0; first < blocks && wanted > 0; first += 32) {
    const int c = first + int(threadIdx.x);
    const bool ties = c < blocks && c != own && ordered(__ldg(gate + c)) == last;
    const uint32_t votes = __ballot_sync(0xffffffffu, ties);
    if (ties && __popc(votes & ((1u << threadIdx.x) - 1)) < wanted) mask[c] = 1;
    wanted -= __popc(votes);
  }
}

}  // namespace

cudaError_t tile_topk(const TileTopkArgs& args, cudaStream_t stream) {
  const TileShape& s = args.shape;
  if (!tile_shape_valid(s) || args.topk < 1) return cudaErrorInvalidValue;
  const auto rows = unsigned(int64_t(s.batch) * s.heads * s.tiles);
  topk_kernel<<<rows, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace vmoba::kernels
