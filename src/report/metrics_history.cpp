#include "report/metrics_history.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <string_view>

#include "core/file.h"
#include "core/json.h"

namespace vmoba::report {
namespace {

using nlohmann::json;

constexpr int64_t kMaxFileBytes = int64_t{4} << 30;
constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

double number_or_missing(const json& line, const char* name) {
  const auto found = line.find(name);
  return found != line.end() && found->is_number() ? found->get<double>() : kMissing;
}

void add_place(MetricsHistory::Axis& axis, const json& line) {
  axis.step.push_back(number_or_missing(line, "step"));
  axis.samples.push_back(number_or_missing(line, "samples"));
  axis.gpu_s.push_back(number_or_missing(line, "gpu_s"));
}

void add_mark(MetricsHistory& out, const std::string& name, const json& line, double value) {
  MetricsHistory::Mark& mark = out.marks[name];
  add_place(mark.x, line);
  mark.y.push_back(value);
}

// The value of a name that some lines lack: the lines before it have none.
void add_value(MetricsHistory& out, const std::string& name, double value) {
  std::vector<double>& values = out.y[name];
  values.resize(out.x.step.size() - 1, kMissing);
  values.push_back(value);
}

void add_line(MetricsHistory& out, const json& line) {
  add_place(out.x, line);
  for (const auto& [name, value] : line.items()) {
    if (name == "step" || name == "samples" || name == "gpu_s" || name == "time") continue;
    if (name == "val_loss" && value.is_number())
      add_mark(out, name, line, value.get<double>());
    else if (name == "val_loss_by_sigma" && value.is_object())
      for (const auto& [sigma, loss] : value.items())
        add_mark(out, "val_loss at " + sigma, line, loss.is_number() ? loss.get<double>() : kMissing);
    else if (name == "density_by_partition" && value.is_object())
      for (const auto& [partition, density] : value.items())
        add_value(out, "density/" + partition, density.is_number() ? density.get<double>() : kMissing);
    else if (value.is_number())
      add_value(out, name, value.get<double>());
  }
  const auto layers = line.find("density_by_layer");
  if (layers == line.end() || !layers->is_array() || layers->empty()) return;
  out.layers.resize(std::max(out.layers.size(), layers->size()));
  for (size_t i = 0; i < out.layers.size(); ++i) {
    out.layers[i].resize(out.layer_step.size(), kMissing);
    const bool there = i < layers->size() && (*layers)[i].is_number();
    out.layers[i].push_back(there ? (*layers)[i].get<double>() : kMissing);
  }
  out.layer_step.push_back(number_or_missing(line, "step"));
}

// Means of `group` values each, of those that are finite.
std::vector<double> means(const std::vector<double>& values, size_t group) {
  std::vector<double> out;
  for (size_t begin = 0; begin < values.size(); begin += group) {
    double sum = 0, count = 0;
    for (size_t i = begin; i < std::min(values.size(), begin + group); ++i)
      if (std::isfinite(values[i])) sum += values[i], count += 1;
    out.push_back(count > 0 ? sum / count : kMissing);
  }
  return out;
}

std::vector<double> last_of_each(const std::vector<double>& values, size_t group) {
  std::vector<double> out;
  for (size_t begin = 0; begin < values.size(); begin += group)
    out.push_back(values[std::min(values.size(), begin + group) - 1]);
  return out;
}

size_t group_for(size_t points, int64_t most) {
  return (points + size_t(most) - 1) / size_t(most);
}

void thin(MetricsHistory& history) {
  const size_t points = history.x.step.size(), group = group_for(points, kMostPoints);
  for (auto& [name, values] : history.y) {
    values.resize(points, kMissing);
    if (group > 1) values = means(values, group);
  }
  if (group > 1)
    for (std::vector<double>* axis : {&history.x.step, &history.x.samples, &history.x.gpu_s})
      *axis = last_of_each(*axis, group);
  const size_t columns = group_for(history.layer_step.size(), kMostLayerColumns);
  if (columns <= 1) return;
  for (std::vector<double>& row : history.layers) row = means(row, columns);
  history.layer_step = last_of_each(history.layer_step, columns);
}

json numbers_json(const std::vector<double>& values) {
  json out = json::array();
  for (const double value : values)
    out.push_back(std::isfinite(value) ? json(std::stod(fmt::format("{:.6g}", value))) : json(nullptr));
  return out;
}

// Steps and samples are whole numbers, all of whose digits count.
json counts_json(const std::vector<double>& values) {
  json out = json::array();
  for (const double value : values) out.push_back(std::isfinite(value) ? json(int64_t(value)) : json(nullptr));
  return out;
}

// An axis that a version before it did not log is that of steps.
json axis_json(const MetricsHistory::Axis& axis) {
  const auto whole = [&](const std::vector<double>& values) {
    for (const double value : values)
      if (!std::isfinite(value)) return false;
    return true;
  };
  return {{"step", counts_json(axis.step)},
          {"samples", counts_json(whole(axis.samples) ? axis.samples : axis.step)},
          {"gpu_s", numbers_json(whole(axis.gpu_s) ? axis.gpu_s : axis.step)}};
}

}  // namespace

MetricsHistory read_history(const std::string& metrics_path) {
  MetricsHistory out;
  if (!std::filesystem::exists(metrics_path)) return out;
  const std::string text = read_file(metrics_path, kMaxFileBytes, "a run's metrics");
  std::string_view left = text;
  for (size_t end; (end = left.find('\n')) != std::string_view::npos; left.remove_prefix(end + 1)) {
    std::optional<json> line = try_parse_json(left.substr(0, end));
    if (!line || !line->is_object() || !std::isfinite(number_or_missing(*line, "step"))) continue;
    add_line(out, *line);
    out.last = std::move(*line);
  }
  out.lines = int64_t(out.x.step.size());
  thin(out);
  return out;
}

json history_json(const MetricsHistory& history) {
  json out = {{"x", axis_json(history.x)},
              {"y", json::object()},
              {"marks", json::object()},
              {"layers", {{"step", counts_json(history.layer_step)}, {"rows", json::array()}}}};
  for (const auto& [name, values] : history.y) out["y"][name] = numbers_json(values);
  for (const auto& [name, mark] : history.marks)
    out["marks"][name] = {{"x", axis_json(mark.x)}, {"y", numbers_json(mark.y)}};
  for (const std::vector<double>& row : history.layers) out["layers"]["rows"].push_back(numbers_json(row));
  return out;
}

}  // namespace vmoba::report
