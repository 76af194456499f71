// The numbers of a run's metrics.jsonl, thinned for drawing: a curve of a million steps becomes one of kMostPoints.
#pragma once
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace vmoba::report {

struct MetricsHistory {
  // What curves can be drawn over; each point's value, ascending. NaN: not there.
  struct Axis {
    std::vector<double> step, samples, gpu_s;
  };
  // Of a few steps only, such as those with a held-out loss.
  struct Mark {
    Axis x;
    std::vector<double> y;
  };
  int64_t lines = 0;
  Axis x;
  std::map<std::string, std::vector<double>> y;  // by name, one value for each x: means of the steps behind a point
  std::map<std::string, Mark> marks;             // "val_loss", "val_loss at <noise level>"
  std::vector<double> layer_step;
  std::vector<std::vector<double>> layers;         // density of each layer, one value for each layer_step
  nlohmann::json last = nlohmann::json::object();  // the last line
};

// Lines that are no JSON object with a step, such as a torn last one, are passed over; a missing file is an empty
// history. Throws Error(kInput) where the file cannot be read.
MetricsHistory read_history(const std::string& metrics_path);

// As the page's script takes it. Numbers have six digits; what is not finite is null.
nlohmann::json history_json(const MetricsHistory& history);

inline constexpr int64_t kMostPoints = 1500;       // of a curve
inline constexpr int64_t kMostLayerColumns = 240;  // of the map of layers

}  // namespace vmoba::report
