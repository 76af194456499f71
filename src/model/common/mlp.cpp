#include "model/common/mlp.h"

#include <ATen/ops/gelu.h>

namespace vmoba::model {

at::Tensor gelu_mlp(const at::Tensor& x, const Linear& up, const Linear& down) {
  return linear(at::gelu(linear(x, up), "tanh"), down);
}

}  // namespace vmoba::model
