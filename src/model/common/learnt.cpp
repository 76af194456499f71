#include "model/common/learnt.h"

#include <ATen/ops/full.h>

namespace vmoba::model {
namespace {

using Learnt = std::vector<attention::LearntParameter>;

const Learnt& learnt_in(const ModelConfig& config, int64_t layer) {
  static const Learnt none;
  return size_t(layer) < config.learnt.size() ? config.learnt[size_t(layer)] : none;
}

}  // namespace

void learnt_specs(SpecList& specs, const std::string& module, const ModelConfig& config, int64_t layer) {
  for (const attention::LearntParameter& parameter : learnt_in(config, layer))
    specs.optional_tensor(module + "." + parameter.name, parameter.shape, constant(parameter.initial));
}

std::vector<at::Tensor> learnt_for(const attention::LayerAttention& layer, const ModelConfig& config,
                                   const std::vector<at::Tensor>& held, const at::Tensor& q_BSND) {
  const Learnt& own = learnt_in(config, layer.index);
  std::vector<at::Tensor> out;
  for (const attention::LearntParameter& wanted : learnt_parameters(layer, config.heads, config.head_dim)) {
    at::Tensor whole;
    for (size_t i = 0; i < held.size(); ++i)
      if (own.at(i).name == wanted.name) whole = held[i];
    if (!whole.defined())
      whole = at::full(wanted.shape, wanted.initial, q_BSND.options().dtype(at::kFloat).requires_grad(false));
    out.push_back(whole.narrow(0, layer.first_head, q_BSND.size(2)));
  }
  return out;
}

}  // namespace vmoba::model
