// Which stored frame a model's clip shows at each of its instants: resampling by timestamps.
//
// Frame k of a clip that starts at start_s shows the stored frame that is on screen at start_s + k / fps. Frames that
// follow each other at a steady rate are taken by the nearest time instead (of two equally near, the earlier one,
// within a microsecond): they are on screen so briefly that the nearest one is meant, whatever the rounding of its
// time. A frame that is held longer, or one of a source much slower than the clip, is shown until the next one's time.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace vmoba::data {

// How a source counts its frames.
struct SourceRate {
  double fps = 0;      // average
  bool steady = true;  // frames follow each other at this rate, or are held longer; else each has its own duration
};

class ShownFrames {
 public:
  ShownFrames(double start_s, double fps, int64_t count, const SourceRate& source);
  // How many of the clip's next frames show the stored frame at time_s, given that the stored frame after it is at
  // next_s. Call with consecutive stored frames.
  int64_t take(double time_s, double next_s);
  // The same for the last stored frame, which is displayed until end_s.
  int64_t take_last(double end_s);
  int64_t taken() const { return taken_; }
  bool done() const { return taken_ == count_; }

 private:
  int64_t take_until(double time_s);
  double start_s_, fps_;
  int64_t count_, taken_ = 0;
  double steady_s_;  // duration of a frame that is taken by the nearest time; 0: none is
};

// How many frames a clip from start_s on can have: the last one's instant is before duration_s, and of a steady source
// at most half a stored frame past the start of the last stored frame.
int64_t fillable_frames(double duration_s, const SourceRate& source, double start_s, double fps);
// Seconds of video that a clip of `frames` needs, by the same rule.
double needed_seconds(int64_t frames, const SourceRate& source, double fps);

// Starts of the clips that `extraction` takes from a video that can fill `frames` at least once.
//   head: one at 0.  random: one, drawn anew for each sample (the plan says 0).
//   chunk: one after the other from 0, without overlap; a rest too short for a clip is left out.
//   uniform: `clips_per_video` at even distances from the first possible start to the last (the middle for 1), fewer
//   where they would start less than a frame apart.
std::vector<double> clip_starts(const std::string& extraction, int64_t clips_per_video, int64_t frames,
                                double duration_s, const SourceRate& source, double fps);

}  // namespace vmoba::data
