// Splits a plan into clips to train on and clips that are held out. Plain functions of plans.
#pragma once
#include <cstdint>
#include <vector>

#include "data/clip_plan.h"

namespace vmoba::data {

struct SplitPlan {
  ClipPlan training, held_out;  // drops stay with the training
};

// Holds out that share of the plan's files (at least one, and never all): those that a hash of their names chooses, the
// same ones for every seed, and mostly the same ones where files come or go. All clips of a file go the same way.
// Throws Error(kInput) where the plan has a single file.
SplitPlan hold_out(const ClipPlan& plan, double share);

// The plan without clips from files of `held_out`, by whatever path they are named. Throws Error(kInput) where none is
// left.
ClipPlan without_files_of(const ClipPlan& held_out, const ClipPlan& plan);

// Clips of the plan, by index, with the buckets that they need.
ClipPlan picked_clips(const ClipPlan& plan, const std::vector<int64_t>& clips);

// As a plan to validate on: at most `count` clips at even distances, each shown once, as it is. A clip with a random
// start takes the middle of its file.
ClipPlan validation_clips(const ClipPlan& plan, int64_t count);

// The clips of `training` and behind them those of `held_out`, marked so.
ClipPlan joined_plans(const ClipPlan& training, const ClipPlan& held_out);

}  // namespace vmoba::data
