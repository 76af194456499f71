#include "apps/bench/attention_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "attention/vmoba/config.h"
#include "core/check.h"

namespace vmoba::bench {
namespace {

constexpr double kAxisRoom = 1.15;

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

// A logarithmic axis around some values, with a little room at both ends.
ChartAxis axis_around(const std::string& label, const std::vector<double>& values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  ChartAxis axis;
  axis.label = label;
  axis.low = *low / kAxisRoom;
  axis.high = *high * kAxisRoom;
  axis.scale = AxisScale::kLogarithmic;
  return axis;
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

Chart sweep_chart(const std::vector<BenchCase>& cases, const std::string& axis) {
  VMOBA_CHECK(!cases.empty(), "a chart of a sweep: expected at least one case, found none");
  std::map<std::string, ChartLine> lines;
  std::vector<double> xs, ys;
  for (const BenchCase& c : cases) {
    const double at = position_of(c, axis);
    lines[c.partition].points.emplace_back(at, c.total_ms.median);
    lines["full"].points.emplace_back(at, c.full_total_ms.median);
    xs.push_back(at);
    ys.insert(ys.end(), {c.total_ms.median, c.full_total_ms.median});
  }
  Chart chart;
  chart.title = "Attention, forward + backward";
  chart.x = axis_around(axis, xs);
  chart.y = axis_around("ms", ys);
  chart.width = 800;
  chart.height = 480;
  for (auto& [name, line] : lines) {
    std::sort(line.points.begin(), line.points.end());
    line.name = name;
    line.color = line_color(chart.lines.size());
    line.markers = true;
    chart.lines.push_back(std::move(line));
  }
  return chart;
}

}  // namespace vmoba::bench
