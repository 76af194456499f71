// The chart of a run's loss: each step's loss faint, its moving mean as a line, the held-out loss as dots on a line.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "core/drawing.h"

namespace vmoba::train {

// `points`: (step, loss), steps ascending. Losses that are not finite are left out; single peaks far above the rest
// run out of the chart rather than flatten it.
Chart loss_curve(const std::vector<std::pair<int64_t, double>>& points,
                 const std::vector<std::pair<int64_t, double>>& held_out = {});

// The mean of each point and its neighbours (about a fifteenth of the run in all, fewer at the ends).
std::vector<double> smoothed(const std::vector<std::pair<int64_t, double>>& points);

}  // namespace vmoba::train
