#include "train/optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace vmoba::train {

double learning_rate(const OptimizerConfig& config, int64_t step, int64_t steps) {
  if (step < config.warmup_steps) return config.lr * double(step + 1) / double(config.warmup_steps);
  if (config.schedule == "constant") return config.lr;
  const int64_t decay_steps = std::max<int64_t>(1, steps - 1 - config.warmup_steps);
  const double progress = std::min(1.0, double(step - config.warmup_steps) / double(decay_steps));
  const double remaining =
      config.schedule == "linear" ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return config.final_lr + (config.lr - config.final_lr) * remaining;
}

}  // namespace vmoba::train
