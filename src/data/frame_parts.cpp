#include "data/frame_parts.h"

#include <algorithm>

namespace vmoba::data {

namespace {

// The median of the durations; `shown_s` ascends.
double usual_duration(const std::vector<double>& shown_s) {
  std::vector<double> durations;
  for (size_t i = 1; i < shown_s.size(); ++i) durations.push_back(shown_s[i] - shown_s[i - 1]);
  if (durations.empty()) return 0;
  const auto middle = durations.begin() + static_cast<int64_t>(durations.size() / 2);
  std::nth_element(durations.begin(), middle, durations.end());
  return *middle;
}

}  // namespace

std::vector<FramePart> frame_parts(std::vector<double> shown_s, double end_s) {
  std::sort(shown_s.begin(), shown_s.end());
  const double frame_s = std::min(usual_duration(shown_s), kLongestHold_s);
  if (shown_s.size() > 1 && end_s - shown_s.back() > kLongestHold_s) end_s = shown_s.back() + frame_s;
  std::vector<FramePart> parts = {{0, end_s}};
  for (size_t i = 1; i < shown_s.size(); ++i) {
    if (shown_s[i] - shown_s[i - 1] <= kLongestHold_s || shown_s[i - 1] < 0) continue;
    parts.back().end_s = shown_s[i - 1] + frame_s;
    parts.push_back({shown_s[i], end_s});
  }
  return parts;
}

}  // namespace vmoba::data
