// When a run begins a checkpoint: at every `every`-th step, at the ends of epochs, and, after one that failed, again
// after 1, 2, 4 ... steps, so that a disk that is full for an hour costs warnings and no run. A function of steps
// alone: all ranks agree.
#pragma once
#include <algorithm>
#include <cstdint>

#include "config/epochs.h"

namespace vmoba::train {

class SaveSchedule {
 public:
  // `every`: train.checkpoint_every, `every_epochs`: train.checkpoint_every_epochs, 0: never. `saved_step`: of the
  // checkpoint that the run began from, or 0.
  SaveSchedule(int64_t every, int64_t every_epochs, const Epochs& epochs, int64_t saved_step)
      : every_(every), every_epochs_(every_epochs), epochs_(epochs), saved_step_(saved_step) {}

  bool due(int64_t step) const {
    return (every_ > 0 && step % every_ == 0) || epochs_.end_in(step, every_epochs_) || step == retry_step_;
  }
  void saved(int64_t step) {
    saved_step_ = step;
    retry_step_ = -1;
    failures_ = 0;
  }
  // Known at `step`. Returns the step of the next attempt.
  int64_t failed(int64_t step) {
    constexpr int64_t kMostSteps = 64;
    const int64_t pause = std::min(int64_t{1} << std::min<int64_t>(failures_++, 30), kMostSteps);
    return retry_step_ = step + pause;
  }
  // Of the newest checkpoint that is whole.
  int64_t saved_step() const { return saved_step_; }

 private:
  int64_t every_, every_epochs_;
  Epochs epochs_;
  int64_t saved_step_, retry_step_ = -1, failures_ = 0;
};

}  // namespace vmoba::train
