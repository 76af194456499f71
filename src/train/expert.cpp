#include "train/expert.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "core/log.h"
#include "model/common/lora.h"
#include "model/weights/lora_file.h"

namespace vmoba::train {
namespace {

void attach_adapters(const RootConfig& config, model::Dit& dit, at::Device device) {
  const model::LoraConfig& lora = config.lora;
  if (!lora.enabled()) return;
  const auto adapters = model::make_adapters(lora, dit.parameters(), uint64_t(config.seed), device);
  dit.attach(adapters);
  if (config.model.weights.empty()) log_warning("LoRA beside random weights: model.weights is empty");
  log_info("LoRA: rank {} beside {} linear maps{}", lora.rank, adapters.size(),
           lora.init_from.empty() ? "" : ", going on from " + lora.init_from);
  const auto missing = model::missing_for_kohya(adapters);
  if (std::count(lora.formats.begin(), lora.formats.end(), "kohya") && !missing.empty())
    log_warning("lora.formats kohya: diffusers refuses such files without all of q, k, v, o and ffn; {} are missing",
                missing.size());
}

}  // namespace

void Expert::begin_gradients() {
  if (buckets)
    buckets->begin_step();
  else
    optimizer->zero_grad();
}

double Expert::gradient_norm() const {
  return train::gradient_norm(dit->trainable()).item<double>();
}

void Expert::update(double lr, double norm, double max_norm) {
  clip_gradients(dit->trainable(), norm, max_norm);
  optimizer->step(lr);
  if (ema) ema->update(updates);
  updates += 1;
}

Expert make_expert(const RootConfig& config, at::Device device, dist::Communicator* ranks) {
  Expert out;
  out.dit = model::make_dit(config.model, config.attention, uint64_t(config.seed), device);
  attach_adapters(config, *out.dit, device);
  out.optimizer = std::make_unique<AdamW>(config.train.optimizer, out.dit->trainable());
  if (config.train.ema.enabled) out.ema = std::make_unique<Ema>(config.train.ema, out.dit->trainable());
  if (ranks) out.buckets = std::make_unique<dist::GradientBuckets>(out.dit->trainable(), *ranks);
  return out;
}

}  // namespace vmoba::train
