// Affine maps whose fp32 master weights are cast to the input's dtype where they are used, so that gradients reach the
// masters. Tensors are borrowed; no state.
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::model {

struct Linear {
  at::Tensor weight;  // [out, in]; more dimensions behind `in` are flattened
  at::Tensor bias;    // [out]
};

// x [..., in] -> [..., out] in the dtype of x.
at::Tensor linear(const at::Tensor& x, const Linear& map);

// The dtype of normalisation, modulation, rotation and time embedding: fp64 for fp64 computation, else fp32.
at::ScalarType precise_type(at::ScalarType compute_dtype);

}  // namespace vmoba::model
