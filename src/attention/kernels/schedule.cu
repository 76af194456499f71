// The forward's plan: which (sample, head) pairs share a wave, from the lengths of their slot lists. One small block;
// asynchronous on the caller's stream, writes only the plan tables.
#include "attention/kernels/schedule.cuh"

namespace vmoba::kernels {
namespace {

constexpr int kPlanThreads = 256;

__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const int64_t* start, int block_count, int heads, int waves, int tiles_per_wave, ForwardPlan plan) {
  // The tile counts land where their running sum is built.
  for (int i = threadIdx.x; i < heads; i += kPlanThreads) {
    plan.tiles_before[i + 1] = int32_t(start[int64_t(i) * (block_count + 1) + block_count] / kTileRows);
  }
  for (int i = threadIdx.x; i < waves; i += kPlanThreads) plan.next_tile[i] = 0;
  __syncthreads();
  if (threadIdx.x != 0) return;
  int before = 0, wave = 0, wave_tiles = 0;
  plan.tiles_before[0] = 0;
  plan.wave_first[0] = 0;
  for (int i = 0; i < heads; ++i) {
    const int tiles = plan.tiles_before[i + 1];
    if (wave_tiles + tiles > tiles_per_wave && wave_tiles > 0) {
      plan.wave_first[++wave] = i;
      wave_tiles = 0;
    }
    wave_tiles += tiles;
    before += tiles;
    plan.tiles_before[i + 1] = before;
  }
  while (wave < waves) plan.wave_first[++wave] = heads;
}

}  // namespace

// Next-fit packing: no (b, n) is larger than the capacity, so every wave but the last holds at least as many of them as
// fit at full capacity.
int forward_waves(const Shape& shape, int64_t partial_slots) {
  const int64_t heads = int64_t(shape.batch) * shape.heads;
  const int64_t heads_per_wave = partial_slots / slots_per_head_capacity(shape);
  return int((heads + heads_per_wave - 1) / heads_per_wave);
}

cudaError_t plan_forward(const ForwardProblem& problem, int waves, int64_t partial_slots, cudaStream_t stream) {
  const Shape& shape = problem.shape;
  plan_kernel<<<1, kPlanThreads, 0, stream>>>(problem.lists.start, shape.block_count(), shape.batch * shape.heads,
                                              waves, int(partial_slots / kTileRows), problem.plan);
  return cudaGetLastError();
}

}  // namespace vmoba::kernels
