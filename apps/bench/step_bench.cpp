#include "apps/bench/step_bench.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/bench/attention_bench.h"
#include "core/check.h"
#include "model/wan/wan_config.h"
#include "train/flow_matching.h"
#include "train/optim/gradients.h"
#include "train/optim/optimizer.h"
#include "train/recompute_budget.h"
#include "train/report/step_profile.h"

namespace vmoba::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Size {
  int64_t layers, heads, ffn_dim, channels;
};

// What a step of training does between the codec and the callbacks.
class Step {
 public:
  Step(const StepOptions& options, const std::string& backend) : options_(options), attention_(options.attention) {
    attention_.backend = backend;
    const auto on_gpu = at::TensorOptions().device(at::kCUDA).dtype(at::kFloat);
    const auto& patch = options_.model.patch_size;
    const attention::Grid& g = options_.grid;
    dit_ = model::make_dit(options_.model, attention_, 0, at::kCUDA);
    budget_.emplace(options_.model, attention_, /*share=*/1.0, /*sharded=*/false, at::Device(at::kCUDA, 0));
    optimizer_ = train::make_optimizer(optimizer_config_, dit_->trainable());
    latents_ = at::randn({options_.batch, options_.model.out_channels, g.t * patch[0], g.h * patch[1], g.w * patch[2]},
                         on_gpu);
    text_ = at::randn({options_.batch, options_.text_tokens, options_.model.text_dim}, on_gpu);
  }

  // Runs sample numbers from `first` and waits for the end; returns the loss.
  double run(int64_t first) {
    stats_.clear();
    budget_->begin_step();
    std::vector<int64_t> samples;
    for (int64_t i = 0; i < options_.batch; ++i) samples.push_back(first + i);
    optimizer_->zero_grad();
    const train::NoisyBatch batch = train::make_noisy(flow_, 0, samples, latents_);
    const model::ForwardOptions forward{at::kBFloat16, false,
                                        budget_->plan(options_.grid, options_.batch, options_.text_tokens), &stats_};
    const at::Tensor loss =
        train::flow_loss(dit_->forward({batch.latents_BCTHW, batch.timestep_B, {{text_}}}, forward), batch);
    loss.backward();
    const double norm = train::gradient_norm(dit_->trainable()).item<double>();
    train::clip_gradients(dit_->trainable(), norm, optimizer_config_.max_grad_norm);
    optimizer_->step(optimizer_config_.lr);
    budget_->end_step();
    cudaDeviceSynchronize();
    return loss.item<double>();
  }

  StepCase describe(const std::string& backend) const {
    StepCase out;
    out.backend = backend;
    out.tokens = options_.batch * options_.grid.tokens();
    out.parameters = model::parameter_count(options_.model);
    out.density = stats_.densities().at("all");
    return out;
  }

  double flops(double density) const {
    return 3 * double(options_.batch) *
           model::forward_flops(options_.model, attention_, options_.grid, options_.text_tokens, density);
  }

 private:
  StepOptions options_;
  attention::AttentionConfig attention_;
  OptimizerConfig optimizer_config_;
  FlowConfig flow_;
  std::unique_ptr<model::Dit> dit_;
  std::unique_ptr<train::Optimizer> optimizer_;
  std::optional<train::RecomputeBudget> budget_;
  attention::AttentionStats stats_;
  at::Tensor latents_, text_;
};

StepCase bench_backend(const StepOptions& options, const std::string& backend) {
  c10::cuda::CUDACachingAllocator::emptyCache();
  c10::cuda::CUDACachingAllocator::resetPeakStats(0);
  Step step(options, backend);
  std::vector<double> ms;
  for (int64_t i = 0; i < options.warmup + options.repeats; ++i) {
    const Clock::time_point start = Clock::now();
    const double loss = step.run(i * options.batch);
    VMOBA_CHECK(std::isfinite(loss), "expected a finite loss from step {}, found {}", i, loss);
    if (i >= options.warmup) ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  std::sort(ms.begin(), ms.end());
  if (!options.profile.empty()) {
    train::StepProfile profile(at::Device(at::kCUDA, 0));
    step.run(0);
    profile.save(options.profile);
  }
  StepCase out = step.describe(backend);
  out.step_ms = ms[ms.size() / 2];
  out.step_ms_min = ms.front();
  out.step_ms_max = ms.back();
  out.tokens_per_s = double(out.tokens) / out.step_ms * 1e3;
  out.tflops = step.flops(out.density) / (out.step_ms * 1e9);
  out.peak_bytes = peak_bytes();
  return out;
}

}  // namespace

void set_model_size(model::ModelConfig& model, const std::string& name) {
  const std::map<std::string, Size> sizes = {
      {"1.3b", {30, 12, 8960, 16}}, {"5b", {30, 24, 14336, 48}}, {"14b", {40, 40, 13824, 16}}};
  const auto found = sizes.find(name);
  VMOBA_CHECK_INPUT(found != sizes.end(), "--model: expected 1.3b, 5b or 14b, found '{}'", name);
  model.layers = found->second.layers;
  model.heads = found->second.heads;
  model.own<model::WanConfig>().ffn_dim = found->second.ffn_dim;
  model.in_channels = model.out_channels = found->second.channels;
}

std::vector<StepCase> bench_steps(const StepOptions& options) {
  VMOBA_CHECK_INPUT(at::globalContext().hasCUDA(), "vmoba-bench step: expected a CUDA GPU, found none");
  at::manual_seed(0);
  std::vector<StepCase> out;
  for (const std::string& backend : options.backends) out.push_back(bench_backend(options, backend));
  return out;
}

void print_steps(const std::vector<StepCase>& cases) {
  std::cout << fmt::format("{:<8} {:>7} {:>9} {:>8} {:>10} {:>19} {:>10} {:>8} {:>8} {:>7}\n", "backend", "tokens",
                           "params M", "density", "step ms", "min..max", "tokens/s", "TFLOP/s", "peak GiB", "x");
  for (const StepCase& c : cases)
    std::cout << fmt::format(
        "{:<8} {:>7} {:>9.0f} {:>8.3f} {:>10.1f} {:>8.1f}..{:<9.1f} {:>10.0f} {:>8.0f} {:>8.1f} {:>7.2f}\n", c.backend,
        c.tokens, double(c.parameters) / 1e6, c.density, c.step_ms, c.step_ms_min, c.step_ms_max, c.tokens_per_s,
        c.tflops, double(c.peak_bytes) / (1 << 30), cases.front().step_ms / c.step_ms);
}

std::string steps_to_json(const std::vector<StepCase>& cases) {
  nlohmann::json list = nlohmann::json::array();
  for (const StepCase& c : cases)
    list.push_back({{"backend", c.backend},
                    {"tokens", c.tokens},
                    {"parameters", c.parameters},
                    {"density", c.density},
                    {"step_ms", {{"median", c.step_ms}, {"min", c.step_ms_min}, {"max", c.step_ms_max}}},
                    {"tokens_per_s", c.tokens_per_s},
                    {"tflops", c.tflops},
                    {"peak_bytes", c.peak_bytes}});
  cudaDeviceProp properties{};
  cudaGetDeviceProperties(&properties, 0);
  return nlohmann::json{{"gpu", properties.name}, {"commit", VMOBA_COMMIT}, {"cases", list}}.dump(2) + "\n";
}

}  // namespace vmoba::bench
