// Adaptive modulation of a DiT block (adaLN, Peebles & Xie, arXiv 2212.09748), in fp32 (fp64 for fp64 inputs).
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::model {

// norm(x) * (1 + scale) + shift, then in `dtype`. norm_BSE in the precise dtype; scale, shift [B, 1, E].
at::Tensor modulate(const at::Tensor& norm_BSE, const at::Tensor& scale_B1E, const at::Tensor& shift_B1E,
                    at::ScalarType dtype);

// x + branch * gate in the precise dtype, then in the dtype of x.
at::Tensor add_gated(const at::Tensor& x_BSE, const at::Tensor& branch_BSE, const at::Tensor& gate_B1E);

// Sinusoidal embedding of timesteps [B] -> [B, channels]: cosines, then sines, of t * 10000^(-i / (channels/2)), as
// diffusers' Timesteps(flip_sin_to_cos=True, downscale_freq_shift=0). In the dtype of `timestep_B`.
at::Tensor timestep_embedding(const at::Tensor& timestep_B, int64_t channels);

}  // namespace vmoba::model
