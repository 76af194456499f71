#include "train/optim/optimizer.h"

#include <ATen/ATen.h>

#include <map>

#include "core/registry.h"
#include "train/optim/adamw.h"

namespace vmoba::train {
namespace {

struct Kind {
  std::unique_ptr<Optimizer> (*make)(const OptimizerConfig&, const std::vector<model::Parameter>&);
  std::vector<StateLayout> (*state)(const OptimizerConfig&, const model::Parameter&);
  int64_t (*values_per_unit)(const OptimizerConfig&);
};

template <typename Kept>
std::unique_ptr<Optimizer> make(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters) {
  return std::make_unique<Kept>(config, parameters);
}

int64_t any_values(const OptimizerConfig&) {
  return 1;
}

// One line per optimiser. The second one brings the key train.optimizer.type.
const Registry<Kind>& optimizers() {
  static const Registry<Kind> table("train.optimizer.type", {{"adamw", {make<AdamW>, adamw_state, any_values}}});
  return table;
}

const Kind& chosen(const OptimizerConfig&) {
  return optimizers().find("adamw");
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
                                          const std::vector<model::Parameter>& parameters) {
  return chosen(config).make(config, parameters);
}

std::vector<StateLayout> optimizer_state(const OptimizerConfig& config, const model::Parameter& parameter) {
  return chosen(config).state(config, parameter);
}

int64_t values_per_unit(const OptimizerConfig& config) {
  return chosen(config).values_per_unit(config);
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
