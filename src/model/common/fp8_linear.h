// Linear maps whose products have factors in fp8 (model.linear_compute): inputs and weights in e4m3, gradients in e5m2,
// each divided by a scale of its row, or of the whole, so that its largest value is the format's; sums in fp32. On a
// GPU through its tensor cores; on a CPU the same values are multiplied in fp32 (docs/numerics.md).
//
// Shape letters: R rows, I inputs, O outputs.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

namespace vmoba::model {

struct ModelConfig;
struct KeptMap;

// Whether a block's map computes in fp8. Throws Error(kInput) where it should and this GPU cannot.
bool takes_fp8(const ModelConfig& config, const at::Tensor& x, const KeptMap& map);

// x W^T + bias of several maps of one input [..., I], in the dtype of x; differentiable once. Results that are `known`
// (defined) are taken.
std::vector<at::Tensor> fp8_linears(const ModelConfig& config, const at::Tensor& x,
                                    const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& biases,
                                    const std::vector<at::Tensor>& known);

// A factor: values [rows, K] in fp8, scale [rows, 1] or [1, 1].
struct Fp8Factor {
  at::Tensor values, scale;
};
// Of x [rows, K], or of its transpose [K, rows] with zeros up to a multiple of 16 rows of x.
Fp8Factor fp8_factor(const at::Tensor& x, at::ScalarType format, bool by_row);
Fp8Factor fp8_transposed(const at::Tensor& x, at::ScalarType format, bool by_row);

}  // namespace vmoba::model
