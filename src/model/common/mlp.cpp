#include "model/common/mlp.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/silu.h>

namespace vmoba::model {

at::Tensor gelu_mlp(const at::Tensor& x, const Linear& up, const Linear& down) {
  return linear(at::gelu(linear(x, up), "tanh"), down);
}

at::Tensor silu_mlp(const at::Tensor& x, const Linear& up, const Linear& down) {
  return linear(at::silu(linear(x, up)), down);
}

at::Tensor exact_gelu_mlp(const at::Tensor& x, const Linear& up, const Linear& down) {
  return linear(at::gelu(linear(x, up), "none"), down);
}

}  // namespace vmoba::model
