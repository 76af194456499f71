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

void clip_gradients(const std::vector<model::Parameter>& parameters, double norm, double max_norm) {
  if (max_norm <= 0 || norm + 1e-6 <= max_norm) return;
  const at::NoGradGuard no_grad;
  at::_foreach_mul_(gradients_of(parameters), max_norm / (norm + 1e-6));
}

}  // namespace vmoba::train
