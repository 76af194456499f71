// What the kernels of the backward pass share: the problem they solve, the tables in the caller's workspace, and the
// launch functions of each step. Launches are asynchronous on the caller's stream and return the first error.
//
// Sequence: schedule (key tiles, longest list first) -> [bounds, deterministic mode only] -> prepare (row statistics,
// zeroed dq sums) -> main (dk, dv, and sums for dq) -> finish (dq sums to bf16).
#pragma once
#include <cuda_bf16.h>

#include "attention/kernels/kernels.h"

namespace vmoba::kernels {

constexpr int kBackwardKeys = 128;  // keys of a work item

// The launch's last key tiles are split into parts of their lists, so that its end is as long as a part and not as a
// list, which counts most where there are few heads. The part that ends last adds the parts' dk and dv up, in order.
constexpr int kSplitTiles = 132;
constexpr int kSplitParts = 4;

// One tile of keys of one block and the list of rows that attend it: the unit of work of the main kernel.
struct alignas(16) KeyTile {
  int32_t sample = 0, head = 0;
  int32_t key_start = 0;   // permuted position of the first key
  int32_t keys = 0;        // 1..kBackwardKeys; 0: no more work
  int64_t first_slot = 0;  // into SlotLists::row
  int32_t rows = 0;        // length of the list, or of the part
  int32_t part = 0;        // 1 + split tile * kSplitParts + part; 0: the whole list
};

// What a softmax row needs besides q and dout. Entry `tokens` of each (b, n) is (+inf, 0): rows that pad a tile read
// it, so that their probabilities are exactly zero.
struct RowStats {
  float lse2 = 0;   // base-2 log-sum-exp of the scaled scores
  float delta = 0;  // sum over columns of dout * out
};

struct BackwardProblem {
  Shape shape;
  int32_t tokens = 0;       // shape.tokens()
  int32_t block_count = 0;  // shape.block_count()
  SlotLists lists;
  PartitionView partition;
  TensorView q, out, dout, k_blocks, v_blocks, dq, dk, dv;
  const float* lse = nullptr;
  float scale = 0;
  float score_scale = 0;  // scale * log2(e): scores go through exp2
  bool deterministic = false;
  bool split = false;                            // the last kSplitTiles key tiles of the last (b, n)
  uint32_t q_row_bytes = 0, dout_row_bytes = 0;  // between tokens

  int32_t* next_item = nullptr;   // [1] key tiles handed out
  int32_t* item_count = nullptr;  // [1]
  KeyTile* items = nullptr;       // [item_count]
  float* split_sums = nullptr;    // [kSplitTiles, kSplitParts, 2 warpgroups, D values of dk and dv, 128 threads]
  int32_t* split_done = nullptr;  // [kSplitTiles, 2] parts that are in split_sums
  RowStats* stats = nullptr;      // [B, N, tokens + 1]
  // Sums for dq, [B, N, tokens, D]: float, or in deterministic mode int64 fixed point with one power of two per row,
  // because integer sums do not depend on the order of the adds.
  void* dq_sum = nullptr;
  float* dq_factor = nullptr;  // [B, N, tokens], deterministic mode: the sum's unit is 1 / factor
  uint32_t* bounds = nullptr;  // [B, N, 2], deterministic mode: bits of max |k| and of max ||v||
};

// Work items at most.
inline int64_t work_item_limit(const Shape& s) {
  const int64_t tiles_per_head = s.tokens() / kBackwardKeys + s.block_count();
  return int64_t(s.batch) * s.heads * tiles_per_head + kSplitTiles * (kSplitParts - 1);
}

cudaError_t schedule_backward(const BackwardProblem& problem, cudaStream_t stream);
cudaError_t bound_backward(const BackwardProblem& problem, cudaStream_t stream);
cudaError_t prepare_backward(const BackwardProblem& problem, cudaStream_t stream);
cudaError_t finish_backward(const BackwardProblem& problem, cudaStream_t stream);

cudaError_t backward_main_sm90_d128(const BackwardProblem& problem, int sm_count, cudaStream_t stream);
cudaError_t backward_main_sm90_d64(const BackwardProblem& problem, int sm_count, cudaStream_t stream);
cudaError_t backward_main_sm80(const BackwardProblem& problem, int sm_count, cudaStream_t stream);

#ifdef __CUDACC__

__device__ __forceinline__ const __nv_bfloat16* row_pointer(const TensorView& view, int sample, int head, int token) {
  return static_cast<const __nv_bfloat16*>(view.data) + sample * view.batch_stride + head * view.head_stride +
         token * view.token_stride;
}

// Original token of a permuted position; text positions are the same in both orders.
__device__ __forceinline__ int original_token(const BackwardProblem& problem, int position) {
  return problem.partition.identity || position >= problem.shape.video_tokens ? position
                                                                              : problem.partition.token_of[position];
}

#endif

}  // namespace vmoba::kernels
