// The picture of a run's loss: each step's loss faint, its moving mean as a line, axes with round numbers.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace vmoba::train {

// Pixels row by row from the top, 3 bytes (red, green, blue) each.
struct RgbImage {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> rgb;
};

struct LossCurveStyle {
  std::string title = "Training loss";
  int64_t width = 1200, height = 720;  // at least 320 x 240
};

// `points`: (step, loss), steps ascending. Losses that are not finite are left out; single peaks far above the rest
// run out of the frame rather than flatten it. Throws Error(kInput) for a picture too small to hold its labels.
RgbImage draw_loss_curve(const std::vector<std::pair<int64_t, double>>& points, const LossCurveStyle& style);

// The mean of each point and its neighbours (about a fifteenth of the run in all, fewer at the ends).
std::vector<double> smoothed(const std::vector<std::pair<int64_t, double>>& points);

// About `count` round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high], from inside.
std::vector<double> axis_ticks(double low, double high, int count);

}  // namespace vmoba::train
