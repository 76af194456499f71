// `vmoba-bench step`: times whole training steps of a Wan transformer on random latents (noise, forward, backward,
// clip, AdamW), with full attention and with VMoBA in turn, on one GPU (docs/benchmarks.md).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "model/dit.h"

namespace vmoba::bench {

struct StepOptions {
  model::ModelConfig model;  // sizes, recompute
  attention::AttentionConfig attention;
  attention::Grid grid{24, 36, 64};
  int64_t batch = 1, text_tokens = 512;
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
  double tflops = 0;  // of the model's own FLOPs (a forward and twice that backward; no recomputation), at its density
  int64_t peak_bytes = 0;
};

// Sizes of a published Wan: "1.3b", "5b" or "14b"; throws Error(kInput) for another name.
void set_model_size(model::ModelConfig& model, const std::string& name);

std::vector<StepCase> bench_steps(const StepOptions& options);
void print_steps(const std::vector<StepCase>& cases);
std::string steps_to_json(const std::vector<StepCase>& cases);

}  // namespace vmoba::bench
