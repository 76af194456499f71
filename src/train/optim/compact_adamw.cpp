#include "train/optim/compact_adamw.h"

#include <ATen/ATen.h>

#include "train/optim/adamw.h"

namespace vmoba::train {
namespace {

constexpr int64_t kLeastCodedValues = 4096;  // bitsandbytes' min_8bit_size

}  // namespace

std::vector<StateLayout> adamw_8bit_state(const OptimizerConfig& config, const model::Parameter& parameter) {
  if (c10::multiply_integers(parameter.shape()) < kLeastCodedValues) return adamw_state(config, parameter);
  return {{"exp_avg_8bit", at::kByte},
          {"exp_avg_scale", at::kFloat, updates::kScaleValues},
          {"exp_avg_sq_8bit", at::kByte},
          {"exp_avg_sq_scale", at::kFloat, updates::kScaleValues}};
}

}  // namespace vmoba::train
