// Exponential moving average of the weights, in fp32 beside them.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "config/root_config.h"
#include "model/dit.h"
#include "model/weights/safetensors.h"

namespace vmoba::train {

class Ema {
 public:
  Ema(const EmaConfig& config, const std::vector<model::Parameter>& parameters);
  // After optimiser step `step` (0-based): average = d * average + (1 - d) * weights, d = min(decay,
  // (1+step)/(10+step)).
  void update(int64_t step);
  // The average under the parameters' names.
  std::vector<model::NamedTensor> weights() const;
  // The average, in the parameters' order, to be read or overwritten.
  const std::vector<at::Tensor>& tensors() { return average_; }
  // Exchanges weights and average (values, not storage); call twice to undo. For validation with the average. Weights
  // in bf16 are set aside instead: they could not hold the average.
  void swap();

 private:
  EmaConfig config_;
  std::vector<model::Parameter> parameters_;
  std::vector<at::Tensor> average_;
  std::vector<at::Tensor> replaced_;  // weights in bf16 between two swaps
};

}  // namespace vmoba::train
