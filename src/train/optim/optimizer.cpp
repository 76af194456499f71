#include "train/optim/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "core/registry.h"
#include "train/optim/adamw.h"
#include "train/optim/compact_adamw.h"
#include "train/optim/muon.h"

namespace vmoba::train {
namespace {

using Parameters = std::vector<model::Parameter>;

struct Kind {
  std::unique_ptr<Optimizer> (*make)(const OptimizerConfig&, const Parameters&, const Placement&);
  std::vector<StateLayout> (*state)(const OptimizerConfig&, const model::Parameter&);
  int64_t values_per_unit;  // for what is kept; rounding may ask for more
};

std::unique_ptr<Optimizer> make_adamw(const OptimizerConfig& config, const Parameters& parameters,
                                      const Placement& placement) {
  const bool rounds = std::any_of(parameters.begin(), parameters.end(),
                                  [](const model::Parameter& p) { return p.tensor.scalar_type() == at::kBFloat16; });
  if (!rounds) return std::make_unique<AdamW>(config, parameters);
  return std::make_unique<CompactAdamW>(config, parameters, placement,
                                        [&](const model::Parameter& p) { return adamw_state(config, p); });
}

std::unique_ptr<Optimizer> make_adamw_8bit(const OptimizerConfig& config, const Parameters& parameters,
                                           const Placement& placement) {
  return std::make_unique<CompactAdamW>(config, parameters, placement,
                                        [&](const model::Parameter& p) { return adamw_8bit_state(config, p); });
}

std::unique_ptr<Optimizer> make_muon(const OptimizerConfig& config, const Parameters& parameters,
                                     const Placement& placement) {
  return std::make_unique<Muon>(config, parameters, placement);
}

// One line per optimiser.
const Registry<Kind>& optimizers() {
  static const Registry<Kind> table("train.optimizer.type",
                                    {{"adamw", {make_adamw, adamw_state, 1}},
                                     {"adamw_8bit", {make_adamw_8bit, adamw_8bit_state, updates::kScaleValues}},
                                     {"muon", {make_muon, muon_state, 1}}});
  return table;
}

const Kind& chosen(const OptimizerConfig& config) {
  return optimizers().find(config.type);
}

}  // namespace

std::vector<int64_t> StateLayout::shape(at::IntArrayRef parameter) const {
  if (values_per_entry == 1) return parameter.vec();
  return {entries(c10::multiply_integers(parameter))};
}

Optimizer::Optimizer(const std::vector<model::Parameter>& parameters, const Layouts& layouts) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    const model::Parameter& p = parameters[i];
    parameters_.push_back(p.tensor);
    treatments_.emplace_back();
    const at::TensorOptions options = at::TensorOptions(p.tensor.device());
    for (StateLayout& layout : layouts(p))
      state_.push_back({i, layout, at::zeros(layout.shape(p.tensor.sizes()), options.dtype(layout.dtype))});
  }
}

void Optimizer::zero_grad() {
  for (at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
}

std::vector<at::Tensor> Optimizer::gradients() const {
  std::vector<at::Tensor> out;
  for (const at::Tensor& parameter : parameters_)
    out.push_back(parameter.grad().defined() ? parameter.grad() : at::zeros_like(parameter));
  return out;
}

std::vector<at::Tensor> Optimizer::state_of(const std::string& name) const {
  std::vector<at::Tensor> out;
  for (const State& state : state_)
    if (state.layout.name == name) out.push_back(state.tensor);
  return out;
}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          const std::vector<model::Parameter>& parameters, const Placement& placement) {
  return chosen(config).make(config, parameters, placement);
}

std::vector<StateLayout> optimizer_state(const OptimizerConfig& config, const model::Parameter& parameter) {
  return chosen(config).state(config, parameter);
}

int64_t values_per_unit(const OptimizerConfig& config, bool rounds) {
  return std::max(chosen(config).values_per_unit, rounds ? updates::kDrawValues : int64_t{1});
}

int64_t optimizer_bytes(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters, int64_t ranks) {
  std::map<std::pair<std::string, at::ScalarType>, int64_t> entries;
  for (const model::Parameter& p : parameters)
    for (const StateLayout& layout : optimizer_state(config, p))
      entries[{layout.name, layout.dtype}] += layout.entries(c10::multiply_integers(p.shape()));
  int64_t bytes = 0;
  for (const auto& [kind, count] : entries)
    bytes += int64_t(c10::elementSize(kind.second)) * ((count + ranks - 1) / ranks);
  return bytes;
}

}  // namespace vmoba::train
