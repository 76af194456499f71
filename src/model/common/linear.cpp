#include "model/common/linear.h"

#include <ATen/ops/addmm.h>
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
  const at::Tensor out = at::linear(x, scaled_weight(weight, map.scale, dtype), map.bias.to(dtype));
  const LowRank& adapter = map.adapter;
  if (!adapter.a.defined()) return out;
  // One pass over the output: the product is added while it is written.
  const at::Tensor low = at::linear(x, adapter.a.to(dtype)), b = adapter.b.to(dtype);
  return at::addmm(out.flatten(0, -2), low.flatten(0, -2), b.t(), /*beta=*/1, adapter.scale).view(out.sizes());
}

at::ScalarType precise_type(at::ScalarType compute_dtype) {
  return compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace vmoba::model
