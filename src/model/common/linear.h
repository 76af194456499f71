// Affine maps whose stored weights are cast to the input's dtype where they are used, so that gradients reach fp32
// masters, with an optional low-rank adapter beside a frozen weight. Tensors are borrowed; no state.
#pragma once
#include <ATen/core/Tensor.h>

namespace vmoba::model {

// A low-rank adapter (Hu et al. 2106.09685): adds scale * x A^T B^T to the map. Undefined tensors: none.
struct LowRank {
  at::Tensor a;  // [r, in]
  at::Tensor b;  // [out, r]
  double scale = 1;
};

struct Linear {
  at::Tensor weight;      // [out, in]; more dimensions behind `in` are flattened
  at::Tensor bias;        // [out]
  at::Tensor scale = {};  // of an fp8 weight, see scaled_weight; undefined: 1
  LowRank adapter = {};
};

// x [..., in] -> [..., out] in the dtype of x.
at::Tensor linear(const at::Tensor& x, const Linear& map);

// weight * scale in `dtype`. The scale has one value, one for each row ([out] or [out, 1]), or one for each of n equal
// runs of columns of a row ([out, n, 1]); undefined: 1.
at::Tensor scaled_weight(const at::Tensor& weight, const at::Tensor& scale, at::ScalarType dtype);

// The dtype of normalisation, modulation, rotation and time embedding: fp64 for fp64 computation, else fp32.
at::ScalarType precise_type(at::ScalarType compute_dtype);

}  // namespace vmoba::model
