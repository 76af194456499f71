#include "train/report/loss_curve.h"

#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/random.h"
#include "support/catch.h"
#include "train/report/bitmap_font.h"

using namespace vmoba;
using namespace vmoba::train;

namespace {

using Points = std::vector<std::pair<int64_t, double>>;

struct Pixel {
  int red, green, blue;
};

Pixel pixel(const RgbImage& image, int64_t x, int64_t y) {
  const uint8_t* p = &image.rgb[size_t((y * image.width + x) * 3)];
  return {p[0], p[1], p[2]};
}
bool blueish(const Pixel& p) {
  return p.blue > p.red + 60;
}

// Middle row of the full-strength blue in a column; -1 where there is none.
double line_row(const RgbImage& image, int64_t x) {
  double sum = 0;
  int count = 0;
  for (int64_t y = 40; y < image.height; ++y) {
    const Pixel p = pixel(image, x, y);
    if (p.blue > 150 && p.red < 60) {
      sum += double(y);
      ++count;
    }
  }
  return count ? sum / count : -1;
}

int count_blue(const RgbImage& image) {
  int count = 0;
  for (int64_t y = 70; y < image.height; ++y)  // below the legend
    for (int64_t x = 0; x < image.width; ++x) count += blueish(pixel(image, x, y));
  return count;
}

Points falling(int64_t steps) {
  Points points;
  for (int64_t i = 1; i <= steps; ++i) points.emplace_back(i, 1.0 - 0.9 * double(i) / double(steps));
  return points;
}

}  // namespace

TEST_CASE("ticks are round numbers inside the range") {
  CHECK(axis_ticks(0, 1, 5) == std::vector<double>{0, 0.2, 0.4, 0.2 * 3, 0.8, 1.0});
  CHECK(axis_ticks(1, 60, 8) == std::vector<double>{10, 20, 30, 40, 50, 60});
  CHECK(axis_ticks(-3, 7, 5) == std::vector<double>{-2, 0, 2, 4, 6});
  for (double scale : {1e-9, 1e-3, 1.0, 1e6, 1e12}) {
    const auto ticks = axis_ticks(0.13 * scale, 0.97 * scale, 6);
    CHECK(ticks.size() >= 3);
    CHECK(ticks.size() <= 13);
  }
}

TEST_CASE("smoothing is a mean over neighbours") {
  Points points;
  for (int64_t i = 0; i < 60; ++i) points.emplace_back(i, i % 2 ? 1.0 : 0.0);
  const auto means = smoothed(points);  // window of 5
  CHECK(means[30] == Approx(0.4));      // 0 1 [0] 1 0
  CHECK(means[31] == Approx(0.6));
  CHECK(means[0] == Approx(1.0 / 3));
  CHECK(means[59] == Approx(2.0 / 3));
  CHECK(smoothed({{1, 3.0}, {2, 5.0}}) == std::vector<double>{3.0, 5.0});
}

TEST_CASE("the line falls from top left to bottom right as the losses do") {
  const RgbImage image = draw_loss_curve(falling(1000), {});
  REQUIRE(image.rgb.size() == size_t(1200 * 720 * 3));
  CHECK(pixel(image, 0, 0).red == 255);
  CHECK(pixel(image, 1199, 719).blue == 255);
  // A straight line: rows at equal distances are equally spaced.
  const double at_25 = line_row(image, 375), at_50 = line_row(image, 640), at_75 = line_row(image, 905);
  REQUIRE(at_25 > 0);
  CHECK(at_25 < at_50);
  CHECK(at_75 - at_50 == Approx(at_50 - at_25).margin(1.5));
  // The middle of 1.0 .. 0.1 on an axis from 0 (its low end is near 0) to 1 and a margin of 0.054.
  const double height = 720 - 76 - 64;
  CHECK(at_50 == Approx(720 - 76 - 0.55 / 1.054 * height).margin(3));
}

TEST_CASE("a single peak does not flatten the curve") {
  Points points = falling(1000);
  points[500].second = 1e6;
  const RgbImage image = draw_loss_curve(points, {});
  // The mean near the peak is huge and shown, so the axis follows it; a peak in a long run's top percent is cut.
  Points noisy = falling(1000);
  for (size_t i = 0; i < noisy.size(); i += 200) noisy[i].second = 3.0;
  CHECK(line_row(draw_loss_curve(noisy, {}), 375) < line_row(draw_loss_curve(noisy, {}), 905) - 100);
  CHECK(image.rgb.size() == size_t(1200 * 720 * 3));
}

TEST_CASE("odd inputs give a picture") {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  const std::vector<Points> inputs = {
      {},
      {{1, 0.5}},
      {{7, 0.0}},
      {{1, nan}, {2, infinity}},
      {{1, 0.5}, {2, nan}, {3, 0.25}},
      {{1, 2.0}, {2, 2.0}, {3, 2.0}},
      {{1, -1e300}, {2, 1e300}},
      {{1, 1e-300}, {2, 2e-300}},
      {{int64_t{1} << 50, 1.0}, {(int64_t{1} << 50) + 1, 2.0}},
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    INFO("input " << i);
    const RgbImage image = draw_loss_curve(inputs[i], {.title = "odd", .width = 320, .height = 240});
    CHECK(image.rgb.size() == size_t(320 * 240 * 3));
    const bool drawn = i != 0 && i != 3;
    CHECK((count_blue(image) > 0) == drawn);
  }
  CHECK_THROWS_AS(draw_loss_curve({}, {.title = "", .width = 10, .height = 10}), Error);
}

TEST_CASE("a million steps take no longer than their pixels") {
  Points points;
  RandomStream random(1, "loss", 0);
  for (int64_t i = 1; i <= 1000000; ++i)
    points.emplace_back(i, 0.2 + std::exp(-double(i) / 2e5) + 0.1 * random.uniform());
  const RgbImage image = draw_loss_curve(points, {});
  CHECK(line_row(image, 200) < line_row(image, 1000));
}

TEST_CASE("every printable character has a glyph of its own") {
  std::vector<std::string_view> seen;
  for (char ch = ' '; ch <= '~'; ++ch) {
    const std::string_view rows = glyph_rows(ch);
    INFO("'" << ch << "'");
    REQUIRE(rows.size() % 6 == 5);  // rows of 5 and a space between
    CHECK(rows.size() / 6 + 1 >= 7);
    CHECK(rows.size() / 6 + 1 <= 9);
    CHECK(std::find(seen.begin(), seen.end(), rows) == seen.end());
    CHECK((rows.find('#') == std::string_view::npos) == (ch == ' '));
    seen.push_back(rows);
  }
  CHECK(glyph_rows('\n') == glyph_rows('?'));
  CHECK(glyph_rows('\xe9') == glyph_rows('?'));
}
