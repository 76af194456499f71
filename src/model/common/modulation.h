// Adaptive modulation of a DiT block (adaLN, Peebles & Xie, arXiv 2212.09748), in fp32 (fp64 for fp64 inputs).
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::model {

// norm(x) * (1 + scale) + shift, then in `dtype`. norm_BSE in the precise dtype; scale, shift [B, G, E]: row g belongs
// to the g-th of G equal runs of tokens (G = 1: to all of them; S must be a multiple of G).
at::Tensor modulate(const at::Tensor& norm_BSE, const at::Tensor& scale_BGE, const at::Tensor& shift_BGE,
                    at::ScalarType dtype);

// x + branch * gate in the precise dtype, then in the dtype of x; gate [B, G, E] as above.
at::Tensor add_gated(const at::Tensor& x_BSE, const at::Tensor& branch_BSE, const at::Tensor& gate_BGE);

// Sinusoidal embedding of timesteps [...] -> [..., channels]: cosines, then sines, of t * 10000^(-i / (channels/2)), as
// diffusers' Timesteps(flip_sin_to_cos=True, downscale_freq_shift=0). In the dtype of `timestep`.
at::Tensor timestep_embedding(const at::Tensor& timestep, int64_t channels);

}  // namespace vmoba::model
