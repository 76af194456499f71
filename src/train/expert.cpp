#include "train/expert.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/log.h"
#include "core/random.h"
#include "model/common/lora.h"
#include "model/weights/lora_file.h"
#include "train/dist/gradient_buckets.h"
#include "train/flow_matching.h"
#include "train/optim/gradients.h"

namespace vmoba::train {
namespace {

void attach_adapters(const model::LoraConfig& lora, model::Dit& dit, uint64_t seed, at::Device device) {
  if (!lora.enabled()) return;
  const auto adapters = model::make_adapters(lora, dit.parameters(), seed, device);
  dit.attach(adapters);
  log_info("LoRA: rank {} beside {} linear maps{}", lora.rank, adapters.size(),
           lora.init_from.empty() ? "" : ", going on from " + lora.init_from);
  const auto missing = model::missing_for_kohya(adapters);
  if (std::count(lora.formats.begin(), lora.formats.end(), "kohya") && !missing.empty())
    log_warning("lora.formats kohya: diffusers refuses such files without all of q, k, v, o and ffn; {} are missing",
                missing.size());
}

Expert make_expert(const RootConfig& config, const model::ModelConfig& model, const model::LoraConfig& lora,
                   uint64_t seed, at::Device device, dist::Mesh& mesh) {
  Expert out;
  const bool shared = mesh.sizes().state_ranks() > 1, trains_parts = shared && !lora.enabled();
  if (shared)
    out.shards = std::make_shared<dist::ShardedWeights>(mesh.state(), mesh.replicas(),
                                                        trains_parts ? values_per_unit(config.train.optimizer) : 1);
  out.dit = model::make_dit(model, config.attention, seed, device, out.shards.get());
  attach_adapters(lora, *out.dit, seed, device);
  out.optimizer = make_optimizer(config.train.optimizer, out.dit->trainable());
  if (config.train.ema.enabled) out.ema = std::make_unique<Ema>(config.train.ema, out.dit->trainable());
  if (trains_parts) {
    out.sums = out.shards;
    out.holders = &mesh.state();
  } else if (mesh.everyone().size() > 1) {
    out.sums = std::make_shared<dist::GradientBuckets>(out.dit->trainable(), mesh.everyone());
  }
  out.copies = trains_parts ? &mesh.replicas() : &mesh.everyone();
  return out;
}

}  // namespace

void Expert::begin_gradients() {
  if (sums)
    sums->begin_step();
  else
    optimizer->zero_grad();
}

void Expert::finish_gradients() {
  if (sums) sums->finish();
}

double Expert::gradient_norm() const {
  const at::Tensor norm = train::gradient_norm(dit->trainable());
  return (holders ? dist::norm_over_parts(*holders, norm) : norm).item<double>();
}

void Expert::update(double lr, double norm, double max_norm) {
  clip_gradients(dit->trainable(), norm, max_norm);
  optimizer->step(lr);
  if (ema) ema->update(updates);
  updates += 1;
}

std::vector<Expert> make_experts(const RootConfig& config, at::Device device, dist::Mesh& mesh) {
  if (config.lora.enabled() && config.model.weights.empty())
    log_warning("LoRA beside random weights: model.weights is empty");
  const auto seed = uint64_t(config.seed);
  std::vector<Expert> out;
  out.push_back(make_expert(config, config.model, config.lora, seed, device, mesh));
  if (config.model.boundary == 0) return out;
  model::LoraConfig lora = config.lora;
  lora.init_from = config.lora.init_from_2;
  out.push_back(make_expert(config, model::low_noise_expert(config.model), lora,
                            RandomStream(seed, "low_noise_expert", 0).next_u64(), device, mesh));
  return out;
}

size_t expert_of_sample(const RootConfig& config, int64_t sample) {
  const double timestep = 1000 * draw_sigma(config.train.flow, uint64_t(config.seed), sample);
  return timestep >= config.model.boundary ? 0 : 1;
}

std::vector<bool> experts_in_step(const RootConfig& config, int64_t first_sample) {
  std::vector<bool> out(config.model.boundary > 0 ? 2 : 1, false);
  for (int64_t i = 0; i < config.train.global_batch; ++i) out[expert_of_sample(config, first_sample + i)] = true;
  return out;
}

std::string expert_name(size_t expert, size_t experts) {
  return experts == 1 ? "" : expert == 0 ? "high_noise" : "low_noise";
}

}  // namespace vmoba::train
