// What the kernels of the backward by query tiles share: the workspace, the statistics of rows, and how a 64 x D
// accumulator becomes rows.
//
// Scores are computed twice, so that every sum stays in registers and nothing depends on the order of threads:
// tile_backward.cu keeps dk and dv of a piece of keys, tile_backward_rows.cu dq of a piece of rows. Where blocks have
// two pieces and more, tile_backward_pairs.cu computes them once and adds dq up in global memory: 128 keys share an add
// then, and the adds hide behind the products. Those of single pieces do not, which cost more than the second time.
#pragma once
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/tiles.cuh"

namespace vmoba::kernels::backward_tiles {

namespace hp = hopper;

constexpr int kThreads = 128;
constexpr float kLog2E = 1.4426950408889634f;
constexpr int kPairRows = 2 * kPieceRows;

// dout in permuted order; sums of dq, group of rows by group, in the order of accumulators (null without pairs); for
// the rows of all groups lse2 (base 2; +inf behind a piece's end) and delta; means' gradients by parts of the rows,
// then their sums in the first part's place.
struct Workspace {
  __nv_bfloat16* dout;
  float* dq;                 // [B, N, groups, 8 D]
  float *lse2, *delta;       // [B, N, groups, 8]
  float *mean_dk, *mean_dv;  // [mean_parts, B, N, C, D]
  float* mean_dbias;         // [mean_parts, B, N, mean_pieces]
  // [3] counters of items: strips of keys, of means, of queries; or pairs of means or pieces of rows, and pairs of keys
  uint32_t* next;
  int mean_parts;  // means are few and have every row in their lists, so thread blocks share the rows
  int64_t bytes;
};

// All maps give boxes of 64 rows, those of parts 32, 16 and 8.
struct Params {
  CUtensorMap q_map, dout_map, k_map, v_map, mean_k_map, mean_v_map;
  CUtensorMap q_parts[3], dout_parts[3];
  TileBackwardArgs args;
  Workspace work;
  float inverse_scale;
};

template <int D>
struct Config {
  static constexpr int kColumns = D;
  static constexpr int kPanels = D / hp::kPanelColumns;
  static constexpr int kPanelBytes = kPieceRows * hp::kPanelRowBytes;
  static constexpr int kPieceBytes = kPanels * kPanelBytes;
  static constexpr int kGradients = D / 2;  // registers of a 64 x D accumulator
};

__device__ __forceinline__ uint32_t address_of(const void* object) {
  return hp::smem_address(object);
}

// 64 rows of `map` from `row` on.
template <class C>
__device__ __forceinline__ void load_piece(const CUtensorMap* map, const char* target, uint64_t& full, int row,
                                           int head, int heads) {
#pragma unroll
  for (int panel = 0; panel < C::kPanels; ++panel) {
    hp::tma_load_4d(address_of(target) + panel * C::kPanelBytes, map, address_of(&full), panel * hp::kPanelColumns, row,
                    head % heads, head / heads);
  }
}

// acc (64 x 64) = a (64 x D) b (64 x D)^T.
template <class C>
__device__ __forceinline__ void multiply_rows(float (&acc)[32], uint32_t a, uint32_t b) {
  hp::wgmma_fence_operand(acc);
#pragma unroll
  for (int k = 0; k < C::kColumns / 16; ++k) {
    const int offset = k / 4 * (C::kPanelBytes >> 4) + k % 4 * 2;
    hp::wgmma_ss<64>(hp::descriptor_k_major(a) + offset, hp::descriptor_k_major(b) + offset, acc, k > 0);
  }
}

// acc (64 x D) += a (64 x 64) b (64 x D).
template <class C>
__device__ __forceinline__ void accumulate(float (&acc)[C::kGradients], const uint32_t (&a)[4][4], uint32_t b) {
  hp::wgmma_fence_operand(acc);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    hp::wgmma_rs<C::kColumns, true>(a[k], hp::descriptor_mn_major(b, C::kPanelBytes) + k * 128, acc, true);
  }
}

// A quad holds a row, two columns of every eight a lane; transposing four words over the quad gives 16-byte stores.
template <int D>
__device__ __forceinline__ void store_row(__nv_bfloat16* row, bool valid, const float (&acc)[D / 2], int half,
                                          float factor) {
  const int lane = threadIdx.x % 32;
  const bool odd = lane & 1, upper = lane & 2;
#pragma unroll
  for (int j = 0; j < D / 8; j += 4) {
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 4 * (j + i) + 2 * half;
      w[i] = hp::pack_bf16(acc[at] * factor, acc[at + 1] * factor);
    }
    const uint32_t from0 = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
    const uint32_t from1 = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
    const uint32_t a0 = odd ? from0 : w[0], a1 = odd ? w[1] : from0;
    const uint32_t b0 = odd ? from1 : w[2], b1 = odd ? w[3] : from1;
    const uint32_t other0 = __shfl_xor_sync(0xffffffffu, upper ? a0 : b0, 2);
    const uint32_t other1 = __shfl_xor_sync(0xffffffffu, upper ? a1 : b1, 2);
    const uint4 chunk = upper ? make_uint4(other0, other1, b0, b1) : make_uint4(a0, a1, other0, other1);
    if (valid) *reinterpret_cast<uint4*>(row + (j + lane % 4) * 8) = chunk;
  }
}

