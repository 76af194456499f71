#include "apps/bench/step_bench.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "config/device.h"
#include "core/check.h"
#include "core/elapsed.h"
#include "core/log.h"
#include "model/conditioning.h"
#include "model/hunyuan/hunyuan_config.h"
#include "train/dist/rank_device.h"
#include "train/dist/step_exchange.h"
#include "train/dist/ulysses.h"
#include "train/forecast/device_rate.h"
#include "train/forecast/offload_choice.h"
#include "train/optim/lr_schedule.h"
#include "train/report/step_profile.h"
#include "train/training_step.h"

namespace vmoba::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A fresh model's gates and head are zeros: then gradients are zeros too, and a GPU multiplies these with less power
// than what training gives it.
void fill_zero_maps(const std::vector<model::Parameter>& parameters) {
  const at::NoGradGuard no_grad;
  for (const model::Parameter& p : parameters) {
    if (p.tensor.dim() < 2 || p.tensor.numel() == 0 || p.tensor.to(at::kFloat).any().item<bool>()) continue;
    const at::Tensor values = at::randn(p.tensor.sizes(), p.tensor.options().dtype(at::kFloat).requires_grad(false));
    p.tensor.copy_(p.scale.defined() ? values : 0.02 * values);
    if (p.scale.defined()) p.scale.fill_(0.02);
  }
}

// Text of a width that the model takes; a prompt without letters to write has no glyphs.
model::TextEmbedding random_text(const RootConfig& config, int64_t samples, const at::TensorOptions& on_device) {
  model::TextEmbedding out;
  out.tokens_BLE = at::randn({samples, config.text.max_tokens, config.model.text_dim}, on_device);
  if (config.model.architecture == model::kHunyuan)
    out.pooled_BP = at::randn({samples, model::hunyuan_of(config.model).pooled_dim}, on_device);
  return out;
}

// The same clip for every sample; noise, timestep and condition are drawn as for any other.
class ClipInMemory final : public train::MicroBatchSource {
 public:
  ClipInMemory(const StepOptions& options, const train::dist::Mesh& mesh, int64_t micro, at::Device device)
      : config_(options.config),
        micro_(micro),
        stride_(mesh.sizes().batch_ranks() * micro),
        next_(mesh.batch_rank() * micro) {
    const auto on_device = at::TensorOptions().device(device).dtype(at::kFloat);
    const auto& patch = config_.model.patch_size;
    const attention::Grid& g = options.grid;
    clip_.x0_BCTHW =
        at::randn({micro, config_.model.out_channels, g.t * patch[0], g.h * patch[1], g.w * patch[2]}, on_device);
    clip_.text = random_text(config_, micro, on_device);
  }

  train::MicroBatch next() override {
    if (!prepared_) prepare();
    return *std::exchange(prepared_, std::nullopt);
  }
  void prepare() override {
    train::MicroBatch out;
    train::MicroBatch::Part part;
    for (int64_t i = 0; i < micro_; ++i) part.samples.push_back(next_ + i);
    next_ += stride_;
    part.batch = train::make_batch(config_.train.flow, uint64_t(config_.seed), part.samples, clip_);
    train::tell_numbers(config_.model, config_.train.flow, part.batch);
    out.samples = part.samples;
    out.parts.push_back(std::move(part));
    prepared_ = std::move(out);
  }

 private:
  const RootConfig& config_;
  int64_t micro_, stride_, next_;
  train::EncodedBatch clip_;
  std::optional<train::MicroBatch> prepared_;
};

// A trainer's step and what it stands on.
class Run {
 public:
  Run(const StepOptions& options, const std::string& backend, train::dist::World& world)
      : options_(with_backend(options, backend)),
        world_(world),
        device_(device_of(options, world)),
        mesh_(world, options.config.parallel, device_),
        share_(train::dist::batch_share(options.config.train, mesh_.sizes())),
        offload_(decide_offload()),
        experts_(train::make_experts(options_.config, device_, mesh_, resident_weights())),
        sequence_(mesh_.sizes().sequence > 1 ? train::dist::make_ulysses(mesh_.sequence()) : nullptr),
        clips_(options_, mesh_, share_.micro, device_),
        step_(options_.config, world, mesh_, share_, device_, experts_, sequence_.get()) {
    for (const train::Expert& expert : experts_) fill_zero_maps(expert.dit->parameters());
  }

