// Two affine maps with a tanh-approximated GELU between them: Wan's feed-forward and text embedder.
#pragma once
#include <ATen/core/Tensor.h>

#include "model/common/linear.h"

namespace vmoba::model {

at::Tensor gelu_mlp(const at::Tensor& x, const Linear& up, const Linear& down);

}  // namespace vmoba::model
