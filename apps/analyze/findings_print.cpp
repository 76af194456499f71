// Findings as JSON, as a block of a configuration and as pictures.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/analyze/layer_findings.h"
#include "core/drawing.h"

namespace vmoba::apps {
namespace {

using nlohmann::ordered_json;

std::vector<double> divided(std::vector<double> sums, double count) {
  for (double& sum : sums) sum /= count;
  return sums;
}

std::vector<std::vector<double>> divided(std::vector<std::vector<double>> sums, double count) {
  for (std::vector<double>& row : sums) row = divided(row, count);
  return sums;
}

ordered_json to_json(const PartitionFindings& found) {
  ordered_json out = {{"chunk", found.chunk}, {"blocks", found.blocks}, {"own", found.own.value()}};
  for (const auto& [key, kept] : found.kept) {
    const auto& [chooser, density] = key;
    out["kept"][choice_word(chooser)][fmt::format("{}", density)] = {
        {"mass", kept.mass.value()}, {"density", kept.density.value()}, {"recall", kept.recall.value()}};
  }
  for (const auto& [sigma, kept] : found.kept_by_sigma) out["kept_by_sigma"][fmt::format("{}", sigma)] = kept.value();
  return out;
}

ordered_json to_json(int64_t layer, const LayerFindings& found, const std::string& best) {
  ordered_json out = {
      {"layer", layer}, {"best", best}, {"entropy", found.entropy.value()}, {"keys_90", found.keys_90.value()}};
  for (const auto& [head, evenness] : found.evenness) out["evenness"].push_back(evenness.value());
  if (found.configured.mass.weight > 0)
    out["configured"] = {{"mass", found.configured.mass.value()}, {"density", found.configured.density.value()}};
  for (const auto& [partition, one] : found.partitions) out["partitions"][choice_word(partition)] = to_json(one);
  out["by_frames"] = divided(found.by_frames, found.passes);
  out["by_rows_columns"] = divided(found.by_rows_columns, found.passes);
  out["importance"] = divided(found.importance, found.passes);
  return out;
}

// Mass over density, a line for each selection.
Chart kept_chart(const std::string& title, const PartitionFindings& found) {
  Chart chart;
  chart.title = title;
  chart.x = {"density", 0, 0.05};
  chart.y = {"attention kept", 0, 1};
  for (const std::string& word : choice_words<Chooser>()) {
    ChartLine line;
    line.name = word;
    line.color = line_color(chart.lines.size());
    line.markers = true;
    for (const auto& [key, kept] : found.kept)
      if (key.first == choice_value<Chooser>(word)) line.points.emplace_back(kept.density.value(), kept.mass.value());
    std::sort(line.points.begin(), line.points.end());
    for (const auto& [density, mass] : line.points) chart.x.high = std::max(chart.x.high, 1.05 * density);
    chart.lines.push_back(std::move(line));
  }
  return chart;
}

Chart frames_chart(const std::vector<double>& by_frames) {
  Chart chart;
  chart.title = "Distance in time";
  chart.x = {"latent frames", 0, std::max(1.0, double(by_frames.size()) - 1)};
  chart.x.whole_numbers = true;
  chart.y = {"attention", 0, 1e-6};
  ChartLine line;
  line.color = line_color(0);
  line.markers = true;
  for (size_t i = 0; i < by_frames.size(); ++i) {
    line.points.emplace_back(double(i), by_frames[i]);
    chart.y.high = std::max(chart.y.high, 1.1 * by_frames[i]);
  }
  chart.lines.push_back(std::move(line));
  return chart;
}

Chart map_chart(const std::string& title, const std::vector<std::vector<double>>& map, bool logarithmic) {
  Chart chart;
  double low = 1e300, high = -1e300;
  for (const std::vector<double>& row : map)
    for (const double value : row) {
      low = std::min(low, value);
      high = std::max(high, value);
    }
  chart.title = fmt::format("{} ({:.2g} to {:.2g})", title, low, high);
  chart.x = {"columns", 0, double(map.front().size())};
  chart.y = {"rows", 0, double(map.size())};
  chart.x.whole_numbers = chart.y.whole_numbers = true;
  chart.cells = map;
  chart.logarithmic_cells = logarithmic;
  return chart;
}

}  // namespace

std::string AttentionAnalysis::to_json(double least) const {
  const std::vector<std::string> best = best_partitions(least);
  ordered_json out = {{"density", density_}, {"mean_heads", mean_heads()}, {"layers", ordered_json::array()}};
  for (const auto& [layer, found] : findings_) {
    const size_t next = out["layers"].size();
    out["layers"].push_back(apps::to_json(layer, found, best[next]));
  }
  return out.dump(1);
}

std::string AttentionAnalysis::to_yaml(double least) const {
  return fmt::format(
      "attention:\n  select: topk\n  pool: query_head\n  density: {}\n  partitions: [{}]\n  temporal_chunk: {}\n"
      "  spatial_chunk: [{}]\n  spatiotemporal_chunk: [{}]\n",
      density_, fmt::join(best_partitions(least), ", "), vmoba_.temporal_chunk, fmt::join(vmoba_.spatial_chunk, ", "),
      fmt::join(vmoba_.spatiotemporal_chunk, ", "));
}

std::string findings_to_png(int64_t layer, const LayerFindings& findings) {
  std::vector<Chart> panels;
  for (const auto& [partition, found] : findings.partitions)
    panels.push_back(kept_chart(fmt::format("Layer {}, {}: {} blocks, own {:.3f}", layer, choice_word(partition),
                                            found.blocks, found.own.value()),
                                found));
  panels.push_back(frames_chart(divided(findings.by_frames, findings.passes)));
  panels.push_back(map_chart("Distance in space", divided(findings.by_rows_columns, findings.passes), true));
  std::vector<std::vector<double>> importance = divided(findings.importance, findings.passes);
  std::reverse(importance.begin(), importance.end());  // the frame's first row is its top
  panels.push_back(map_chart("Attention outside the own cube", importance, false));
  for (Chart& panel : panels) panel.width = 800, panel.height = 560;
  return sheet_to_png(panels, 3);
}

}  // namespace vmoba::apps
