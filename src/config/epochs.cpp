#include "config/epochs.h"

#include <cmath>

#include "core/check.h"
#include "data/dataset.h"

namespace vmoba {

int64_t Epochs::steps(double epochs) const {
  return int64_t(std::ceil(epochs * double(samples) / double(global_batch) - 1e-9));
}

bool Epochs::end_in(int64_t step, int64_t every) const {
  if (every <= 0 || samples <= 0) return false;
  return done(step) / every > done(step - 1) / every;
}

Epochs epochs_of(const TrainConfig& config, const data::ClipPlan& training) {
  return {data::SampleOrder(training, /*seed=*/0, config.micro_batch).samples_per_epoch(), config.global_batch};
}

void take_epochs(TrainConfig& config, const Epochs& epochs) {
  if (config.epochs <= 0) return;
  const int64_t steps = epochs.steps(config.epochs);
  VMOBA_CHECK_INPUT(config.steps == steps || config.steps == TrainConfig().steps,
                    "train.steps: expected the {} steps of train.epochs {} ({} samples an epoch, batches of {}), found "
                    "{}; remove one of the two keys, or set train.epochs=0 to count in steps",
                    steps, config.epochs, epochs.samples, epochs.global_batch, config.steps);
  config.steps = steps;
}

}  // namespace vmoba
