// Learning rate as a function of the step: linear warm-up, then constant, linear or cosine decay to final_lr.
#pragma once
#include <cstdint>

#include "config/root_config.h"

namespace vmoba::train {

// Rate of optimiser step `step` (0-based) of `steps`. Warm-up step i uses lr * (i+1) / warmup_steps; the decay
// reaches final_lr at the last step.
double learning_rate(const OptimizerConfig& config, int64_t step, int64_t steps);

}  // namespace vmoba::train
