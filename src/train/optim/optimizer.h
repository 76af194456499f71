// AdamW with decoupled weight decay (Loshchilov & Hutter, 1711.05101) over fp32 masters, by ATen's fused kernel, and
// gradient clipping by global norm. State tensors live on the parameters' device.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "config/root_config.h"
#include "model/dit.h"
#include "model/weights/safetensors.h"

namespace vmoba::train {

class AdamW {
 public:
  AdamW(const OptimizerConfig& config, const std::vector<model::Parameter>& parameters);

  // One update from the parameters' .grad; a parameter without one counts as zero gradient.
  void step(double lr);
  void zero_grad();

  // "exp_avg.<name>", "exp_avg_sq.<name>" of each parameter in turn, in its dtype and shape, to be read or overwritten.
  std::vector<model::NamedTensor> state() const;
  // The number of updates that the moments come from.
  void set_steps(int64_t steps_done);

 private:
  OptimizerConfig config_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> parameters_, exp_avg_, exp_avg_sq_, steps_;
};

// Global L2 norm of all gradients (fp32 scalar tensor; no synchronisation).
at::Tensor gradient_norm(const std::vector<model::Parameter>& parameters);

// Scales all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; max_norm 0: nothing.
void clip_gradients(const std::vector<model::Parameter>& parameters, double norm, double max_norm);

}  // namespace vmoba::train
