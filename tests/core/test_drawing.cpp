// Charts: where values land on the picture, in files that a reader of PNG and SVG takes.
#include "core/drawing.h"

#include <cmath>

#include "core/check.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/png.h"

using namespace vmoba;
using vmoba::test::Picture;
using vmoba::test::Pixel;

namespace {

constexpr Color kRed{255, 0, 0};

bool red(const Pixel& p) {
  return p.red > 200 && p.green < 100 && p.blue < 100;
}

ChartLine line(std::vector<std::pair<double, double>> points) {
  ChartLine out;
  out.points = std::move(points);
  out.color = kRed;
  return out;
}

// Mean row of the red pixels of a column, -1 where there are none.
double red_row(const Picture& picture, int x) {
  double sum = 0;
  int count = 0;
  for (int y = 0; y < picture.height(); ++y)
    if (red(picture.pixel(x, y))) sum += y, ++count;
  return count ? sum / count : -1;
}

int red_pixels(const Picture& picture) {
  int count = 0;
  for (int y = 0; y < picture.height(); ++y)
    for (int x = 0; x < picture.width(); ++x) count += red(picture.pixel(x, y));
  return count;
}

// The row of a level line at `value`.
double row_of(Chart chart, double value) {
  chart.lines = {line({{chart.x.low, value}, {chart.x.high, value}})};
  return red_row(Picture(chart_to_png(chart)), int(chart.width) / 2);
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
  CHECK(logarithmic_ticks(1, 100) == std::vector<double>{1, 2, 5, 10, 20, 50, 100});
  CHECK(logarithmic_ticks(13824, 200448) == std::vector<double>{20000, 50000, 100000, 200000});
  CHECK(logarithmic_ticks(0.5, 20000) == std::vector<double>{1, 10, 100, 1000, 10000});
  CHECK(logarithmic_ticks(6, 9) == std::vector<double>{6, 7, 8, 9});
}

TEST_CASE("values land in proportion on linear axes, in proportion of their logarithms on others") {
  Chart chart;
  chart.y.high = 4;
  CHECK(row_of(chart, 1) - row_of(chart, 2) == Approx(row_of(chart, 2) - row_of(chart, 3)).margin(1));
  CHECK(row_of(chart, 1) - row_of(chart, 3) > 200);
  chart.y = {"ms", 0.1, 10000, AxisScale::kLogarithmic, false};
  CHECK(row_of(chart, 1) - row_of(chart, 10) == Approx(row_of(chart, 100) - row_of(chart, 1000)).margin(1));
  CHECK(row_of(chart, 1) - row_of(chart, 1000) > 200);
}

TEST_CASE("a line goes from left to right through its points, and no further than the axes") {
  Chart chart;
  chart.lines = {line({{0, 0}, {0.5, 1}, {1, 0}})};
  const Picture tent(chart_to_png(chart));
  REQUIRE(tent.width() == 1200);
  REQUIRE(tent.height() == 720);
  CHECK(tent.pixel(0, 0).red == 255);
  CHECK(tent.pixel(1199, 719).blue == 255);
  CHECK(red_row(tent, 400) < red_row(tent, 200) - 100);
  CHECK(red_row(tent, 800) < red_row(tent, 1000) - 100);
  CHECK(red_row(tent, 20) == -1);  // left of the axis
  chart.lines = {line({{0, 2}, {1, 2}})};
  CHECK(red_pixels(Picture(chart_to_png(chart))) == 0);
  chart.lines = {line({{0, 0.5}, {1, 1e12}})};
  CHECK(red_pixels(Picture(chart_to_png(chart))) > 0);
}

TEST_CASE("markers, single points and faint lines show") {
  Chart chart;
  chart.lines = {line({{0.2, 0.5}, {0.8, 0.5}})};
  const int plain = red_pixels(Picture(chart_to_png(chart)));
  chart.lines[0].markers = true;
  CHECK(red_pixels(Picture(chart_to_png(chart))) > plain + 20);
  chart.lines[0].points.resize(1);
  chart.lines[0].markers = false;
  const int dot = red_pixels(Picture(chart_to_png(chart)));
  CHECK(dot > 10);
  CHECK(dot < 400);
  chart.lines[0].opacity = 0.2;
  CHECK(red_pixels(Picture(chart_to_png(chart))) == 0);
}

TEST_CASE("a million points cost no more than their pixels, and their peak is kept") {
  Chart chart;
  chart.x.high = 1e6;
  chart.lines = {line({})};
  for (int i = 0; i < 1000000; ++i) chart.lines[0].points.emplace_back(i, i == 500000 ? 0.9 : 0.1);
  CHECK(chart_to_svg(chart).size() < 400000);
  const Picture picture(chart_to_png(chart));
  int highest = picture.height();
  for (int x = 0; x < picture.width(); ++x)
    for (int y = highest - 1; y >= 0; --y)
      if (red(picture.pixel(x, y))) highest = y;
  CHECK(highest < picture.height() / 4);
}

TEST_CASE("an SVG is a whole document of the chart's size") {
  Chart chart;
  chart.title = "Title";
  chart.width = 800;
  chart.height = 480;
  chart.lines = {line({{0, 0.2}, {1, 0.8}})};
  const std::string svg = chart_to_svg(chart);
  CHECK(test::contains(svg, "<svg"));
  CHECK(test::contains(svg, "viewBox=\"0 0 800 480\""));
  CHECK(svg.substr(svg.size() - 7) == "</svg>\n");
  CHECK(!test::contains(svg, "nan"));
}

TEST_CASE("a chart that cannot be drawn is refused") {
  const auto refusal = [](const auto& change) {
    Chart chart;
    change(chart);
    return test::refusal_of([&] { chart_to_png(chart); });
  };
  CHECK(test::contains(refusal([](Chart& c) { c.width = 100; }), "100x720"));
  CHECK(test::contains(refusal([](Chart& c) { c.x.high = 0; }), "horizontal"));
  CHECK(test::contains(refusal([](Chart& c) { c.y.high = std::nan(""); }), "vertical"));
  CHECK(test::contains(refusal([](Chart& c) { c.y.scale = AxisScale::kLogarithmic; }), "logarithmic"));
}