  // Of this rank, within run.gpu_memory_gib.
  static at::Device device_of(const StepOptions& options, train::dist::World& world) {
    const RunConfig& run = options.config.run;
    const at::Device device = train::dist::device_of_rank(prepare_device(run, world.local_size()), world);
    limit_gpu_memory(run, device);
    return device;
  }

  // As Trainer::train_step, without files and callbacks.
  void step() {
    const TrainConfig& config = options_.config.train;
    VMOBA_CHECK(step_.compute({done_, done_ * config.global_batch, 0}, clips_), "expected a whole step, found a stop");
    const double lr = train::learning_rate(config.optimizer, done_, config.steps);
    if (!step_.anyone_gave_up()) step_.update(lr);
    numbers_ = step_.numbers();
    train::dist::StepResult result;
    result.losses = numbers_.losses;
    result.pairs = numbers_.attended.by_partition;
    result.tokens = step_.tokens();
    result.flops = step_.flops(numbers_.attended);
    result.memory_bytes = memory_in_use_bytes(device_);
    totals_ = train::dist::exchange_step(world_, mesh_.sizes(), result);
    VMOBA_CHECK(std::isfinite(totals_.loss), "expected a finite loss from step {}, found {}", done_, totals_.loss);
    ++done_;
  }

  StepCase describe(double step_ms) const {
    StepCase out;
    const double peak = train::peak_flops_per_s(device_), ranks = double(world_.size());
    out.backend = options_.config.attention.backend;
    out.tokens = totals_.tokens;
    out.parameters = model::parameter_count(options_.config.model);
    if (const auto all = totals_.density.find("all"); all != totals_.density.end()) out.density = all->second;
    out.step_ms = step_ms;
    out.tokens_per_s = double(out.tokens) / step_ms * 1e3;
    out.tflops = totals_.flops / (step_ms * 1e9) / ranks;
    if (peak > 0) out.mfu = out.tflops * 1e12 / peak;
    // A rank of a sequence group computes its share of the samples that it counts.
    out.limit_ms = 1e3 * step_.least_seconds(numbers_.attended, peak) / mesh_.sizes().sequence;
    out.peak_bytes = totals_.memory_bytes;
    out.offload = choice_word(offload_);
    return out;
  }
  at::Device device() const { return device_; }

 private:
  static StepOptions with_backend(StepOptions options, const std::string& backend) {
    options.config.attention.backend = backend;
    return options;
  }

  model::Offload decide_offload() {
    model::ModelConfig& model = options_.config.model;
    if (model.offload != model::Offload::kAuto) return model.offload;
    const train::OffloadChoice choice = train::choose_offload(options_.config, mesh_.sizes(), options_.grid,
                                                              share_.micro, device_memory_bytes(device_));
    std::cout << choice.reason << "\n";
    return model.offload = choice.offload;
  }

  int64_t resident_weights() const {
    return train::resident_weights(options_.config, mesh_.sizes(), options_.grid, share_.micro,
                                   device_memory_bytes(device_));
  }

  StepOptions options_;
  train::dist::World& world_;
  at::Device device_;
  train::dist::Mesh mesh_;
  train::dist::BatchShare share_;
  model::Offload offload_;
  std::vector<train::Expert> experts_;
  std::unique_ptr<model::SequenceParallel> sequence_;
  ClipInMemory clips_;
  train::TrainingStep step_;
  train::TrainingStep::Numbers numbers_;
  train::dist::StepTotals totals_;
  int64_t done_ = 0;
};

