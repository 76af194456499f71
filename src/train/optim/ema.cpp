#include "train/optim/ema.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace vmoba::train {
namespace {

std::vector<at::Tensor> tensors_of(const std::vector<model::Parameter>& parameters) {
  std::vector<at::Tensor> out;
  for (const model::Parameter& p : parameters) out.push_back(p.tensor);
  return out;
}

}  // namespace

Ema::Ema(const EmaConfig& config, const std::vector<model::Parameter>& parameters)
    : config_(config), parameters_(parameters) {
  for (const model::Parameter& p : parameters_) average_.push_back(p.tensor.detach().clone());
}

void Ema::update(int64_t step) {
  const at::NoGradGuard no_grad;
  const double decay = std::min(config_.decay, (1.0 + double(step)) / (10.0 + double(step)));
  at::_foreach_lerp_(average_, tensors_of(parameters_), 1.0 - decay);
}

std::vector<model::NamedTensor> Ema::weights() const {
  std::vector<model::NamedTensor> out;
  for (size_t i = 0; i < parameters_.size(); ++i) out.push_back({parameters_[i].name, average_[i]});
  return out;
}

void Ema::swap() {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor kept = average_[i].clone();
    average_[i].copy_(parameters_[i].tensor);
    parameters_[i].tensor.detach().copy_(kept);
  }
}

}  // namespace vmoba::train
