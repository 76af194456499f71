// A small raster: anti-aliased lines, rectangles and bitmap text on an RGB picture. Coordinates are pixels, y down.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace vmoba::train {

struct Color {
  uint8_t red = 0, green = 0, blue = 0;
};

struct Rectangle {
  double left = 0, top = 0, right = 0, bottom = 0;
};

class Canvas {
 public:
  Canvas(int64_t width, int64_t height, Color background);

  // A polyline of one even colour: where it crosses itself it does not get darker. Cut at `clip`.
  void polyline(const std::vector<std::pair<double, double>>& points, double thickness, Color color, double opacity,
                const Rectangle& clip);
  void fill(const Rectangle& area, Color color);
  // (x, y): top left corner of the first glyph. `turned`: read from bottom to top, (x, y) the bottom left corner.
  void text(double x, double y, const std::string& words, int scale, Color color, bool turned = false);
  static int64_t text_width(const std::string& words, int scale);

  int64_t width() const { return width_; }
  int64_t height() const { return height_; }
  std::vector<uint8_t> take() { return std::move(rgb_); }

 private:
  void blend(int64_t x, int64_t y, Color color, double opacity);

  int64_t width_, height_;
  std::vector<uint8_t> rgb_;
};

}  // namespace vmoba::train
