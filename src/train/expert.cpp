#include "train/expert.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "config/experts.h"
#include "core/log.h"
#include "core/random.h"
#include "model/adapter/lora.h"
#include "model/adapter/lora_file.h"
#include "train/dist/gradient_buckets.h"
#include "train/flow_matching.h"
#include "train/optim/gradients.h"

namespace vmoba::train {
namespace {

void attach_adapters(const model::LoraConfig& lora, const model::Architecture& architecture, model::Dit& dit,
                     uint64_t seed, at::Device device) {
  if (!lora.enabled()) return;
  const auto adapters = model::make_adapters(lora, architecture, dit.parameters(), seed, device);
  dit.attach(adapters);
  log_info("LoRA: rank {} beside {} linear maps{}", lora.rank, adapters.size(),
           lora.init_from.empty() ? "" : ", going on from " + lora.init_from);
  const std::vector<model::Parameter>& base = dit.parameters();
  if (std::any_of(base.begin(), base.end(), [](const model::Parameter& p) { return p.optional; }))
    log_info("LoRA: what attention learns (attention.remainder_beta) stays as the weights have it");
  const auto missing = model::missing_for_kohya(adapters, architecture);
  if (std::count(lora.formats.begin(), lora.formats.end(), "kohya") && !missing.empty())
    log_warning(
        "lora.formats kohya: diffusers refuses such files where a block lacks a module; {} are missing (first {})",
        missing.size(), missing.front());
  const std::string mark = model::missing_for_diffusers(adapters, architecture);
  if (std::count(lora.formats.begin(), lora.formats.end(), "comfyui") && !mark.empty())
    log_warning(
        "lora.formats comfyui: diffusers reads such files where a name has '{}', and none will have it; for diffusers "
        "add its format to lora.formats, or that map to lora.targets",
        mark);
}

Expert make_expert(const RootConfig& config, const model::ModelConfig& model, const model::LoraConfig& lora,
                   const model::ModelConfig& teacher, uint64_t seed, at::Device device, dist::Mesh& mesh,
                   const std::shared_ptr<model::RingSlots>& slots) {
  Expert out;
  const bool shared = mesh.sizes().state_ranks() > 1, trains_parts = shared && !lora.enabled();
  const bool rounds = model.weights_dtype == "bf16" && !lora.enabled();
  if (shared)
    out.shards = std::make_shared<dist::ShardedWeights>(
        mesh.state(), mesh.replicas(), trains_parts ? values_per_unit(config.train.optimizer, rounds) : 1);
  if (slots) out.ring = std::make_unique<model::WeightRing>(slots);
  model::WeightStore* store = slots ? out.ring.get() : out.shards.get();
  out.dit = model::make_dit(model, config.attention, seed, device, store);
  if (config.train.distill.weight > 0 && !lora.enabled()) {
    if (shared)
      out.teacher_shards = std::make_shared<dist::ShardedWeights>(mesh.state(), mesh.replicas(), /*values_per_unit=*/1);
    out.teacher = model::make_dit(teacher, config.attention, seed, device, out.teacher_shards.get());
  }
  attach_adapters(lora, model::architecture_of(model), *out.dit, seed, device);
  Placement placement{seed};
  if (trains_parts) {
    dist::Communicator& holders = mesh.state();
    placement.part = holders.rank(), placement.parts = holders.size();
    placement.exchange = [&holders](const at::Tensor& in, const at::Tensor& taken) {
      holders.all_to_all(in, taken)->wait();
    };
  }
  out.optimizer = make_optimizer(config.train.optimizer, out.dit->trainable(), placement);
  for (size_t i = 0; i < out.dit->trainable().size(); ++i) {
    const model::Parameter& parameter = out.dit->trainable()[i];
    if (parameter.name.ends_with(".lora_B.weight")) out.optimizer->treat(i, {lora.plus_ratio});
    if (parameter.optional) out.optimizer->treat(i, {1, /*decays=*/false});  // a bias of logits, not a map
  }
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

// The stream's name is older than runs of more than two experts.
uint64_t seed_of(uint64_t seed, size_t expert) {
  return expert == 0 ? seed : RandomStream(seed, "low_noise_expert", expert - 1).next_u64();
}

}  // namespace

void Expert::begin_gradients() {
  if (sums)
    sums->begin_step();
  else
    optimizer->zero_grad();
  const bool frozen = shards && static_cast<dist::GradientSums*>(shards.get()) != sums.get();
  if (frozen) shards->begin_step();
}

at::Tensor Expert::teach(const model::DitInput& input, model::ForwardOptions options) const {
  const at::NoGradGuard no_grad;
  options.dense = true;
  options.recompute = {};
  options.stats = nullptr;
  options.adapters = false;
  return (teacher ? *teacher : *dit).forward(input, options);
}

void Expert::finish_gradients() {
  if (sums) sums->finish();
}

void Expert::drop_gathered() {
  if (shards) shards->drop_gathered();
}

at::Tensor Expert::gradient_norm() const {
  const at::Tensor norm = train::gradient_norm(dit->trainable());
  return holders ? dist::norm_over_parts(*holders, norm) : norm;
}

void Expert::update(double lr, const at::Tensor& norm, double max_norm, const at::Tensor& skip) {
  optimizer->step({lr, clip_factor(norm, max_norm), skip});
  if (ema) ema->update(updates);
  updates += 1;
}

std::vector<Expert> make_experts(const RootConfig& config, at::Device device, dist::Mesh& mesh,
                                 int64_t resident_bytes) {
  std::vector<model::ModelConfig> models;  // all before the first is made: what is missing is said at once
  for (size_t i = 0; i < expert_count(config); ++i) models.push_back(expert_model(config, i));
  if (config.lora.enabled() && models.front().weights.empty())
    log_warning("LoRA beside random weights: model.weights and experts name none");
  // One for all: they compute one after the other.
  const auto slots = model::offloads_weights(config.model.offload)
                         ? std::make_shared<model::RingSlots>(device, resident_bytes)
                         : std::shared_ptr<model::RingSlots>();
  std::vector<Expert> out;
  for (size_t i = 0; i < models.size(); ++i)
    out.push_back(make_expert(config, models[i], expert_lora(config, i), teacher_model(config, i),
                              seed_of(uint64_t(config.seed), i), device, mesh, slots));
  return out;
}

size_t expert_of_sample(const RootConfig& config, int64_t sample) {
  return expert_at(config.experts, 1000 * draw_sigma(config.train.flow, uint64_t(config.seed), sample));
}

std::vector<bool> experts_in_step(const RootConfig& config, int64_t first_sample) {
  std::vector<bool> out(expert_count(config), false);
  for (int64_t i = 0; i < config.train.global_batch; ++i) out[expert_of_sample(config, first_sample + i)] = true;
  return out;
}

std::string expert_name(size_t expert, size_t experts) {
  if (experts == 1) return "";
  if (experts > 2) return fmt::format("expert_{}", expert + 1);
  return expert == 0 ? "high_noise" : "low_noise";
}

}  // namespace vmoba::train
