#include "model/common/linear.h"

#include <ATen/ops/linear.h>

namespace vmoba::model {

at::Tensor linear(const at::Tensor& x, const Linear& map) {
  const at::Tensor weight = map.weight.dim() == 2 ? map.weight : map.weight.flatten(1);
  return at::linear(x, weight.to(x.scalar_type()), map.bias.to(x.scalar_type()));
}

at::ScalarType precise_type(at::ScalarType compute_dtype) {
  return compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace vmoba::model
