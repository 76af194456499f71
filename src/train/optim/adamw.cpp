#include "train/optim/adamw.h"

#include <ATen/ATen.h>

#include <map>

namespace vmoba::train {
namespace {

std::vector<at::Tensor> chosen(const std::vector<at::Tensor>& all, const std::vector<size_t>& numbers) {
  std::vector<at::Tensor> out;
  for (const size_t number : numbers) out.push_back(all[number]);
  return out;
}

}  // namespace

std::vector<StateLayout> adamw_state(const OptimizerConfig&, const model::Parameter& parameter) {
  const at::ScalarType kept = parameter.tensor.scalar_type(), dtype = kept == at::kBFloat16 ? at::kFloat : kept;
  return {{"exp_avg", dtype}, {"exp_avg_sq", dtype}};
}

AdamW::AdamW(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters)
    : Optimizer(parameters, [&](const model::Parameter& p) { return adamw_state(config, p); }),
      config_(config),
      exp_avg_(state_of("exp_avg")),
      exp_avg_sq_(state_of("exp_avg_sq")) {
  for (const model::Parameter& p : parameters)
    steps_.push_back(at::zeros({}, at::TensorOptions(p.tensor.device()).dtype(at::kFloat)));
}

void AdamW::step(const Update& update) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> gradients = this->gradients();
  if (gradients.empty()) return;
  if (update.gradient_factor.defined())
    at::_foreach_mul_(gradients, update.gradient_factor.to(gradients.front().scalar_type()));
  std::optional<at::Tensor> skip;
  if (update.skip.defined()) skip = update.skip.to(at::kFloat);
  at::_foreach_add_(steps_, 1);
  std::map<Treatment, std::vector<size_t>> groups;
  for (size_t i = 0; i < gradients.size(); ++i) groups[treatments()[i]].push_back(i);
  for (const auto& [treatment, numbers] : groups)
    at::_fused_adamw_(chosen(parameters(), numbers), chosen(gradients, numbers), chosen(exp_avg_, numbers),
                      chosen(exp_avg_sq_, numbers), /*max_exp_avg_sqs=*/{}, chosen(steps_, numbers),
                      treatment.lr_factor * update.lr, config_.betas[0], config_.betas[1],
                      treatment.decays ? config_.weight_decay : 0, config_.eps,
                      /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{}, /*found_inf=*/skip);
}

void AdamW::set_steps(int64_t steps_done) {
  const at::NoGradGuard no_grad;
  for (const at::Tensor& steps : steps_) steps.fill_(double(steps_done));
}

}  // namespace vmoba::train
