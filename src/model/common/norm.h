// Normalisations in fp32 (fp64 where the input is fp64), whatever the input's dtype.
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::model {

// Layer norm over the last dimension; weight and bias may be undefined together. Result in the precise dtype, for the
// modulation that follows.
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps);

// x / rms(x) * weight over the whole last dimension [.., N*D], all heads together (Wan's qk norm). Result in the
// dtype of x.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

}  // namespace vmoba::model
