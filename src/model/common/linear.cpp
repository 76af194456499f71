#include "model/common/linear.h"

#include <ATen/ops/linear.h>

namespace vmoba::model {

at::Tensor scaled_weight(const at::Tensor& weight, const at::Tensor& scale, at::ScalarType dtype) {
  if (!scale.defined()) return weight.to(dtype);
  const at::ScalarType precise = precise_type(dtype);
  const at::Tensor values = weight.to(precise), factor = scale.to(precise);
  if (factor.numel() == 1) return (values * factor.reshape(at::IntArrayRef())).to(dtype);
  const int64_t runs = factor.numel() / weight.size(0);
  return (values.view({weight.size(0), runs, -1}) * factor.view({weight.size(0), runs, 1}))
      .view(weight.sizes())
      .to(dtype);
}

at::Tensor linear(const at::Tensor& x, const Linear& map) {
  const at::ScalarType dtype = x.scalar_type();
  const at::Tensor weight = map.weight.dim() == 2 ? map.weight : map.weight.flatten(1);
  const at::Tensor used_weight = scaled_weight(weight, map.scale, dtype), bias = map.bias.to(dtype);
  const LowRank& adapter = map.adapter;
  if (!adapter.a.defined()) return at::linear(x, used_weight, bias);
  const at::Tensor rows = x.flatten(0, -2);
  at::Tensor out = at::linear(rows, used_weight, bias);
  out.addmm_(at::linear(rows, adapter.a.to(dtype)), adapter.b.to(dtype).t(), /*beta=*/1, adapter.scale);
  return out.unflatten(0, x.sizes().slice(0, size_t(x.dim() - 1)));
}

at::ScalarType precise_type(at::ScalarType compute_dtype) {
  return compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace vmoba::model
