#include "train/optim/ema.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace vmoba::train {
namespace {

bool is_narrow(const at::Tensor& weight) {
  return weight.scalar_type() == at::kBFloat16;
}

}  // namespace

Ema::Ema(const EmaConfig& config, const std::vector<model::Parameter>& parameters)
    : config_(config), parameters_(parameters) {
  for (const model::Parameter& p : parameters_) {
    average_.push_back(is_narrow(p.tensor) ? p.tensor.detach().to(at::kFloat) : p.tensor.detach().clone());
  }
}

void Ema::update(int64_t step) {
  const at::NoGradGuard no_grad;
  const double decay = std::min(config_.decay, (1.0 + double(step)) / (10.0 + double(step)));
  std::vector<at::Tensor> averages, weights;
  for (size_t i = 0; i < average_.size(); ++i) {
    const at::Tensor& weight = parameters_[i].tensor;
    if (is_narrow(weight)) {  // one after the other: the copies in fp32 are large together
      average_[i].lerp_(weight.detach().to(at::kFloat), 1.0 - decay);
      continue;
    }
    averages.push_back(average_[i]);
    weights.push_back(weight);
  }
  if (!averages.empty()) at::_foreach_lerp_(averages, weights, 1.0 - decay);
}

std::vector<model::NamedTensor> Ema::weights() const {
  std::vector<model::NamedTensor> out;
  for (size_t i = 0; i < parameters_.size(); ++i) out.push_back({parameters_[i].name, average_[i]});
  return out;
}

void Ema::swap() {
  const at::NoGradGuard no_grad;
  replaced_.resize(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor weight = parameters_[i].tensor.detach();
    if (is_narrow(weight)) {
      const at::Tensor before = replaced_[i];
      replaced_[i] = before.defined() ? at::Tensor() : weight.clone();
      weight.copy_(before.defined() ? before : average_[i]);
      continue;
    }
    const at::Tensor kept = average_[i].clone();
    average_[i].copy_(weight);
    weight.copy_(kept);
  }
}

}  // namespace vmoba::train
