#include "apps/bench/attention_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "attention/vmoba/config.h"
#include "core/check.h"

namespace vmoba::bench {
namespace {

int64_t pieces(int64_t length, int64_t count) {
  return std::max<int64_t>(1, (length + count - 1) / count);
}

std::vector<BenchOptions> token_points(const BenchOptions& options) {
  std::vector<BenchOptions> points;
  for (const int64_t frames : {6, 12, 24, 48, 87}) {
    points.push_back(options);
    points.back().grid.t = frames;
  }
  return points;
}

std::vector<BenchOptions> density_points(const BenchOptions& options) {
  std::vector<BenchOptions> points;
  for (const double density : {0.05, 0.1, 0.2, 0.4, 0.7, 1.0}) {
    points.push_back(options);
    // Every block is attended from tau = 1 on; no search reaches that exactly.
    points.back().density = density < 1 ? density : 0;
    if (density == 1) points.back().attention.part<attention::VmobaConfig>().tau = 1;
  }
  return points;
}

std::vector<BenchOptions> block_points(const BenchOptions& options) {
  const auto& grid = options.grid;
  std::vector<BenchOptions> points;
  const auto add = [&](const std::string& partition) -> attention::VmobaConfig& {
    points.push_back(options);
    points.back().partitions = {partition};
    return points.back().attention.part<attention::VmobaConfig>();
  };
  for (const std::string& partition : options.partitions) {
    if (partition == "temporal")
      for (const int64_t n : {2, 4, 8, 24}) add(partition).temporal_chunk = pieces(grid.t, n);
    if (partition == "spatial")
      for (const int64_t n : {2, 4, 8, 12}) add(partition).spatial_chunk = {pieces(grid.h, n), pieces(grid.w, n)};
    if (partition == "spatiotemporal")
      for (const int64_t n : {2, 3, 4, 6})
        add(partition).spatiotemporal_chunk = {pieces(grid.t, n), pieces(grid.h, n), pieces(grid.w, n)};
  }
  return points;
}

double position_of(const BenchCase& c, const std::string& axis) {
  if (axis == "tokens") return double(c.tokens);
  return axis == "density" ? c.density : double(c.blocks);
}

// A logarithmic axis of the picture.
struct Axis {
  double low, high, first_pixel, last_pixel;
  double pixel(double value) const {
    const double share = high > low ? std::log(value / low) / std::log(high / low) : 0.5;
    return first_pixel + share * (last_pixel - first_pixel);
  }
};

Axis axis_of(const std::vector<double>& values, double first_pixel, double last_pixel) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return {*low, *high, first_pixel, last_pixel};
}

using Line = std::vector<std::pair<double, double>>;

constexpr double kLeft = 70, kRight = 560, kTop = 30, kBottom = 360;

// A line and, as number `index`, its name in the legend.
std::string line_svg(const std::string& name, Line points, const Axis& x, const Axis& y, const char* colour,
                     size_t index) {
  std::sort(points.begin(), points.end());
  std::string path, dots;
  for (const auto& [at, value] : points) {
    path += fmt::format("{:.1f},{:.1f} ", x.pixel(at), y.pixel(value));
    dots +=
        fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x.pixel(at), y.pixel(value), colour);
  }
  return fmt::format(
      "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n{}"
      "<text x=\"{}\" y=\"{}\" fill=\"{}\">{}</text>\n",
      path, colour, dots, kRight + 16, kTop + 10 + 18 * index, colour, name);
}

std::string ticks_svg(const std::vector<double>& values, const Axis& x, const Axis& y) {
  std::string out;
  std::vector<double> shown = values;
  std::sort(shown.begin(), shown.end());
  double last = -INFINITY;
  for (const double value : shown) {
    if (x.pixel(value) - last < 45) continue;
    last = x.pixel(value);
    out += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", last, kBottom + 18,
                       value < 10 ? fmt::format("{:.2f}", value) : fmt::format("{:.0f}", value));
  }
  for (double value = std::pow(10, std::ceil(std::log10(y.low))); value <= y.high; value *= 10)
    out += fmt::format(
        "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"#ddd\"/>\n"
        "<text x=\"{3}\" y=\"{2:.1f}\" text-anchor=\"end\">{4:g}</text>\n",
        kLeft, kRight, y.pixel(value), kLeft - 6, value);
  return out;
}

}  // namespace

std::vector<BenchOptions> sweep_points(const BenchOptions& options, const std::string& axis) {
  if (axis == "tokens") return token_points(options);
  if (axis == "density") return density_points(options);
  if (axis == "blocks") return block_points(options);
  throw_input("--sweep: expected tokens, density or blocks, found '{}'", axis);
}

std::string cases_to_csv(const std::vector<BenchCase>& cases) {
  std::string out =
      "partition,inputs,blocks,tokens,tau,density,select_ms,fwd_ms,bwd_ms,total_ms,full_fwd_ms,full_total_ms,"
      "extra_bytes,rel_err\n";
  for (const BenchCase& c : cases)
    out += fmt::format("{},{},{},{},{:.6g},{:.6g},{:.4f},{:.4f},{:.4f},{:.4f},{:.4f},{:.4f},{},{:.3g}\n", c.partition,
                       c.inputs, c.blocks, c.tokens, c.tau, c.density, c.select_ms.median, c.forward_ms.median,
                       c.backward_ms.median, c.total_ms.median, c.full_forward_ms.median, c.full_total_ms.median,
                       c.extra_bytes, c.relative_error);
  return out;
}

std::string cases_to_svg(const std::vector<BenchCase>& cases, const std::string& axis) {
  VMOBA_CHECK(!cases.empty(), "a picture of a sweep: expected at least one case, found none");
  std::map<std::string, Line> lines;
  std::vector<double> xs, ys;
  for (const BenchCase& c : cases) {
    const double at = position_of(c, axis);
    lines[c.partition].emplace_back(at, c.total_ms.median);
    lines["full"].emplace_back(at, c.full_total_ms.median);
    xs.push_back(at);
    ys.insert(ys.end(), {c.total_ms.median, c.full_total_ms.median});
  }
  const Axis x = axis_of(xs, kLeft, kRight), y = axis_of(ys, kBottom, kTop);
  static constexpr std::array kColours = {"#555555", "#d9534f", "#2a7ab0", "#3c9a5f"};
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"700\" height=\"420\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"700\" height=\"420\" fill=\"white\"/>\n"
      "<text x=\"{}\" y=\"18\">forward + backward, ms</text>\n<text x=\"{}\" y=\"410\">{}</text>\n",
      kLeft, (kLeft + kRight) / 2, axis);
  out += ticks_svg(xs, x, y);
  size_t index = 0;
  for (const auto& [name, points] : lines) {
    out += line_svg(name, points, x, y, kColours[index % kColours.size()], index);
    ++index;
  }
  return out + "</svg>\n";
}

}  // namespace vmoba::bench
