#include "train/report/loss_curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace vmoba::train {
namespace {

using Points = std::vector<std::pair<int64_t, double>>;

constexpr double kEachStepOpacity = 0.28;

Points finite_only(const Points& points) {
  Points kept;
  for (const auto& point : points)
    if (std::isfinite(point.second)) kept.push_back(point);
  return kept;
}

size_t half_window(size_t points) {
  return points < 6 ? 0 : std::max<size_t>(2, points / 30);
}

void set_ranges(Chart& chart, const Points& points, const std::vector<double>& means, const Points& held_out) {
  chart.x.low = double(points.front().first);
  chart.x.high = std::max(double(points.back().first), chart.x.low + 1);
  std::vector<double> losses;
  for (const auto& [step, loss] : points) losses.push_back(loss);
  std::sort(losses.begin(), losses.end());
  // The highest percent may run out of the chart; the mean line never does.
  const double usual = losses[size_t(std::ceil(double(losses.size() - 1) * 0.99))];
  double low = losses.front(), high = std::max(usual, *std::max_element(means.begin(), means.end()));
  for (const auto& [step, loss] : held_out) {
    low = std::min(low, loss);
    high = std::max(high, loss);
  }
  const double margin = std::max(0.06 * (high - low), 1e-3 * std::abs(high) + 1e-12);
  // A loss that is near 0 at its lowest is shown from 0.
  const bool from_zero = low >= 0 && low < 0.3 * high;
  chart.y.low = from_zero ? 0 : low - margin;
  chart.y.high = high + margin;
}

ChartLine line_of(std::string name, const Points& points, double thickness, double opacity) {
  ChartLine line;
  line.name = std::move(name);
  for (const auto& [step, loss] : points) line.points.emplace_back(double(step), loss);
  line.color = line_color(0);
  line.thickness = thickness;
  line.opacity = opacity;
  return line;
}

}  // namespace

std::vector<double> smoothed(const Points& points) {
  const size_t half = half_window(points.size());
  std::vector<double> sums = {0.0}, means;
  for (const auto& [step, loss] : points) sums.push_back(sums.back() + loss);
  for (size_t i = 0; i < points.size(); ++i) {
    const size_t first = i - std::min(half, i), end = std::min(points.size(), i + half + 1);
    means.push_back((sums[end] - sums[first]) / double(end - first));
  }
  return means;
}

Chart loss_curve(const Points& points, const Points& held_out) {
  Chart chart;
  chart.title = "Training loss";
  chart.x.label = "step";
  chart.x.whole_numbers = true;  // there is no half step
  chart.y.label = "loss";
  const Points shown = finite_only(points);
  if (shown.empty()) {
    chart.note = "no steps recorded";
    return chart;
  }
  const std::vector<double> means = smoothed(shown);
  const Points validated = finite_only(held_out);
  set_ranges(chart, shown, means, validated);
  const size_t half = half_window(shown.size());
  if (half == 0) {
    chart.lines = {line_of("each step", shown, 2, 1)};
  } else {
    Points mean_points = shown;
    for (size_t i = 0; i < shown.size(); ++i) mean_points[i].second = means[i];
    chart.lines = {line_of("each step", shown, 1, kEachStepOpacity),
                   line_of(fmt::format("mean of {} steps", 2 * half + 1), mean_points, 2, 1)};
  }
  if (!validated.empty()) {
    chart.lines.push_back(line_of("held out", validated, 2, 1));
    chart.lines.back().color = line_color(1);
    chart.lines.back().markers = true;
  }
  return chart;
}

}  // namespace vmoba::train
