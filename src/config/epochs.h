// Steps and epochs of a run: an epoch shows every training clip once (data::SampleOrder), and a step takes
// train.global_batch samples wherever an epoch ends.
#pragma once
#include <cstdint>

#include "config/root_config.h"
#include "data/clip_plan.h"

namespace vmoba {

struct Epochs {
  int64_t samples = 0;  // of an epoch; 0: not known, and none ends
  int64_t global_batch = 1;

  // So many epochs, rounded up to whole steps.
  int64_t steps(double epochs) const;
  // Whether a multiple of `every` epochs ends in this step (from 1 on). Never for `every` 0.
  bool end_in(int64_t step, int64_t every) const;
  // Epochs that are over after this step.
  int64_t done(int64_t step) const { return samples > 0 ? step * global_batch / samples : 0; }
};

Epochs epochs_of(const TrainConfig& config, const data::ClipPlan& training);

// Sets train.steps where train.epochs is above 0. Throws Error(kInput) where train.steps has another value already
// that is not its default: one of the two must go.
void take_epochs(TrainConfig& config, const Epochs& epochs);

}  // namespace vmoba
