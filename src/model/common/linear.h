// Affine maps with an optional low-rank adapter beside a frozen weight. How the stored weight enters the product is the
// map's recipe, chosen once where a weight is bound to its map. Tensors are borrowed; no state.
#pragma once
#include <ATen/core/Tensor.h>

#include <variant>

#include "model/common/packing.h"

namespace vmoba::model {

// A low-rank adapter (Hu et al. 2106.09685): adds scale * x A^T B^T to the map. Undefined tensors: none.
struct LowRank {
  at::Tensor a;  // [r, in]
  at::Tensor b;  // [out, r]
  double scale = 1;
};

// The weight is cast to the input's dtype where it is used, so that gradients reach an fp32 master.
struct CastWeight {};
// The weight is stored in fp8; times its scale (scaled_weight), in the input's dtype, it takes part.
struct ScaledWeight {
  at::Tensor scale;
};
// The weight's rows are packed (common/packed.h): bytes [out, bytes of a row]. Unpacked in the input's dtype it takes
// part.
struct PackedWeight {
  Packing packing;
};
using LinearRecipe = std::variant<CastWeight, ScaledWeight, PackedWeight>;

struct Linear {
  at::Tensor weight;  // [out, in], packed ones [out, bytes]
  at::Tensor bias;    // [out]
  LinearRecipe recipe = {};
  LowRank adapter = {};
};

// x [..., in] -> [..., out] in the dtype of x.
at::Tensor linear(const at::Tensor& x, const Linear& map);

// The map's weight [out, in] as it enters products of `dtype`.
at::Tensor weight_in(const Linear& map, at::ScalarType dtype);

// weight * scale in `dtype`. The scale has one value, one for each row ([out] or [out, 1]), or one for each of n equal
// runs of columns of a row ([out, n, 1]).
at::Tensor scaled_weight(const at::Tensor& weight, const at::Tensor& scale, at::ScalarType dtype);

// x [..., E] -> [R, E], contiguous.
at::Tensor as_rows(const at::Tensor& x);

// For functions whose backward is made of products: it has no second derivative. Throws where it is asked for one.
void check_first_order();

// The dtype of normalisation, modulation, rotation and time embedding: fp64 for fp64 computation, else fp32.
at::ScalarType precise_type(at::ScalarType compute_dtype);

}  // namespace vmoba::model
