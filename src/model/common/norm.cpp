#include "model/common/norm.h"

#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rms_norm.h>

#include "model/common/linear.h"

namespace vmoba::model {

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const at::ScalarType precise = precise_type(x.scalar_type());
  const auto normed = [&](const at::Tensor& scale, const at::Tensor& shift) {
    return at::layer_norm(x.to(precise), {x.size(-1)}, scale, shift, eps);
  };
  if (!weight.defined()) return normed({}, {});
  const at::Tensor scale = weight.to(precise), shift = bias.to(precise);
  // ATen's CPU gradient of weight and bias adds one sum per thread; that of a product and a sum keeps to the rows'
  // order.
  return x.is_cpu() ? normed({}, {}) * scale + shift : normed(scale, shift);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::ScalarType precise = precise_type(x.scalar_type());
  return at::rms_norm(x.to(precise), {x.size(-1)}, weight.to(precise), eps).to(x.scalar_type());
}

}  // namespace vmoba::model
