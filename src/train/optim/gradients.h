// Norm and clipping of gradients.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/dit.h"

namespace vmoba::train {

// Global L2 norm of all gradients (fp32 scalar tensor; no synchronisation).
at::Tensor gradient_norm(const std::vector<model::Parameter>& parameters);

// Scales all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; max_norm 0: nothing.
void clip_gradients(const std::vector<model::Parameter>& parameters, double norm, double max_norm);

}  // namespace vmoba::train
