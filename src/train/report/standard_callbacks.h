// The callbacks of every run: progress line, metrics.jsonl, TensorBoard, loss curve, report.html.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "config/root_config.h"
#include "data/clip_plan.h"
#include "train/report/callback.h"

namespace vmoba::train {

// `first_step`: steps already done (a resumed run drops later lines of an interrupted one). `plan` must outlive them.
std::vector<std::unique_ptr<Callback>> standard_callbacks(const RootConfig& config, const data::ClipPlan& plan,
                                                          int64_t first_step);

}  // namespace vmoba::train
