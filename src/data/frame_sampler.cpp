#include "data/frame_sampler.h"

#include <algorithm>
#include <cmath>

namespace vmoba::data {
namespace {

constexpr double kTie_s = 1e-6;
// Containers round times to a millisecond (Matroska): that must not cost a frame.
constexpr double kClock_s = 2e-3;

}  // namespace

NearestFrames::NearestFrames(double start_s, double fps, int64_t count) : start_s_(start_s), fps_(fps), count_(count) {}

int64_t NearestFrames::take_until(double time_s) {
  const int64_t before = taken_;
  while (taken_ < count_ && start_s_ + static_cast<double>(taken_) / fps_ <= time_s) ++taken_;
  return taken_ - before;
}

int64_t NearestFrames::take(double time_s, double next_s) {
  return take_until((time_s + next_s) / 2 + kTie_s);
}
int64_t NearestFrames::take_last(double end_s) {
  return take_until(end_s + kTie_s);
}

int64_t fillable_frames(double duration_s, double source_fps, double start_s, double fps) {
  const double last_s = duration_s - start_s - 0.5 / source_fps + kClock_s;
  return last_s < 0 ? 0 : 1 + static_cast<int64_t>(std::floor(last_s * fps));
}

double needed_seconds(int64_t frames, double source_fps, double fps) {
  return std::max(0.0, static_cast<double>(frames - 1) / fps + 0.5 / source_fps - kClock_s);
}

std::vector<double> clip_starts(const std::string& extraction, int64_t clips_per_video, int64_t frames,
                                double duration_s, double source_fps, double fps) {
  const double slack_s = std::max(0.0, duration_s - needed_seconds(frames, source_fps, fps));
  std::vector<double> starts;
  if (extraction == "chunk") {
    const double step_s = static_cast<double>(frames) / fps;
    for (int64_t i = 0; static_cast<double>(i) * step_s <= slack_s; ++i)
      starts.push_back(static_cast<double>(i) * step_s);
  } else if (extraction == "uniform") {
    const int64_t distinct = 1 + static_cast<int64_t>(std::floor(slack_s * fps));
    const int64_t count = std::min(clips_per_video, distinct);
    if (count == 1) return {slack_s / 2};
    for (int64_t i = 0; i < count; ++i)
      starts.push_back(slack_s * static_cast<double>(i) / static_cast<double>(count - 1));
  } else {
    starts.push_back(0.0);
  }
  return starts;
}

}  // namespace vmoba::data
