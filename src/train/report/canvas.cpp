#include "train/report/canvas.h"

#include <algorithm>
#include <cmath>

#include "train/report/bitmap_font.h"

namespace vmoba::train {
namespace {

double distance_to_segment(double x, double y, std::pair<double, double> a, std::pair<double, double> b) {
  const double dx = b.first - a.first, dy = b.second - a.second;
  const double length_squared = dx * dx + dy * dy;
  const double along = length_squared > 0 ? ((x - a.first) * dx + (y - a.second) * dy) / length_squared : 0.0;
  const double t = std::clamp(along, 0.0, 1.0);
  return std::hypot(x - a.first - t * dx, y - a.second - t * dy);
}

}  // namespace

Canvas::Canvas(int64_t width, int64_t height, Color background)
    : width_(width), height_(height), rgb_(size_t(width * height * 3)) {
  fill({0, 0, double(width), double(height)}, background);
}

void Canvas::blend(int64_t x, int64_t y, Color color, double opacity) {
  if (x < 0 || y < 0 || x >= width_ || y >= height_) return;
  uint8_t* pixel = &rgb_[size_t((y * width_ + x) * 3)];
  const uint8_t ink[3] = {color.red, color.green, color.blue};
  for (int c = 0; c < 3; ++c) pixel[c] = uint8_t(std::lround(pixel[c] + (ink[c] - pixel[c]) * opacity));
}

void Canvas::polyline(const std::vector<std::pair<double, double>>& points, double thickness, Color color,
                      double opacity, const Rectangle& clip) {
  // Coverage is collected over all segments (their maximum) before colour is laid on once.
  std::vector<float> coverage(size_t(width_ * height_), 0.0f);
  const double reach = thickness / 2 + 1;
  const int64_t left = std::max<int64_t>(0, int64_t(clip.left)), right = std::min(width_, int64_t(clip.right));
  const int64_t top = std::max<int64_t>(0, int64_t(clip.top)), bottom = std::min(height_, int64_t(clip.bottom));
  for (size_t i = 0; i + 1 < points.size(); ++i) {
    const auto &a = points[i], &b = points[i + 1];
    const auto first = [&](double u, double v, int64_t low) { return std::max(low, int64_t(std::min(u, v) - reach)); };
    const auto last = [&](double u, double v, int64_t high) {
      return std::min(high, int64_t(std::max(u, v) + reach) + 1);
    };
    for (int64_t y = first(a.second, b.second, top); y < last(a.second, b.second, bottom); ++y) {
      for (int64_t x = first(a.first, b.first, left); x < last(a.first, b.first, right); ++x) {
        const double distance = distance_to_segment(double(x) + 0.5, double(y) + 0.5, a, b);
        float& covered = coverage[size_t(y * width_ + x)];
        covered = std::max(covered, float(std::clamp(thickness / 2 + 0.5 - distance, 0.0, 1.0)));
      }
    }
  }
  for (int64_t y = top; y < bottom; ++y)
    for (int64_t x = left; x < right; ++x)
      if (coverage[size_t(y * width_ + x)] > 0) blend(x, y, color, opacity * coverage[size_t(y * width_ + x)]);
}

void Canvas::fill(const Rectangle& area, Color color) {
  for (int64_t y = int64_t(area.top); y < int64_t(area.bottom); ++y)
    for (int64_t x = int64_t(area.left); x < int64_t(area.right); ++x) blend(x, y, color, 1.0);
}

void Canvas::text(double x, double y, const std::string& words, int scale, Color color, bool turned) {
  for (size_t i = 0; i < words.size(); ++i) {
    int row = 0, column = 0;
    for (char ink : glyph_rows(words[i])) {
      if (ink == ' ') {
        ++row;
        column = 0;
        continue;
      }
      const double along = double((int(i) * kGlyphAdvance + column) * scale), down = double(row * scale);
      if (ink == '#' && !turned) fill({x + along, y + down, x + along + scale, y + down + scale}, color);
      if (ink == '#' && turned) fill({x + down, y - along - scale, x + down + scale, y - along}, color);
      ++column;
    }
  }
}

int64_t Canvas::text_width(const std::string& words, int scale) {
  return words.empty() ? 0 : (int64_t(words.size()) * kGlyphAdvance - (kGlyphAdvance - kGlyphWidth)) * scale;
}

}  // namespace vmoba::train
