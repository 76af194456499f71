// The clips of a run: those that it trains on, and those that the `validate:` group holds out.
#pragma once
#include <cstdint>
#include <functional>

#include "config/root_config.h"
#include "data/clip_plan.h"

namespace vmoba {

struct RunPlan {
  data::ClipPlan training;
  data::ClipPlan held_out;  // those that are used; no clips without `validate:`

  // The training's clips and behind them the held-out ones, for who encodes or lists both.
  data::ClipPlan all() const;
};

// Throws Error(kInput) where data.path or validate.path has no usable clip. `progress`: of data::plan_clips.
RunPlan plan_run(const RootConfig& config, const std::function<void(int64_t, int64_t)>& progress = {});

// The held-out clips alone: data.path is not looked at where validate.path names them.
data::ClipPlan plan_held_out(const RootConfig& config);

}  // namespace vmoba
