// AdamW with decoupled weight decay (Loshchilov & Hutter, 1711.05101), by ATen's fused kernel. Parameters in bf16 take
// CompactAdamW.
#pragma once
#include <vector>

#include "train/optim/optimizer.h"

namespace vmoba::train {

// Two moments, "exp_avg" and "exp_avg_sq", in the parameter's type, of bf16 in fp32.
std::vector<StateLayout> adamw_state(const OptimizerConfig& config, const model::Parameter& parameter);

class AdamW final : public Optimizer {
 public:
  AdamW(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters);
  using Optimizer::step;
  void step(const Update& update) override;
  void set_steps(int64_t steps_done) override;

 private:
  OptimizerConfig config_;
  std::vector<at::Tensor> exp_avg_, exp_avg_sq_, steps_;
};

}  // namespace vmoba::train