StepCase bench_backend(const StepOptions& options, const std::string& backend, train::dist::World& world) {
  Run run(options, backend, world);
  if (run.device().is_cuda()) {
    c10::cuda::CUDACachingAllocator::emptyCache();
    c10::cuda::CUDACachingAllocator::resetPeakStats(run.device().index());
  }
  std::vector<double> ms;
  for (int64_t i = 0; i < options.warmup + options.repeats; ++i) {
    const Clock::time_point start = Clock::now();
    run.step();
    const double step_ms = 1e3 * seconds_since(start);
    // Of steps that take a minute, each counts: with model.recompute `auto` the first two are those of `block`.
    if (world.rank() == 0)
      log_info("{} step {} of {}{}: {:.1f} ms", backend, i + 1, options.warmup + options.repeats,
               i < options.warmup ? " (warm-up)" : "", step_ms);
    if (i >= options.warmup) ms.push_back(step_ms);
  }
  std::sort(ms.begin(), ms.end());
  if (!options.profile.empty()) {
    std::optional<train::StepProfile> profile;  // of one rank: others would write the same file
    if (world.rank() == 0) profile.emplace(run.device());
    run.step();
    if (profile) profile->save(options.profile);
  }
  StepCase out = run.describe(ms[ms.size() / 2]);
  out.step_ms_min = ms.front();
  out.step_ms_max = ms.back();
  return out;
}

}  // namespace

std::vector<StepCase> bench_steps(const StepOptions& options, train::dist::World& world) {
  const model::ModelConfig& m = options.config.model;
  const bool image = m.task != "t2v" || (m.image_dim > 0 && m.architecture != model::kHunyuan15);
  VMOBA_CHECK_INPUT(!image && options.config.experts.empty(),
                    "vmoba-bench step: expected text to video with one transformer, found task {}, image_dim {} and {} "
                    "experts",
                    m.task, m.image_dim, options.config.experts.size());
  at::manual_seed(0);
  std::vector<StepCase> out;
  for (const std::string& backend : options.backends) out.push_back(bench_backend(options, backend, world));
  return out;
}

void print_steps(const std::vector<StepCase>& cases) {
  std::cout << fmt::format("{:<8} {:>7} {:>9} {:>8} {:>10} {:>19} {:>9} {:>6} {:>10} {:>8} {:>8} {:>7}\n", "backend",
                           "tokens", "params M", "density", "step ms", "min..max", "limit ms", "MFU %", "tokens/s",
                           "TFLOP/s", "peak GiB", "x");
  for (const StepCase& c : cases)
    std::cout << fmt::format(
        "{:<8} {:>7} {:>9.0f} {:>8.3f} {:>10.1f} {:>8.1f}..{:<9.1f} {:>9.1f} {:>6.1f} {:>10.0f} {:>8.0f} {:>8.1f} "
        "{:>7.2f}\n",
        c.backend, c.tokens, double(c.parameters) / 1e6, c.density, c.step_ms, c.step_ms_min, c.step_ms_max, c.limit_ms,
        100 * c.mfu, c.tokens_per_s, c.tflops, double(c.peak_bytes) / (1 << 30), cases.front().step_ms / c.step_ms);
}

std::string steps_to_json(const std::vector<StepCase>& cases) {
  nlohmann::json list = nlohmann::json::array();
  for (const StepCase& c : cases)
    list.push_back({{"backend", c.backend},
                    {"tokens", c.tokens},
                    {"parameters", c.parameters},
                    {"density", c.density},
                    {"step_ms", {{"median", c.step_ms}, {"min", c.step_ms_min}, {"max", c.step_ms_max}}},
                    {"limit_ms", c.limit_ms},
                    {"mfu", c.mfu},
                    {"tokens_per_s", c.tokens_per_s},
                    {"tflops", c.tflops},
                    {"peak_bytes", c.peak_bytes},
                    {"offload", c.offload}});
  const std::string gpu = at::hasCUDA() ? at::cuda::getDeviceProperties(0)->name : "";
  return nlohmann::json{{"gpu", gpu}, {"commit", VMOBA_COMMIT}, {"cases", list}}.dump(2) + "\n";
}

}  // namespace vmoba::bench
