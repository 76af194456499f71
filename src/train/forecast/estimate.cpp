#include "train/forecast/estimate.h"

#include <algorithm>
#include <cmath>

#include "config/clip_geometry.h"
#include "core/check.h"
#include "train/forecast/rank_memory.h"
#include "train/forecast/step_flops.h"

namespace vmoba::train {
namespace {

attention::AttentionConfig full_attention(attention::AttentionConfig config) {
  config.backend = "full";
  return config;
}

double assumed_density(const RootConfig& config, const std::vector<data::Bucket>& buckets,
                       const data::ClipGeometry& geometry) {
  const attention::Grid grid = buckets.empty() ? attention::Grid{} : bucket_grid(geometry, buckets.back());
  return attention::expected_density(config.attention, grid, model::layer_count(config.model));
}

void add_memory(const RootConfig& config, RunEstimate& out) {
  const ModelSizes sizes = model_sizes(config);
  const RankMemory alone = rank_memory(config, {}, out.grid, config.train.micro_batch);
  out.experts = sizes.experts;
  out.parameters = sizes.parameters;
  out.trained = sizes.trainable;
  out.adapters_bytes = config.lora.enabled() ? 4 * sizes.experts * sizes.trainable : 0;
  out.weights_bytes = alone.weights - out.adapters_bytes;
  out.gradients_bytes = alone.gradients;
  out.optimizer_bytes = alone.optimizer;
  out.ema_bytes = alone.ema;
  out.activations_bytes = alone.activations;
  out.block_bytes = alone.ring + alone.working;
  out.apart_bytes = alone.apart;
  out.host_weights_bytes = alone.host_weights;
  out.host_activations_bytes = alone.host_activations;
}

std::string human_flops(double flops) {
  const char* units[] = {"", " k", " M", " G", " T", " P", " E"};
  int unit = 0;
  while (flops >= 1000 && unit < 6) flops /= 1000, ++unit;
  return fmt::format("{:.2f}{}FLOP", flops, unit ? units[unit] : " ");
}

std::string human_bytes(int64_t bytes) {
  return bytes >= (1 << 30) ? fmt::format("{:.2f} GiB", double(bytes) / (1 << 30))
                            : fmt::format("{:.1f} MiB", double(bytes) / (1 << 20));
}

}  // namespace

std::vector<data::Bucket> configured_buckets(const RootConfig& config) {
  return configured_buckets(config, clip_geometry(config));
}

std::vector<data::Bucket> configured_buckets(const RootConfig& config, const data::ClipGeometry& g) {
  std::vector<data::Bucket> out;
  for (const data::DataConfig& set : config.data.each_set())
    for (const int64_t frames : set.frames)
      out.push_back({frames, set.height, set.width, g.tokens(frames, set.height, set.width), 0});
  return out;
}

attention::Grid bucket_grid(const data::ClipGeometry& g, const data::Bucket& bucket) {
  return {1 + (bucket.frames - 1) / g.temporal_stride, bucket.height / g.pixel_multiple,
          bucket.width / g.pixel_multiple};
}

attention::Grid largest_grid(const data::ClipGeometry& geometry, const std::vector<data::Bucket>& buckets) {
  attention::Grid out{0, 0, 0};
  for (const data::Bucket& bucket : buckets)
    if (const attention::Grid grid = bucket_grid(geometry, bucket); grid.tokens() > out.tokens()) out = grid;
  return out;
}

RunEstimate estimate_run(const RootConfig& config, const std::vector<data::Bucket>& buckets) {
  return estimate_run(config, buckets, clip_geometry(config));
}

RunEstimate estimate_run(const RootConfig& config, const std::vector<data::Bucket>& buckets,
                         const data::ClipGeometry& geometry) {
  RunEstimate out;
  out.assumed_density = assumed_density(config, buckets, geometry);
  const std::map<std::string, int64_t> adapters = adapters_of(config);
  for (const data::Bucket& bucket : buckets) {
    const attention::Grid grid = bucket_grid(geometry, bucket);
    const int64_t text = config.text.max_tokens;
    const bool again = recomputes(config);
    const attention::AttentionConfig full = full_attention(config.attention);
    const StepFlops of_full =
        step_flops(config, adapters, model::forward_work(config.model, full, grid, text, 1), again);
    const std::vector<model::ForwardWork> sparse =
        model::forward_work(config.model, config.attention, grid, text, out.assumed_density);
    const StepFlops of_sparse = step_flops(config, adapters, sparse, again);
    const StepFlops not_again = step_flops(config, adapters, sparse, false);
    const double taught = config.train.distill.weight > 0 ? of_full.forward : 0;
    out.buckets.push_back({bucket, grid, of_full.total() + taught, of_sparse.total() + taught, of_sparse.backward,
                           again ? of_sparse.total() - not_again.total() : 0});
  }
  out.grid = largest_grid(geometry, buckets);
  add_memory(config, out);
  return out;
}

std::string estimate_to_text(const RootConfig& config, const RunEstimate& e) {
  const std::string each = e.experts > 1 ? fmt::format(" in each of {} experts", e.experts) : "";
  std::string text =
      fmt::format("parameters           {:.3f} M ({}){}\n", double(e.parameters) / 1e6, e.parameters, each);
  if (config.lora.enabled())
    text += fmt::format("trained              {:.3f} M ({}){}: LoRA of rank {}\n", double(e.trained) / 1e6, e.trained,
                        each, config.lora.rank);
  text += fmt::format("samples per step     {} ({} forward passes of {})\n", config.train.global_batch,
                      config.train.global_batch / config.train.micro_batch, config.train.micro_batch);
  for (const BucketEstimate& b : e.buckets) {
    text += fmt::format("bucket {}x{}x{}: {} tokens per sample, {} clips\n", b.bucket.frames, b.bucket.height,
                        b.bucket.width, b.bucket.tokens, b.bucket.clips);
    const double batch = double(config.train.global_batch);
    text += fmt::format("  per step, full     {}\n", human_flops(b.flops_full * batch));
    text += fmt::format("  per step, {:<8} {} (density {:.2f} assumed; {:.2f}x less)\n", config.attention.backend,
                        human_flops(b.flops_sparse * batch), e.assumed_density, b.flops_full / b.flops_sparse);
  }
  const std::string adapters = e.adapters_bytes > 0 ? " + adapters " + human_bytes(e.adapters_bytes) : "";
  const char* of_blocks = model::offloads_weights(config.model.offload) ? "ring of blocks" : "a block to compute with";
  const std::string blocks = e.block_bytes > 0 ? fmt::format(" + {} {}", of_blocks, human_bytes(e.block_bytes)) : "";
  const std::string apart =
      e.apart_bytes > 0 ? fmt::format(" - {} of the last two never there at once", human_bytes(e.apart_bytes)) : "";
  text += fmt::format(
      "memory, estimated    {} = weights ({}) {}{}{} + optimizer {} + EMA {} + gradients {} + activations {}{}\n",
      human_bytes(e.total_bytes()), config.model.weights_dtype, human_bytes(e.weights_bytes), blocks, adapters,
      human_bytes(e.optimizer_bytes), human_bytes(e.ema_bytes), human_bytes(e.gradients_bytes),
      human_bytes(e.activations_bytes), apart);
  if (config.model.recompute == model::Recompute::kAuto)
    text +=
        "                     with model.recompute block; auto keeps results of blocks in what is left of the GPU\n";
  if (const int64_t host = e.host_weights_bytes + e.host_activations_bytes; host > 0)
    text += fmt::format("host, page-locked    {} = weights {} + inputs of blocks {} (model.offload {})\n",
                        human_bytes(host), human_bytes(e.host_weights_bytes), human_bytes(e.host_activations_bytes),
                        choice_word(config.model.offload));
  text += "                     codec and encoders come on top where cache.dir does not hold what they would make\n";
  return text;
}

}  // namespace vmoba::train
