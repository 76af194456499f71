#include "data/buckets.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/log.h"

namespace vmoba::data {
namespace {

double log_aspect(int64_t width, int64_t height) {
  return std::log(static_cast<double>(width) / static_cast<double>(height));
}

int64_t multiple_near(double value, int64_t multiple) {
  return std::max<int64_t>(1, std::llround(value / static_cast<double>(multiple))) * multiple;
}

}  // namespace

std::vector<FrameSize> aspect_sizes(const DataConfig& config, const ClipGeometry& geometry) {
  const int64_t m = geometry.pixel_multiple;
  VMOBA_CHECK_INPUT(
      config.height % m == 0 && config.width % m == 0,
      "expected data.height and data.width in multiples of {} (codec stride times patch size), found {} x {}; "
      "{} x {} is near",
      m, config.height, config.width, multiple_near(static_cast<double>(config.height), m),
      multiple_near(static_cast<double>(config.width), m));
  const FrameSize own{config.height, config.width};
  std::vector<FrameSize> sizes;
  const double area = static_cast<double>(config.height) * static_cast<double>(config.width);
  const double low = std::log(config.min_aspect), high = std::log(config.max_aspect);
  for (int64_t i = 0; config.aspect_buckets > 1 && i < config.aspect_buckets; ++i) {
    const double aspect =
        std::exp(low + (high - low) * static_cast<double>(i) / static_cast<double>(config.aspect_buckets - 1));
    const FrameSize size{multiple_near(std::sqrt(area / aspect), m), multiple_near(std::sqrt(area * aspect), m)};
    if (std::find(sizes.begin(), sizes.end(), size) == sizes.end()) sizes.push_back(size);
  }
  if (sizes.empty()) return {own};
  sizes[static_cast<size_t>(nearest_size(sizes, own.width, own.height))] = own;
  return sizes;
}

int64_t nearest_size(const std::vector<FrameSize>& sizes, int64_t displayed_width, int64_t displayed_height) {
  const double wanted = log_aspect(displayed_width, displayed_height);
  int64_t best = 0;
  for (size_t i = 1; i < sizes.size(); ++i) {
    const FrameSize& candidate = sizes[i];
    const FrameSize& current = sizes[static_cast<size_t>(best)];
    if (std::abs(log_aspect(candidate.width, candidate.height) - wanted) <
        std::abs(log_aspect(current.width, current.height) - wanted))
      best = static_cast<int64_t>(i);
  }
  return best;
}

std::vector<int64_t> frame_counts(const DataConfig& config, const ClipGeometry& geometry) {
  std::vector<int64_t> counts;
  for (const int64_t frames : config.frames) {
    const int64_t rounded = 1 + (frames - 1) / geometry.temporal_stride * geometry.temporal_stride;
    if (rounded != frames)
      log_warning("data.frames: {} is rounded down to {} (1 + {} n frames)", frames, rounded, geometry.temporal_stride);
    counts.push_back(rounded);
  }
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  return counts;
}

}  // namespace vmoba::data
