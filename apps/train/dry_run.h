// `vmoba-train --dry-run`: everything that a run checks before its first step, without making the model, and what it
// will need; with --ranks also on paper for that many ranks (src/train/forecast/scale_model.h).
#pragma once
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "config/root_config.h"

namespace vmoba::apps {

struct DryRunArguments {
  bool wanted = false;
  int64_t ranks = 0;  // 0: no estimate for several ranks
  int64_t ranks_per_host = 8;
  std::vector<std::string> comm;  // files of `vmoba-bench comm --json`
  double tflops = 0;              // 0: the default of train::ScaleOptions
  double memory_gib = 0;          // of a GPU; 0: the present one, and the default of train::ScaleOptions

  void add_to(CLI::App& app);
};

// Prints the report. Throws Error(kInput) with everything that is wrong.
int dry_run(const RootConfig& config, const DryRunArguments& arguments);

}  // namespace vmoba::apps
