// AdamW that keeps less: moments in blocks of 8-bit codes (Dettmers et al. 2110.02861, as bitsandbytes' AdamW8bit),
// weights in bf16 with stochastic rounding, or both.
#pragma once
#include <vector>

#include "train/optim/optimizer.h"
#include "train/optim/tensor_updates.h"

namespace vmoba::train {

// "exp_avg_8bit" and "exp_avg_sq_8bit" (a byte for each value) with "exp_avg_scale" and "exp_avg_sq_scale" (fp32, for
// each block of 256). Parameters of fewer than 4,096 values keep AdamW's fp32 moments.
std::vector<StateLayout> adamw_8bit_state(const OptimizerConfig& config, const model::Parameter& parameter);

class CompactAdamW final : public Optimizer {
 public:
  CompactAdamW(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters,
               const Placement& placement, const Layouts& layouts)
      : Optimizer(parameters, layouts), group_(config, parameters, state(), placement) {}
  using Optimizer::step;
  void step(const Update& update) override { group_.update(++steps_, update, treatments()); }
  void set_steps(int64_t steps_done) override { steps_ = steps_done; }

 private:
  AdamGroup group_;
  int64_t steps_ = 0;
};

}  // namespace vmoba::train
