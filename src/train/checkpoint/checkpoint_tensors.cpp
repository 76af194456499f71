#include "train/checkpoint/checkpoint_tensors.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace vmoba::train {

std::vector<HeldTensor> held_weights(const Expert& expert) {
  std::vector<HeldTensor> out;
  for (const model::Parameter& p : expert.dit->trainable()) out.push_back({p.name, p.shape().vec(), p.tensor.detach()});
  return out;
}

std::vector<HeldTensor> held_average(const Expert& expert) {
  std::vector<HeldTensor> out = held_weights(expert);
  for (size_t i = 0; i < out.size(); ++i) out[i].held = expert.ema->tensors()[i];
  return out;
}

std::vector<HeldTensor> held_state(const Expert& expert) {
  std::vector<HeldTensor> out;
  const std::vector<model::Parameter>& parameters = expert.dit->trainable();
  for (const Optimizer::State& state : expert.optimizer->state()) {
    const model::Parameter& p = parameters[state.parameter];
    out.push_back({state.layout.name + "." + p.name, state.layout.shape(p.shape()), state.tensor});
  }
  return out;
}

ValueRun held_run(const Expert& expert, const HeldTensor& tensor) {
  const int64_t values = c10::multiply_integers(tensor.shape);
  if (expert.holders == nullptr) return {0, values};
  const int64_t part = tensor.held.numel(), begin = std::min(part * expert.holders->rank(), values);
  return {begin, std::min(part, values - begin)};
}

ValueRun written_run(const Expert& expert, const HeldTensor& tensor) {
  const ValueRun held = held_run(expert, tensor);
  if (expert.copies == nullptr) return held;
  const int64_t share = (held.count + expert.copies->size() - 1) / expert.copies->size();
  const int64_t first = std::min(share * expert.copies->rank(), held.count);
  return {held.begin + first, std::min(share, held.count - first)};
}

}  // namespace vmoba::train
