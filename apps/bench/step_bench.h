// `vmoba-bench step`: times the optimiser steps of vmoba-train (train/training_step.h) on random latents in memory,
// with full attention and with VMoBA in turn, on one GPU or on the ranks of a launch (docs/benchmarks.md).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "config/root_config.h"
#include "train/dist/world.h"

namespace vmoba::bench {

struct StepOptions {
  RootConfig config;  // model, attention, optimiser, parallel
  attention::Grid grid{24, 36, 64};
  std::vector<std::string> backends = {"full", "vmoba"};
  int64_t repeats = 5, warmup = 3;
  std::string profile;  // file for a Chrome trace of one more step of the last backend; empty: none
};

struct StepCase {
  std::string backend;
  int64_t tokens = 0, parameters = 0;
  double density = 1;
  double step_ms = 0, step_ms_min = 0, step_ms_max = 0;  // median, least, most
  double tokens_per_s = 0;
  // Of the model's own FLOPs (a forward and twice that backward; no recomputation) at its density, on each GPU, and
  // their share of what the GPU could do; 0 for a GPU that is not known.
  double tflops = 0, mfu = 0;
  double limit_ms = 0;  // of the same FLOPs at the rates of the best kernels (train/forecast/device_rate.h)
  int64_t peak_bytes = 0;
  std::string offload;  // model.offload, `auto` as what it became
};

// Collective over the ranks of `world`.
std::vector<StepCase> bench_steps(const StepOptions& options, train::dist::World& world);
void print_steps(const std::vector<StepCase>& cases);
std::string steps_to_json(const std::vector<StepCase>& cases);

}  // namespace vmoba::bench
