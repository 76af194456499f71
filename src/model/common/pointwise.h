// What stands between the matrix products of a transformer block: norms, modulation, rotation, gated residuals. On a
// GPU in bf16 each is one kernel (src/model/kernels), forward and backward; everywhere else, and for
// `model.pointwise: reference`, one ATen operation follows another (norm.h, modulation.h, rope.h). Both do the same
// mathematics with the same roundings to bf16; sums over a row or over rows are added in another order.
//
// Shape letters: B samples, S tokens, G equal runs of tokens, E width = N heads x D, P = D/2 rotated pairs. Results
// have the dtype of x.
#pragma once
#include <ATen/core/Tensor.h>

#include "model/dit.h"

namespace vmoba::model {

// Whether the operations below take kernels for activations like `x`.
bool takes_kernels(const ModelConfig& config, const at::Tensor& x);

// Layer norm, then modulation: norm(x) * (1 + scale) + shift; scale, shift [B, G, E] in the precise dtype.
at::Tensor modulated_norm(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& scale_BGE,
                          const at::Tensor& shift_BGE);

// Layer norm with weight and bias [E].
at::Tensor affine_norm(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& weight_E,
                       const at::Tensor& bias_E);

// RMS norm over all heads together with weight [E], then, where table_SP is defined, the rotation of rope.h. Returns
// [B, S, N, D].
at::Tensor norm_of_heads(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& weight_E,
                         const at::Tensor& table_SP = {});

// RMS norm of each head on its own with weight [D], one for all heads; the rest as norm_of_heads.
at::Tensor norm_of_each_head(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& weight_D,
                             const at::Tensor& table_SP = {});

// x + branch * gate, gate [B, G, E] in the precise dtype.
at::Tensor gated_sum(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& branch_BSE,
                     const at::Tensor& gate_BGE);

}  // namespace vmoba::model
