#include "train/report/loss_curve.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/random.h"
#include "support/catch.h"
#include "support/png.h"

using namespace vmoba;
using namespace vmoba::train;
using vmoba::test::Picture;
using vmoba::test::Pixel;

namespace {

using Points = std::vector<std::pair<int64_t, double>>;

constexpr int kLegendBottom = 110;

// Middle row of the full-strength blue in a column; -1 where there is none.
double line_row(const Picture& picture, int x) {
  double sum = 0;
  int count = 0;
  for (int y = kLegendBottom; y < picture.height(); ++y) {
    const Pixel p = picture.pixel(x, y);
    if (p.blue > 150 && p.red < 60) {
      sum += y;
      ++count;
    }
  }
  return count ? sum / count : -1;
}

int count_blue(const Picture& picture) {
  int count = 0;
  for (int y = 70; y < picture.height(); ++y)  // below the legend of a small chart
    for (int x = 0; x < picture.width(); ++x) count += picture.pixel(x, y).blue > picture.pixel(x, y).red + 60;
  return count;
}

Points falling(int64_t steps) {
  Points points;
  for (int64_t i = 1; i <= steps; ++i) points.emplace_back(i, 1.0 - 0.9 * double(i) / double(steps));
  return points;
}

}  // namespace

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
  const Chart chart = loss_curve(falling(1000));
  // The low end, 0.1, is near 0 and the axis begins there. Of the high end the first percent, 10 steps down to 0.991,
  // may run out, and a margin follows.
  CHECK(chart.y.low == 0);
  CHECK(chart.y.high == Approx(0.991 + 0.06 * (0.991 - 0.1)).margin(1e-3));
  CHECK(chart.x.low == 1);
  CHECK(chart.x.high == 1000);
  REQUIRE(chart.lines.size() == 2);
  CHECK(chart.lines[0].points.front() == std::pair<double, double>{1, 1.0 - 0.9 / 1000});
  CHECK(chart.lines[1].name == "mean of 67 steps");
  CHECK(chart.lines[1].points[499].second == Approx(0.55).margin(1e-3));
  const Picture picture(chart_to_png(chart));
  REQUIRE(picture.width() == 1200);
  REQUIRE(picture.height() == 720);
  // A straight line: rows at equal distances are equally spaced.
  const double at_25 = line_row(picture, 375), at_50 = line_row(picture, 640), at_75 = line_row(picture, 905);
  REQUIRE(at_25 > 0);
  CHECK(at_25 < at_50);
  CHECK(at_75 - at_50 == Approx(at_50 - at_25).margin(1.5));
}

TEST_CASE("a single peak does not flatten the curve") {
  Points points = falling(1000);
  points[500].second = 1e6;
  // The mean near the peak is huge and shown, so the axis follows it; a peak in a long run's top percent is cut.
  CHECK(loss_curve(points).y.high > 1e4);
  Points noisy = falling(1000);
  for (size_t i = 0; i < noisy.size(); i += 200) noisy[i].second = 3.0;
  const Picture picture(chart_to_png(loss_curve(noisy)));
  CHECK(loss_curve(noisy).y.high < 1.2);
  CHECK(line_row(picture, 375) < line_row(picture, 905) - 100);
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
    Chart chart = loss_curve(inputs[i]);
    chart.title = "odd";
    chart.width = 320;
    chart.height = 240;
    const Picture picture(chart_to_png(chart));
    CHECK(picture.width() == 320);
    CHECK(picture.height() == 240);
    const bool drawn = i != 0 && i != 3;
    CHECK((count_blue(picture) > 0) == drawn);
  }
}

TEST_CASE("a million steps take no longer than their pixels") {
  Points points;
  RandomStream random(1, "loss", 0);
  for (int64_t i = 1; i <= 1000000; ++i)
    points.emplace_back(i, 0.2 + std::exp(-double(i) / 2e5) + 0.1 * random.uniform());
  const Picture picture(chart_to_png(loss_curve(points)));
  CHECK(line_row(picture, 200) < line_row(picture, 1000));
}
