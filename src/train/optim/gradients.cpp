#include "train/optim/gradients.h"

#include <ATen/ATen.h>

namespace vmoba::train {
namespace {

std::vector<at::Tensor> gradients_of(const std::vector<model::Parameter>& parameters) {
  std::vector<at::Tensor> out;
  for (const model::Parameter& p : parameters)
    if (p.tensor.grad().defined()) out.push_back(p.tensor.grad());
  return out;
}

}  // namespace

at::Tensor gradient_norm(const std::vector<model::Parameter>& parameters) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> gradients = gradients_of(parameters);
  if (gradients.empty()) return at::zeros({});
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, 2)));
}

at::Tensor clip_factor(const at::Tensor& norm, double max_norm) {
  if (max_norm <= 0) return {};
  const at::NoGradGuard no_grad;
  return (max_norm / (norm.to(at::kDouble) + 1e-6)).clamp_max(1);
}

}  // namespace vmoba::train
