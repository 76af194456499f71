// The callbacks of every run: progress line, metrics.jsonl, TensorBoard, loss curve.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/report/callback.h"

namespace vmoba::train {

// `first_step`: steps already done (a resumed run drops later lines of an interrupted one).
std::vector<std::unique_ptr<Callback>> standard_callbacks(const std::string& run_dir, int64_t first_step,
                                                          bool tensorboard);

}  // namespace vmoba::train
