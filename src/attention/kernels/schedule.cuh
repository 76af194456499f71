// Work items of the forward pass, shared by its kernels.
//
// A list's slots start at a multiple of 128, so the 128-slot tiles of one (sample, head) are numbered straight through
// its lists: tile t of (b, n) holds the slots [128 t, 128 t + 128). A *wave* is a run of consecutive (b, n) whose tiles
// fit the partial-output buffer together; the plan is made on the device from lists.start, the number of launches on
// the host from the worst case, so that nothing has to be read back. Launches beyond the last wave find it empty and
// leave.
#pragma once
#include <cuda_bf16.h>

#include "attention/kernels/kernels.h"

namespace vmoba::kernels {

constexpr int kTileRows = kSlotAlign;

// Device tables of the plan, inside the caller's workspace.
struct ForwardPlan {
  int32_t* tiles_before = nullptr;  // [B*N + 1] tiles of all (b, n) in front of this one
  int32_t* wave_first = nullptr;    // [waves + 1] first (b, n) of a wave; B*N behind the last
  int32_t* next_tile = nullptr;     // [waves] tiles handed out so far
};

// The forward's arguments as its kernels want them.
struct ForwardProblem {
  Shape shape;
  int32_t block_count = 0, tokens = 0, mask_words = 0;  // of the shape, for device code
  SlotLists lists;
  PartitionView partition;
  TensorView q, k_blocks, v_blocks, out;
  float* lse = nullptr;
  float scale = 0;
  ForwardPlan plan;
  __nv_bfloat16* partial = nullptr;  // [tiles of a wave][D / 64 panels][128 rows][64], 16-byte chunks XORed by row % 8
  float* partial_lse2 = nullptr;     // [tiles of a wave][128] base-2 log-sum-exp of the scaled scores
};

// Launches that a forward of this shape needs at most.
int forward_waves(const Shape& shape, int64_t partial_slots);

cudaError_t plan_forward(const ForwardProblem& problem, int waves, int64_t partial_slots, cudaStream_t stream);

// Partial outputs of one wave (one function per kernel family), and their merge into out and lse.
cudaError_t attend_wave_sm90_d128(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream);
cudaError_t attend_wave_sm90_d64(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream);
cudaError_t attend_wave_sm80(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream);
cudaError_t combine_wave(const ForwardProblem& problem, int wave, int sm_count, cudaStream_t stream);

#ifdef __CUDACC__

// One tile of rows against one block of keys.
struct WorkItem {
  int32_t head = 0;          // b * N + n
  int32_t row_tile = 0;      // tile of (b, n)
  int32_t partial_tile = 0;  // tile of the wave
  int32_t key_start = 0;     // permuted position of the block's first key
  int32_t keys = 0;          // 0: no more work
};

// Largest i < count with table[i] <= value, of an ascending table with table[0] <= value. All lanes of a warp call it
// with the same arguments: one round trip to memory per 32 entries instead of one per bisection step.
template <class T>
__device__ __forceinline__ int last_not_above(const T* table, int count, T value) {
  int not_above = 0;
#pragma unroll 1
  for (int base = 0; base < count; base += 32) {
    const int i = base + int(threadIdx.x % 32);
    not_above += __popc(__ballot_sync(0xffffffffu, i < count && table[i] <= value));
  }
  return not_above - 1;
}

// The item of tile `tile` of a wave that has it; all lanes of a warp together.
__device__ __forceinline__ WorkItem locate_item(const ForwardProblem& problem, int first_head, int end_head,
                                                int first_tile, int tile) {
  const Shape& shape = problem.shape;
  WorkItem item;
  item.partial_tile = tile;
  item.head =
      first_head + last_not_above(problem.plan.tiles_before + first_head, end_head - first_head, first_tile + tile);
  item.row_tile = first_tile + tile - problem.plan.tiles_before[item.head];
  const int64_t* start = problem.lists.start + int64_t(item.head) * (problem.block_count + 1);
  const int block = last_not_above(start, problem.block_count, int64_t(item.row_tile) * kTileRows);
  const bool text = block == shape.blocks;
  item.key_start = text ? shape.video_tokens : problem.partition.block_start[block];
  item.keys = text ? shape.text_tokens : problem.partition.block_start[block + 1] - item.key_start;
  return item;
}

#endif

}  // namespace vmoba::kernels
