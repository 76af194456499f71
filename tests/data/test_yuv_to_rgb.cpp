// Against the recommendations' formulas in double precision.
#include "data/yuv_to_rgb.h"

extern "C" {
#include <libswscale/swscale.h>
}

#include <algorithm>
#include <cmath>

#include "core/random.h"
#include "support/catch.h"

using vmoba::data::YuvToRgb;

namespace {

constexpr uint8_t kCanary = 0xA5;
constexpr int64_t kPadding = 24;  // bytes after each row

struct Plane {
  Plane(int64_t width, int64_t height)
      : width(width), height(height), stride(width + kPadding), bytes(static_cast<size_t>(stride * height), kCanary) {}
  uint8_t& at(int64_t x, int64_t y) { return bytes[static_cast<size_t>(y * stride + x)]; }
  // Beyond its edges a plane goes on with them.
  double clamped(int64_t x, int64_t y) {
    return at(std::clamp<int64_t>(x, 0, width - 1), std::clamp<int64_t>(y, 0, height - 1));
  }
  int64_t width, height, stride;
  std::vector<uint8_t> bytes;
};

// Chroma at luma's (x, y): its samples lie midway between luma's, so the nearer one counts three times.
double chroma_at(Plane& plane, int64_t x, int64_t y) {
  const int64_t cx = x / 2, cy = y / 2, fx = x % 2 ? cx + 1 : cx - 1, fy = y % 2 ? cy + 1 : cy - 1;
  return (9 * plane.clamped(cx, cy) + 3 * plane.clamped(fx, cy) + 3 * plane.clamped(cx, fy) + plane.clamped(fx, fy)) /
         16;
}

struct Matrix {
  int table;
  double kr, kb;
};

double largest_error(const Matrix& m, bool full, int64_t width, int64_t height, uint64_t number) {
  vmoba::RandomStream random(9, "yuv", number);
  const int64_t half_width = (width + 1) / 2, half_height = (height + 1) / 2;
  Plane y(width, height), u(half_width, half_height), v(half_width, half_height);
  for (Plane* plane : {&y, &u, &v})
    for (int64_t j = 0; j < plane->height; ++j)
      for (int64_t i = 0; i < plane->width; ++i) plane->at(i, j) = static_cast<uint8_t>(random.below(256));
  Plane red(width, height), green(width, height), blue(width, height);
  YuvToRgb(sws_getCoefficients(m.table), full)
      .run({y.bytes.data(), u.bytes.data(), v.bytes.data()}, {y.stride, u.stride, v.stride}, width, height,
           {red.bytes.data(), green.bytes.data(), blue.bytes.data()}, red.stride);
  double worst = 0;
  for (int64_t j = 0; j < height; ++j) {
    for (int64_t i = 0; i < width; ++i) {
      const double luma = full ? y.at(i, j) / 255.0 : (y.at(i, j) - 16) / 219.0, range = full ? 255 : 224;
      const double cb = (chroma_at(u, i, j) - 128) / range, cr = (chroma_at(v, i, j) - 128) / range;
      const double r = luma + 2 * (1 - m.kr) * cr, b = luma + 2 * (1 - m.kb) * cb;
      const double g = (luma - m.kr * r - m.kb * b) / (1 - m.kr - m.kb);
      const auto error = [&](Plane& plane, double wanted) {
        return std::abs(plane.at(i, j) - 255 * std::clamp(wanted, 0.0, 1.0));
      };
      worst = std::max({worst, error(red, r), error(green, g), error(blue, b)});
    }
    for (Plane* plane : {&red, &green, &blue})
      for (int64_t i = width; i < plane->stride; ++i)
        if (plane->at(i, j) != kCanary) worst = 1000;  // wrote past a row
  }
  return worst;
}

}  // namespace

TEST_CASE("Colours and chroma positions by the formulas, for any size") {
  const Matrix matrices[] = {
      {SWS_CS_ITU601, 0.299, 0.114}, {SWS_CS_ITU709, 0.2126, 0.0722}, {SWS_CS_BT2020, 0.2627, 0.0593}};
  const std::vector<std::pair<int64_t, int64_t>> sizes = {{1, 1},  {2, 2},   {3, 5},    {16, 4},  {31, 9},
                                                          {33, 2}, {64, 48}, {127, 33}, {257, 16}};
  uint64_t number = 0;
  for (const Matrix& matrix : matrices)
    for (const bool full : {false, true})
      for (const auto& [width, height] : sizes) {
        INFO(matrix.kr << (full ? " full " : " limited ") << width << "x" << height);
        // Half a level of rounding, and up to three products that each lose less than a sixteenth, half of it on
        // average.
        CHECK(largest_error(matrix, full, width, height, ++number) <= 0.7);
      }
}
