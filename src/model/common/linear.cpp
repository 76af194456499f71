#include "model/common/linear.h"

#include <ATen/ops/linear.h>

#include "model/common/packed.h"

namespace vmoba::model {
namespace {

// One function for each recipe.
at::Tensor weight_in(const CastWeight&, const at::Tensor& weight, at::ScalarType dtype) {
  return weight.to(dtype);
}

at::Tensor weight_in(const ScaledWeight& recipe, const at::Tensor& weight, at::ScalarType dtype) {
  return scaled_weight(weight, recipe.scale, dtype);
}

at::Tensor weight_in(const PackedWeight& recipe, const at::Tensor& weight, at::ScalarType dtype) {
  return unpacked(weight, recipe.packing, dtype);
}

// x W^T + bias.
at::Tensor product(const at::Tensor& x, const Linear& map) {
  const at::ScalarType dtype = x.scalar_type();
  return at::linear(x, weight_in(map, dtype), map.bias.to(dtype));
}

}  // namespace

at::Tensor weight_in(const Linear& map, at::ScalarType dtype) {
  return std::visit([&](const auto& recipe) { return weight_in(recipe, map.weight, dtype); }, map.recipe);
}

at::Tensor scaled_weight(const at::Tensor& weight, const at::Tensor& scale, at::ScalarType dtype) {
  const at::ScalarType precise = precise_type(dtype);
  const at::Tensor values = weight.to(precise), factor = scale.to(precise);
  if (factor.numel() == 1) return (values * factor.reshape(at::IntArrayRef())).to(dtype);
  const int64_t runs = factor.numel() / weight.size(0);
  return (values.view({weight.size(0), runs, -1}) * factor.view({weight.size(0), runs, 1}))
      .view(weight.sizes())
      .to(dtype);
}

at::Tensor linear(const at::Tensor& x, const Linear& map) {
  const LowRank& adapter = map.adapter;
  if (!adapter.a.defined()) return product(x, map);
  const at::ScalarType dtype = x.scalar_type();
  const at::Tensor rows = x.flatten(0, -2);
  at::Tensor out = product(rows, map);
  out.addmm_(at::linear(rows, adapter.a.to(dtype)), adapter.b.to(dtype).t(), /*beta=*/1, adapter.scale);
  return out.unflatten(0, x.sizes().slice(0, size_t(x.dim() - 1)));
}

at::ScalarType precise_type(at::ScalarType compute_dtype) {
  return compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace vmoba::model
