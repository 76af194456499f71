#include "train/optim/optimizer.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace vmoba::train {
namespace {

std::vector<at::Tensor> gradients_of(const std::vector<model::Parameter>& parameters) {
  std::vector<at::Tensor> out;
  for (const model::Parameter& p : parameters)
    if (p.tensor.grad().defined()) out.push_back(p.tensor.grad());
  return out;
}

}  // namespace

AdamW::AdamW(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters) : config_(config) {
  for (const model::Parameter& p : parameters) {
    names_.push_back(p.name);
    parameters_.push_back(p.tensor);
    exp_avg_.push_back(at::zeros_like(p.tensor).detach());
    exp_avg_sq_.push_back(at::zeros_like(p.tensor).detach());
    steps_.push_back(at::zeros({}, p.tensor.options().dtype(at::kFloat)));
  }
}

void AdamW::step(double lr) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& parameter : parameters_)
    gradients.push_back(parameter.grad().defined() ? parameter.grad() : at::zeros_like(parameter));
  at::_foreach_add_(steps_, 1);
  at::_fused_adamw_(parameters_, gradients, exp_avg_, exp_avg_sq_, /*max_exp_avg_sqs=*/{}, steps_, lr, config_.betas[0],
                    config_.betas[1], config_.weight_decay, config_.eps, /*amsgrad=*/false,
                    /*maximize=*/false);
}

void AdamW::zero_grad() {
  for (at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
}

std::vector<model::NamedTensor> AdamW::state() const {
  std::vector<model::NamedTensor> out;
  for (size_t i = 0; i < names_.size(); ++i) {
    out.push_back({"exp_avg." + names_[i], exp_avg_[i]});
    out.push_back({"exp_avg_sq." + names_[i], exp_avg_sq_[i]});
  }
  return out;
}

void AdamW::set_steps(int64_t steps_done) {
  const at::NoGradGuard no_grad;
  for (const at::Tensor& steps : steps_) steps.fill_(double(steps_done));
}

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
