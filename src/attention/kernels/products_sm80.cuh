// Products of one warp with mma.sync, shared by the sm_80 kernels: 16 rows of registers on one side, a swizzled tile of
// shared memory on the other.
//
// Of a 16 x (8 n) accumulator a thread holds acc[j][2 half + i]: row lane / 4 + 8 half, column 8 j + 2 (lane % 4) + i.
// Tiles are taken in groups of 16 rows, and groups without a valid row are left out.
#pragma once
#include <type_traits>

#include "attention/kernels/ampere.cuh"

namespace vmoba::kernels::ampere {

constexpr int kGroup = 16;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2e = 1.4426950408889634f;

// Calls function(std::integral_constant) with the number of groups that hold `valid` rows, 1 to Groups.
template <int Groups, class Function>
__device__ __forceinline__ void with_groups(int valid, const Function& function) {
  if constexpr (Groups > 1) {
    if (valid <= (Groups - 1) * kGroup) {
      with_groups<Groups - 1>(valid, function);
      return;
    }
  }
  function(std::integral_constant<int, Groups>{});
}

// acc (16 x Rows) = A (16 x D) times the transpose of the rows [first, first + Rows) of a tile of TileRows rows;
// operand(k, a) gives the 16 x 16 operand of step k. Columns of groups that are left out are zeros.
template <int D, int TileRows, int Rows, class Operand>
__device__ __forceinline__ void multiply_rows(float (&acc)[Rows / 8][4], uint32_t tile, int first, int valid,
                                              const Operand& operand) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < Rows / 8; ++n) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
  with_groups<Rows / kGroup>(valid, [&](auto groups) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint32_t a[4];
      operand(k, a);
#pragma unroll
      for (int n = 0; n < decltype(groups)::value; ++n) {
        uint32_t b[4];
        ldmatrix_x4(b,
                    tile + tile_offset<TileRows>(first + n * kGroup + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
        mma_16x8x16(acc[2 * n], a, b[0], b[1]);
        mma_16x8x16(acc[2 * n + 1], a, b[2], b[3]);
      }
    }
  });
}

// The same with an operand in registers.
template <int D, int TileRows, int Rows>
__device__ __forceinline__ void multiply_rows(float (&acc)[Rows / 8][4], uint32_t tile, int first, int valid,
                                              const uint32_t (&operand)[D / 16][4]) {
  multiply_rows<D, TileRows, Rows>(acc, tile, first, valid, [&](int k, uint32_t(&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = operand[k][i];
  });
}

// A 16 x (8 N) accumulator as the left operand of a product.
template <int N>
__device__ __forceinline__ void pack(uint32_t (&packed)[N][2], const float (&values)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    packed[n][0] = hopper::pack_bf16(values[n][0], values[n][1]);
    packed[n][1] = hopper::pack_bf16(values[n][2], values[n][3]);
  }
}

// acc (16 x D) += left (16 x Rows) times the rows [first, first + Rows) of a tile of TileRows rows.
template <int D, int TileRows, int Rows>
__device__ __forceinline__ void accumulate_rows(float (&acc)[D / 8][4], const uint32_t (&left)[Rows / 8][2],
                                                uint32_t tile, int first, int valid) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < Rows / kGroup; ++k) {
    if (k > 0 && k * kGroup >= valid) break;
    const uint32_t a[4] = {left[2 * k][0], left[2 * k][1], left[2 * k + 1][0], left[2 * k + 1][1]};
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, tile + tile_offset<TileRows>(first + k * kGroup + lane % 16, d * 2 + lane / 16));
      mma_16x8x16(acc[2 * d], a, b[0], b[1]);
      mma_16x8x16(acc[2 * d + 1], a, b[2], b[3]);
    }
  }
}

// ---- one warp's rows against the keys of a tile -------------------------------------------------------------------

constexpr int kKeyTile = 64;

template <int D>
struct WarpRows {
  uint32_t query[D / 16][4];
  float scores[kKeyTile / 8][4];
  float output[D / 8][4];
  float maximum[2], sum[2];
};

// Scores of keys from `valid` on can no longer win.
template <int N>
__device__ __forceinline__ void mask_scores(float (&scores)[N][4], int valid) {
  if (valid >= 8 * N) return;
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n * 8 + column + i % 2 >= valid) scores[n][i] = -INFINITY;
    }
  }
}

// Online softmax over the tile's scores, whose probabilities replace them; rescales the output to the new maximum.
template <int D>
__device__ __forceinline__ void softmax(WarpRows<D>& rows, float scale_log2) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float maximum = rows.maximum[r];
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n) {
      maximum = fmaxf(maximum, fmaxf(rows.scores[n][2 * r], rows.scores[n][2 * r + 1]));
    }
    maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 1));
    maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 2));
    const float rescale = hopper::exp2_approx((rows.maximum[r] - maximum) * scale_log2);
    rows.maximum[r] = maximum;
    rows.sum[r] *= rescale;
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      rows.output[d][2 * r] *= rescale;
      rows.output[d][2 * r + 1] *= rescale;
    }
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = rows.scores[n][2 * r + i];
        score = hopper::exp2_approx(fmaf(score, scale_log2, -maximum * scale_log2));
        rows.sum[r] += score;
      }
    }
  }
}

// Adds the tile's values, `valid` of them.
template <int D>
__device__ __forceinline__ void add_values(WarpRows<D>& rows, uint32_t values, int valid) {
  uint32_t packed[kKeyTile / 8][2];
  pack(packed, rows.scores);
  accumulate_rows<D, kKeyTile, kKeyTile>(rows.output, packed, values, 0, valid);
}

// The sum of row lane / 4 + 8 r over its quad.
template <int D>
__device__ __forceinline__ float row_sum(const WarpRows<D>& rows, int r) {
  float sum = rows.sum[r];
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

}  // namespace vmoba::kernels::ampere
