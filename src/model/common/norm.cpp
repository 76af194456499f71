#include "model/common/norm.h"

#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rms_norm.h>

#include "model/common/linear.h"

namespace vmoba::model {

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const at::ScalarType precise = precise_type(x.scalar_type());
  if (!weight.defined()) return at::layer_norm(x.to(precise), {x.size(-1)}, {}, {}, eps);
  return at::layer_norm(x.to(precise), {x.size(-1)}, weight.to(precise), bias.to(precise), eps);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::ScalarType precise = precise_type(x.scalar_type());
  return at::rms_norm(x.to(precise), {x.size(-1)}, weight.to(precise), eps).to(x.scalar_type());
}

}  // namespace vmoba::model