// A piece's means' gradients by one part of the rows.
template <class C>
__device__ __forceinline__ void store_mean_gradients(const Params& params, int64_t part_head, int begin, int keys,
                                                     const float (&dk)[C::kGradients],
                                                     const float (&dv)[C::kGradients]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = own_row() + half * 8;
    if (key >= keys) continue;
    const int64_t row = (part_head * params.args.shape.blocks + begin + key) * C::kColumns + int(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int j = 0; j < C::kColumns / 8; ++j) {
      const int at = 4 * j + 2 * half;
      *reinterpret_cast<float2*>(params.work.mean_dk + row + 8 * j) =
          make_float2(dk[at] * params.args.scale, dk[at + 1] * params.args.scale);
      *reinterpret_cast<float2*>(params.work.mean_dv + row + 8 * j) = make_float2(dv[at], dv[at + 1]);
    }
  }
}

// A warpgroup's sum, in its first thread; `warp_sums` are its four.
__device__ __forceinline__ float warpgroup_sum(float value, float* warp_sums, int named_barrier) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) value += __shfl_xor_sync(0xffffffffu, value, i);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x % kThreads / 32] = value;
  hp::named_barrier_sync(named_barrier, kThreads);
  return warp_sums[0] + warp_sums[1] + warp_sums[2] + warp_sums[3];
}

// Gradients of a piece's keys to the original order, those of its block's mean included: a key is one of its |m| terms.
template <class C>
__device__ __forceinline__ void store_key_gradients(const Params& params, int head, int piece, int begin, int keys,
                                                    float (&dk)[C::kGradients], float (&dv)[C::kGradients]) {
  const TileBackwardArgs& args = params.args;
#pragma unroll
  for (int i = 0; i < C::kGradients; ++i) dk[i] *= args.scale;
  if (args.means.keys != nullptr && piece < args.shape.video_pieces) {
    const int block = __ldg(args.partition.piece_block + piece);
    const int size = __ldg(args.partition.block_begin + block + 1) - __ldg(args.partition.block_begin + block);
    const float share = 1.f / float(size);
    const int64_t row = (int64_t(head) * args.shape.blocks + block) * C::kColumns + int(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int j = 0; j < C::kColumns / 8; ++j) {
      const float2 of_key = __ldg(reinterpret_cast<const float2*>(params.work.mean_dk + row + 8 * j));
      const float2 of_value = __ldg(reinterpret_cast<const float2*>(params.work.mean_dv + row + 8 * j));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        dk[4 * j + 2 * half] = fmaf(of_key.x, share, dk[4 * j + 2 * half]);
        dk[4 * j + 2 * half + 1] = fmaf(of_key.y, share, dk[4 * j + 2 * half + 1]);
        dv[4 * j + 2 * half] = fmaf(of_value.x, share, dv[4 * j + 2 * half]);
        dv[4 * j + 2 * half + 1] = fmaf(of_value.y, share, dv[4 * j + 2 * half + 1]);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = own_row() + half * 8;
    const bool valid = key < keys;
    const int token = valid ? tile_token(args.shape, args.partition, begin + key) : 0;
    store_row<C::kColumns>(tile_row(args.dk, args.shape, head, token), valid, dk, half, 1.f);
    store_row<C::kColumns>(tile_row(args.dv, args.shape, head, token), valid, dv, half, 1.f);
  }
}

// Most blocks are one strip, or nothing may be atomic. Pairs are as fast for blocks of two strips.
inline bool in_strips(const TileShape& s) {
  return s.strip_rows > 0 && (s.key_pairs == 0 || 3 * s.video_strips < 4 * s.blocks);
}

// D = 64 has too few columns for two warpgroups to share dq.
inline bool in_pairs(const TileShape& s) {
  return s.key_pairs > 0 && s.head_dim == 128 && !in_strips(s);
}

__host__ __device__ inline int mean_pairs(const TileShape& s) {
  return (s.blocks + kPairRows - 1) / kPairRows;
}

// dq, one block of threads a piece of rows.
template <int D>
cudaError_t launch_rows(const Params& params, cudaStream_t stream);

// dk, dv and dq of pairs of pieces of keys; adds to the sums of dq, then brings them into rows.
cudaError_t launch_pairs(const Params& params, cudaStream_t stream);

// The same of means, by parts of the rows.
cudaError_t launch_mean_pairs(const Params& params, cudaStream_t stream);

// dk, dv and dq of strips; dq of them alone.
cudaError_t launch_strips(const Params& params, cudaStream_t stream);
cudaError_t launch_query_strips(const Params& params, cudaStream_t stream);

// dk and dv of means for shapes with strips, by parts of the rows.
cudaError_t launch_mean_strips(const Params& params, cudaStream_t stream);

}  // namespace vmoba::kernels::backward_tiles
