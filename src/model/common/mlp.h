// Two affine maps with an activation between them.
#pragma once
#include <ATen/core/Tensor.h>

#include "model/common/linear.h"

namespace vmoba::model {

// The GELU is approximated by a tanh: Wan's feed-forward and text embedder.
at::Tensor gelu_mlp(const at::Tensor& x, const Linear& up, const Linear& down);

// With SiLU between them: embedders of timesteps and texts.
at::Tensor silu_mlp(const at::Tensor& x, const Linear& up, const Linear& down);

// With the exact GELU: Wan's image embedder.
at::Tensor exact_gelu_mlp(const at::Tensor& x, const Linear& up, const Linear& down);

}  // namespace vmoba::model
