// 3D rotary position embedding (Su et al., arXiv 2104.09864; split over t, h, w as in Wan and diffusers'
// WanRotaryPosEmbed): of the D channels of a head, 2*(D/6) turn with w, as many with h, the rest with t.
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/attention.h"

namespace vmoba::model {

// exp(i * position * frequency) of every token and channel pair: complex [S, D/2], complex64 (complex128 for
// `precise` fp64), on `device`. head_dim must be even.
at::Tensor rope_table(const attention::Grid& grid, int64_t head_dim, at::ScalarType precise, at::Device device);

// Rotates neighbouring channel pairs of x [B, S, N, D] in the table's precision; result in the dtype of x.
at::Tensor apply_rope(const at::Tensor& x_BSND, const at::Tensor& table_SP);

}  // namespace vmoba::model
