// One chart of several runs: a metric of each over steps, samples or GPU seconds.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "core/drawing.h"

namespace vmoba::train {

// What a chart's horizontal axis counts: a word of run_axes() is a key of metrics.jsonl.
std::vector<std::string> run_axes();  // step, samples, gpu_s

struct RunCurve {
  std::string name;
  std::vector<std::pair<double, double>> points;  // as logged; x ascending
};

// Metric `y` of the file over `x`. Lines without the metric are passed over (a held-out loss has few). Throws
// Error(kInput) where the file has no line with both, with the metrics that it has.
RunCurve read_run_curve(const std::string& path, const std::string& x, const std::string& y);

// Names for files: the folders they lie in, with as many folders above as it takes to tell them apart.
std::vector<std::string> run_names(const std::vector<std::string>& paths);

// Curves of more than a hundred points are moving means of `window` points (0: about a thirtieth of each curve), those
// of fewer have a dot at each.
Chart run_chart(const std::vector<RunCurve>& curves, const std::string& x, const std::string& y, int64_t window = 0);

}  // namespace vmoba::train
