// metrics.jsonl: one JSON object per optimiser step, each step once, also over interruptions.
//
// A line survives `kill -9` once append() has returned, and a power cut a second later at most or once sync() has
// returned. Lines that the disk does not take wait in memory (appended_file.h). Numbers that JSON cannot hold (NaN,
// infinity) are written as null.
#pragma once
#include <chrono>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "train/report/appended_file.h"

namespace vmoba::train {

class MetricsWriter {
 public:
  // Opens or makes the file `path` and removes what a run that goes on after `steps_done` would write again or could
  // not have meant: lines of later steps, a torn last line, lines whose step does not ascend (with a warning).
  // Throws Error(kRuntime) where the file cannot be read or written.
  MetricsWriter(const std::string& path, int64_t steps_done);

  // `record`: an object with an integer "step" above all earlier ones.
  void append(const nlohmann::ordered_json& record);
  void sync();

 private:
  std::optional<AppendedFile> file_;
  int64_t last_step_ = 0;
  std::chrono::steady_clock::time_point synced_at_;
};

// (step, value of `name`) of every line of a metrics.jsonl that has such a number; a torn last line is passed over.
// Throws Error(kInput) where the file cannot be read.
std::vector<std::pair<int64_t, double>> read_metric(const std::string& path, const std::string& name);

// The values of `names` of every line that has numbers for all of them, in the order of the file. `known` takes the
// names of all numbers that any line has.
std::vector<std::vector<double>> read_metrics(const std::string& path, const std::vector<std::string>& names,
                                              std::set<std::string>* known);

}  // namespace vmoba::train
