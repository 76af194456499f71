// What stands between the matrix products of a transformer block: norms, modulation, rotation, gated residuals. On a
// GPU in bf16 each is one kernel (src/model/kernels), forward and backward; everywhere else, and for
// `model.pointwise: reference`, one ATen operation follows another (norm.h, modulation.h, rope.h). Both do the same
// mathematics with the same roundings to bf16; sums over a row or over rows are added in another order.
//
// Shape letters: B samples, S tokens, G equal runs of tokens, E width = N heads x D, P = D/2 rotated pairs. Results
// have the dtype of x.
#pragma once
#include <ATen/core/Tensor.h>

#include "model/common/linear.h"
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

// Whether sum_norm(), gated_sum() and norm_of_heads() also sum the gradient of a map's result, which they make, over
// its rows: the gradient of that map's bias [E], where they are given it. The map itself then leaves it out
// (without_bias_gradient()); else they look at no bias.
bool sums_for_biases(const ModelConfig& config, const at::Tensor& x);
// The map with a bias through which no gradient comes, where `sums`.
Linear without_bias_gradient(const Linear& map, bool sums);

// RMS norm over all heads together with weight [E], then, where table_SP is defined, the rotation of rope.h. Returns
// [B, S, N, D]. bias_E: of the map to x.
at::Tensor norm_of_heads(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& weight_E,
                         const at::Tensor& table_SP = {}, const at::Tensor& bias_E = {});

// RMS norm of each head on its own with weight [D], one for all heads; the rest as norm_of_heads.
at::Tensor norm_of_each_head(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& weight_D,
                             const at::Tensor& table_SP = {});

// x + branch * gate, gate [B, G, E] in the precise dtype. bias_E: of the map to the branch.
at::Tensor gated_sum(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& branch_BSE,
                     const at::Tensor& gate_BGE, const at::Tensor& bias_E = {});

// A residual, x + branch * gate, or x + branch without a gate, and the norm of the sum: a modulated_norm() by scale and
// shift [B, G, E], an affine_norm() by weight and bias [E] (`modulated` false). bias_E: of the map to the branch.
struct Residual {
  at::Tensor x_BSE, branch_BSE, gate_BGE, bias_E;
};
struct NormOfSum {
  at::Tensor scale, shift;
  bool modulated = true;
};
struct SumAndNorm {
  at::Tensor sum_BSE, norm_BSE;
};
SumAndNorm sum_norm(const ModelConfig& config, const Residual& residual, const NormOfSum& norm);

// x and its modulated_norm(). Where x goes on from here, the norm's backward adds up what comes to x.
SumAndNorm norm_beside(const ModelConfig& config, const at::Tensor& x_BSE, const at::Tensor& scale_BGE,
                       const at::Tensor& shift_BGE);

}  // namespace vmoba::model
