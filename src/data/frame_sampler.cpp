#include "data/frame_sampler.h"

#include <algorithm>
#include <cmath>

namespace vmoba::data {
namespace {

constexpr double kTie_s = 1e-6;
// Containers round times to a millisecond (Matroska): that must not cost a frame.
constexpr double kClock_s = 2e-3;
constexpr double kHeld_frames = 1.5;        // a frame of a steady source that stays longer than this is held
constexpr double kSlow_clip_frames = 1.75;  // a source whose frames stay longer than this many of the clip's is slow

// The duration of the frames that are taken by the nearest time; 0 where none are.
double steady_seconds(const SourceRate& source, double fps) {
  return source.steady && source.fps > 0 && fps / source.fps <= kSlow_clip_frames ? 1 / source.fps : 0;
}

// How long before the end of a video the last instant of a clip lies, at least.
double end_margin(const SourceRate& source, double fps) {
  const double steady_s = steady_seconds(source, fps);
  return steady_s > 0 ? 0.5 * steady_s - kClock_s : kClock_s;
}

}  // namespace

ShownFrames::ShownFrames(double start_s, double fps, int64_t count, const SourceRate& source)
    : start_s_(start_s), fps_(fps), count_(count), steady_s_(steady_seconds(source, fps)) {}

int64_t ShownFrames::take_until(double time_s) {
  const int64_t before = taken_;
  while (taken_ < count_ && start_s_ + static_cast<double>(taken_) / fps_ <= time_s) ++taken_;
  return taken_ - before;
}

int64_t ShownFrames::take(double time_s, double next_s) {
  const double shown_s = next_s - time_s;
  if (shown_s <= kHeld_frames * steady_s_) return take_until((time_s + next_s) / 2 + kTie_s);
  return take_until(next_s - std::min(kClock_s, shown_s / 4));
}
int64_t ShownFrames::take_last(double end_s) {
  return take_until(end_s + kTie_s);
}

int64_t fillable_frames(double duration_s, const SourceRate& source, double start_s, double fps) {
  const double last_s = duration_s - start_s - end_margin(source, fps);
  return last_s < 0 ? 0 : 1 + static_cast<int64_t>(std::floor(last_s * fps));
}

double needed_seconds(int64_t frames, const SourceRate& source, double fps) {
  return std::max(0.0, static_cast<double>(frames - 1) / fps + end_margin(source, fps));
}

std::vector<double> clip_starts(const std::string& extraction, int64_t clips_per_video, int64_t frames,
                                double duration_s, const SourceRate& source, double fps) {
  const double slack_s = std::max(0.0, duration_s - needed_seconds(frames, source, fps));
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
