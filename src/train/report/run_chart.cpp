#include "train/report/run_chart.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "core/check.h"
#include "train/report/metrics_writer.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

constexpr size_t kDots = 100;

// Means of windows of points, about `half` on either side. They stop short of the last points, whose windows would be
// so small that the curve ended in the noise of single steps.
std::vector<std::pair<double, double>> moving_means(const std::vector<std::pair<double, double>>& points, size_t half) {
  std::vector<double> sums = {0.0};
  for (const auto& [x, y] : points) sums.push_back(sums.back() + y);
  std::vector<std::pair<double, double>> out;
  for (size_t i = 0; i + half / 2 < points.size(); ++i) {
    const size_t around = std::min({half, i, points.size() - 1 - i});  // the same on both sides: ends are not bent
    out.emplace_back(points[i].first, (sums[i + around + 1] - sums[i - around]) / double(2 * around + 1));
  }
  return out;
}

void widen(ChartAxis& axis, double value, bool first) {
  axis.low = first ? value : std::min(axis.low, value);
  axis.high = first ? value : std::max(axis.high, value);
}

std::string last_folders(const std::string& path, size_t count) {
  fs::path folder = fs::absolute(path).lexically_normal().parent_path();
  fs::path out;
  for (; count > 0 && folder.has_filename(); --count, folder = folder.parent_path())
    out = out.empty() ? folder.filename() : folder.filename() / out;
  return out.string();
}

}  // namespace

std::vector<std::string> run_axes() {
  return {"step", "samples", "gpu_s"};
}

RunCurve read_run_curve(const std::string& path, const std::string& x, const std::string& y) {
  RunCurve out;
  std::set<std::string> known;
  for (const auto& values : read_metrics(path, {x, y}, &known))
    if (std::isfinite(values[0]) && std::isfinite(values[1])) out.points.emplace_back(values[0], values[1]);
  VMOBA_CHECK_INPUT(!out.points.empty(), "'{}': expected lines with {} and {}, found none; numbers there are: {}", path,
                    x, y, fmt::join(known, ", "));
  std::stable_sort(out.points.begin(), out.points.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  return out;
}

std::vector<std::string> run_names(const std::vector<std::string>& paths) {
  for (size_t count = 1;; ++count) {
    std::vector<std::string> names;
    for (const std::string& path : paths) names.push_back(last_folders(path, count));
    const std::set<std::string> different(names.begin(), names.end());
    if (different.size() == names.size()) return names;
    if (count > 32) return paths;  // one file twice
  }
}

Chart run_chart(const std::vector<RunCurve>& curves, const std::string& x, const std::string& y, int64_t window) {
  Chart chart;
  chart.title = y;
  chart.x.label = x;
  chart.x.whole_numbers = x != "gpu_s";
  chart.y.label = y;
  bool first = true;
  for (const RunCurve& curve : curves) {
    ChartLine line;
    line.name = curve.name;
    line.color = line_color(chart.lines.size());
    const bool many = curve.points.size() > kDots;
    const size_t half = window > 0 ? size_t(window) / 2 : many ? curve.points.size() / 60 : 0;
    line.points = moving_means(curve.points, half);
    line.markers = !many;
    for (size_t i = 0; i < line.points.size(); ++i) {
      widen(chart.x, line.points[i].first, first && i == 0);
      widen(chart.y, line.points[i].second, first && i == 0);
    }
    if (!curve.points.empty()) widen(chart.x, curve.points.back().first, false);
    first = first && curve.points.empty();
    chart.lines.push_back(std::move(line));
  }
  if (first) {
    chart.note = "no numbers";
    return chart;
  }
  chart.x.high = std::max(chart.x.high, chart.x.low + 1);
  const double margin = std::max(0.05 * (chart.y.high - chart.y.low), 1e-3 * std::abs(chart.y.high) + 1e-12);
  chart.y.low -= margin;
  chart.y.high += margin;
  return chart;
}

}  // namespace vmoba::train
