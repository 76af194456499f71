// Norm of gradients, and what clips them.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/dit.h"

namespace vmoba::train {

// Global L2 norm of all gradients (fp32 scalar tensor; no synchronisation).
at::Tensor gradient_norm(const std::vector<model::Parameter>& parameters);

// What gradients of this norm are multiplied with, min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_:
// an fp64 scalar on the norm's device; undefined for max_norm 0. No synchronisation.
at::Tensor clip_factor(const at::Tensor& norm, double max_norm);

}  // namespace vmoba::train
