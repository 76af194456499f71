// 3D rotary position embedding (Su et al., arXiv 2104.09864): some channels of a head turn with t, the next with h, the
// last with w.
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/attention.h"

namespace vmoba::model {

// Channels of a head that turn with each dimension, all even; pair i of n turns by theta^(-i / n) for each position.
struct RopeAxes {
  int64_t t = 0, h = 0, w = 0;
  double theta = 10000;
};

// As in Wan and diffusers' WanRotaryPosEmbed: of the D channels, 2*(D/6) turn with w, as many with h, the rest with t.
RopeAxes sixths(int64_t head_dim);

// exp(i * position * frequency) of every token and channel pair: complex [S, D/2], complex64 (complex128 for
// `precise` fp64), on `device`.
at::Tensor rope_table(const attention::Grid& grid, const RopeAxes& axes, at::ScalarType precise, at::Device device);

// The table with rows behind it that turn nothing: for tokens without a position.
at::Tensor with_still_rows(const at::Tensor& table_SP, int64_t rows);

// Rotates neighbouring channel pairs of x [B, S, N, D] in the table's precision; result in the dtype of x.
at::Tensor apply_rope(const at::Tensor& x_BSND, const at::Tensor& table_SP);

}  // namespace vmoba::model
