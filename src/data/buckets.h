// The sizes that clips are brought to.
#pragma once
#include <cstdint>
#include <vector>

#include "data/clip_plan.h"

namespace vmoba::data {

struct FrameSize {
  int64_t height = 0, width = 0;
  bool operator==(const FrameSize&) const = default;
};

// aspect_buckets sizes of nearly the area height x width whose width / height lies at even ratios between min_aspect
// and max_aspect, rounded to multiples of pixel_multiple, without doubles. The one nearest to width / height is exactly
// height x width. Throws Error(kInput) where height or width is no multiple.
std::vector<FrameSize> aspect_sizes(const DataConfig& config, const ClipGeometry& geometry);

// Index of the size whose width / height is nearest to the displayed one, as a ratio.
int64_t nearest_size(const std::vector<FrameSize>& sizes, int64_t displayed_width, int64_t displayed_height);

// config.frames rounded down to 1 + temporal_stride * n, ascending, without doubles; warns where it rounds.
std::vector<int64_t> frame_counts(const DataConfig& config, const ClipGeometry& geometry);

}  // namespace vmoba::data
