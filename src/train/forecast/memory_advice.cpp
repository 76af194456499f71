#include "train/forecast/memory_advice.h"

#include <fmt/ranges.h>

#include <functional>

#include "config/clip_geometry.h"
#include "core/bytes.h"
#include "core/check.h"
#include "model/architecture.h"
#include "train/forecast/estimate.h"

namespace vmoba::train {
namespace {

constexpr double kUsable = 0.93;

// Every other frame of each length, down to a whole number of the codec's strides.
std::vector<int64_t> half_as_long(const std::vector<int64_t>& frames) {
  std::vector<int64_t> out;
  for (const int64_t count : frames) out.push_back(1 + (count - 1) / 8 * 4);
  return out;
}

class Advice {
 public:
  explicit Advice(const RootConfig& config) : config_(config) {}

  void add(bool open, const std::string& keys, const std::function<void(RootConfig&)>& change) {
    if (!open) return;
    change(config_);
    out_.push_back({keys, config_});
  }
  const RootConfig& config() const { return config_; }
  std::vector<MemoryAdvice> take() { return std::move(out_); }

 private:
  RootConfig config_;
  std::vector<MemoryAdvice> out_;
};

}  // namespace

std::vector<MemoryAdvice> memory_advice(const RootConfig& config) {
  using model::Recompute;
  const Recompute recompute = config.model.recompute;
  const bool lora = config.lora.enabled(), fp32 = config.model.weights_dtype == "fp32";
  Advice out(config);
  out.add(recompute != Recompute::kBlock && recompute != Recompute::kAuto, "model.recompute=auto",
          [](RootConfig& c) { c.model.recompute = Recompute::kAuto; });
  out.add(config.train.micro_batch > 1, "train.micro_batch=1", [](RootConfig& c) { c.train.micro_batch = 1; });
  const bool alone = config.parallel.shard * config.parallel.sequence == 1;
  const bool weights_wait = model::offloads_weights(config.model.offload);
  out.add(!model::offloads_activations(config.model.offload),
          weights_wait ? "model.offload=both" : "model.offload=activations", [weights_wait](RootConfig& c) {
            c.model.offload = weights_wait ? model::Offload::kBoth : model::Offload::kActivations;
          });
  out.add(lora && alone && !weights_wait, "model.offload=both",
          [](RootConfig& c) { c.model.offload = model::Offload::kBoth; });
  out.add(config.train.optimizer.type == "adamw", "train.optimizer.type=adamw_8bit",
          [](RootConfig& c) { c.train.optimizer.type = "adamw_8bit"; });
  out.add(fp32, "model.weights_dtype=bf16", [](RootConfig& c) { c.model.weights_dtype = "bf16"; });
  out.add(config.train.ema.enabled && !lora, "train.ema.enabled=false",
          [](RootConfig& c) { c.train.ema.enabled = false; });
  out.add(lora && config.model.weights_dtype != "fp8", "model.weights_dtype=fp8",
          [](RootConfig& c) { c.model.weights_dtype = "fp8"; });
  out.add(!lora, "lora.rank=32 model.weights_dtype=fp8", [](RootConfig& c) {
    c.lora.rank = 32;
    if (c.lora.targets.empty()) c.lora.targets = model::architecture_of(c.model).lora.default_targets;
    c.model.weights_dtype = "fp8";
    c.model.linear_compute = "bf16";
  });
  const auto& frames = config.data.frames;
  out.add(config.data.sets.empty() && half_as_long(frames) != frames,
          fmt::format("data.frames=[{}]", fmt::join(half_as_long(frames), ", ")),
          [](RootConfig& c) { c.data.frames = half_as_long(c.data.frames); });
  return out.take();
}

std::string pass_text(const RootConfig& config, const PassSize& pass) {
  std::string bucket;
  try {
    const data::ClipGeometry g = clip_geometry(config);
    const int64_t stride = g.pixel_multiple / config.model.patch_size[1];
    bucket = fmt::format("bucket {}x{}x{}", 1 + (pass.latent_frames - 1) * g.temporal_stride,
                         pass.latent_height * stride, pass.latent_width * stride);
  } catch (const Error&) {  // of a codec whose files are not there: latents came without it
    bucket = fmt::format("latents {}x{}x{}", pass.latent_frames, pass.latent_height, pass.latent_width);
  }
  return fmt::format("{} sample{} of {}, {} tokens each", pass.samples, pass.samples == 1 ? "" : "s", bucket,
                     pass.tokens);
}

std::string memory_keys(const RootConfig& config) {
  std::vector<std::string> keys;
  for (const MemoryAdvice& advice : memory_advice(config)) keys.push_back(advice.keys);
  keys.push_back("smaller clips (data.height, data.width)");
  keys.push_back("more GPUs (parallel.shard or parallel.sequence)");
  return fmt::format("{}", fmt::join(keys, "; "));
}

int64_t usable_bytes(int64_t gpu_bytes) {
  return int64_t(kUsable * double(gpu_bytes));
}

bool gathered_weights_stay(double gathered, double free, double results) {
  return gathered <= free / 2 && gathered + results <= free;
}

std::string fit_to_text(const RootConfig& config, const std::vector<data::Bucket>& buckets, int64_t gpu_bytes,
                        const std::string& gpu) {
  return fit_to_text(config, buckets, clip_geometry(config), gpu_bytes, gpu);
}

std::string fit_to_text(const RootConfig& config, const std::vector<data::Bucket>& buckets,
                        const data::ClipGeometry& geometry, int64_t gpu_bytes, const std::string& gpu) {
  const int64_t usable = usable_bytes(gpu_bytes);
  const auto needed = [&](const RootConfig& with, const std::vector<data::Bucket>& of) {
    return estimate_run(with, of, geometry).total_bytes();
  };
  const int64_t now = needed(config, buckets);
  const std::string head = fmt::format("{:<20} ", gpu);
  if (now <= usable)
    return fmt::format("{}fits: {:.1f} of {:.1f} GiB that tensors can take of {:.1f}\n", head, gib(now), gib(usable),
                       gib(gpu_bytes));
  std::string out = fmt::format("{}does not fit: {:.1f} GiB, and tensors can take {:.1f} of {:.1f}\n", head, gib(now),
                                gib(usable), gib(gpu_bytes));
  for (const MemoryAdvice& advice : memory_advice(config)) {
    const bool other_clips = advice.config.data.frames != config.data.frames;
    const int64_t with = needed(advice.config, other_clips ? configured_buckets(advice.config, geometry) : buckets);
    out += fmt::format("  set                {:<44} {:>6.1f} GiB{}\n", advice.keys, gib(with),
                       with <= usable ? ": fits" : "");
    if (with <= usable) return out;
  }
  return out +
         "                     or smaller clips (data.height, data.width), or more GPUs (parallel.shard, "
         "parallel.sequence)\n";
}

}  // namespace vmoba::train
