// The parts of a video within which its frames follow each other: a clock that stands still for long, or is of another
// recording, separates them.
#pragma once
#include <cstdint>
#include <vector>

namespace vmoba::data {

// A frame that stays longer than this is taken for a gap of the clock. GIF and APNG say how long a frame stays; theirs
// may stay as long as they like.
inline constexpr double kLongestHold_s = 10;

struct FramePart {
  double start_s = 0, end_s = 0;  // from the first displayed frame on
};

// `shown_s`: display times of all frames, in any order. Every frame stays until the next one, the last of a part as
// long as most do, the last of the video until end_s, but not for longer than kLongestHold_s.
std::vector<FramePart> frame_parts(std::vector<double> shown_s, double end_s);

}  // namespace vmoba::data
