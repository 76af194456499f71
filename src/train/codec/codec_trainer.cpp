#include "train/codec/codec_trainer.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/random.h"
#include "model/codec/taehv_network.h"
#include "model/common/parameters.h"
#include "train/optim/gradients.h"

// Shape letters: B videos, F frames, T latent frames, N = frames times videos, the videos of one time next to each
// other.
namespace vmoba::train {
namespace {

constexpr double kAbsoluteShare = 0.02;  // of the mean absolute error in the loss
constexpr double kSpreadShare = 0.01;
constexpr double kLeastVariance = 1e-6;
constexpr double kMaxGradientNorm = 1.0;

// Blocks begin by passing their input on, and the picture begins grey: a network that is deep and has no norms would
// multiply its values.
model::Init init_of(const model::ParameterSpec& spec) {
  if (spec.shape.size() == 1) return model::constant(spec.name == "decoder.22.bias" ? 0.5 : 0.0);
  if (spec.name.ends_with(".conv.4.weight")) return model::constant(0);
  const bool behind_relu = spec.name.ends_with(".conv.weight");
  const double gain = spec.name == "decoder.22.weight" ? 0.1 : (behind_relu ? std::sqrt(2.0) : 1.0);
  return model::uniform(gain * std::sqrt(3 / double(spec.numel() / spec.shape[0])));
}

// [B, C, F, H, W] -> [F*B, C, H, W].
at::Tensor by_time(const at::Tensor& video_BCFHW) {
  return video_BCFHW.permute({2, 0, 1, 3, 4}).flatten(0, 1);
}

OptimizerConfig optimizer_config() {
  OptimizerConfig config;
  config.betas = {0.9, 0.99};
  return config;
}

// How far the latents' channels are from mean 0 and deviation 1.
at::Tensor spread_error(const at::Tensor& latents_NZHW) {
  const auto [variance_Z, mean_Z] = at::var_mean(latents_NZHW, at::IntArrayRef{0, 2, 3}, /*correction=*/0);
  return (mean_Z.square() + ((variance_Z + kLeastVariance).sqrt() - 1).square()).mean();
}

}  // namespace

CodecTrainer::CodecTrainer(const CodecTrainerConfig& config, at::Device device) : config_(config), device_(device) {
  for (model::ParameterSpec spec : model::taehv_specs(config.model)) {
    spec.init = init_of(spec);
    parameters_.push_back({spec.name, model::draw_parameter(spec, config.seed, device)});
  }
  optimizer_ = make_optimizer(optimizer_config(), parameters_);
  at::manual_seed(config.seed);
}

model::TensorSource CodecTrainer::source(at::ScalarType dtype) const {
  return [this, dtype](const std::string& name, const std::vector<int64_t>&) {
    for (const model::Parameter& parameter : parameters_)
      if (parameter.name == name) return parameter.tensor.to(dtype);
    return at::Tensor();
  };
}

// Kept: a copy to the GPU in each step would wait for all work before it.
const at::Tensor& CodecTrainer::seen_frames(int64_t frames) const {
  at::Tensor& seen = seen_frames_[frames];
  if (!seen.defined()) seen = at::tensor(config_.model.seen_frames(frames), at::kLong).to(device_);
  return seen;
}

at::Tensor CodecTrainer::encode(const at::Tensor& video_BCFHW, const model::TensorSource& source) const {
  const at::Tensor frames_NCHW = by_time(video_BCFHW.index_select(2, seen_frames(video_BCFHW.size(2))));
  const at::ScalarType dtype = config_.bf16 ? at::kBFloat16 : at::kFloat;
  model::FrameMemory memory;
  const model::TaehvEncoder encoder(config_.model, source);
  return encoder(at::pixel_unshuffle(frames_NCHW, config_.model.patch_size).to(dtype), video_BCFHW.size(0), memory)
      .to(at::kFloat);
}

at::Tensor CodecTrainer::step(const at::Tensor& video_BCFHW, double lr) {
  const int64_t batch = video_BCFHW.size(0);
  const at::ScalarType dtype = config_.bf16 ? at::kBFloat16 : at::kFloat;
  const model::TensorSource weights = source(dtype);
  optimizer_->zero_grad();

  const at::Tensor latents_NZHW = encode(video_BCFHW, weights);
  const at::Tensor noisy_NZHW = latents_NZHW + config_.latent_noise * at::randn_like(latents_NZHW);

  model::FrameMemory memory;
  const model::TaehvDecoder decoder(config_.model, weights);
  const at::Tensor patches = decoder(noisy_NZHW.to(dtype), batch, memory);
  const int64_t before = (config_.model.shape().temporal_stride - 1) * batch;
  const at::Tensor frames_NCHW = at::pixel_shuffle(patches.slice(0, before), config_.model.patch_size).to(at::kFloat);
  const at::Tensor difference = frames_NCHW - by_time(video_BCFHW);
  const at::Tensor loss = difference.square().mean() + kAbsoluteShare * difference.abs().mean();
  (loss + kSpreadShare * spread_error(latents_NZHW)).backward();

  const at::Tensor norm = gradient_norm(parameters_);
  optimizer_->step({lr, clip_factor(norm, kMaxGradientNorm)});
  return loss.detach();
}

std::vector<model::NamedTensor> CodecTrainer::weights() const {
  std::vector<model::NamedTensor> out;
  for (const model::Parameter& parameter : parameters_) out.push_back({parameter.name, parameter.tensor.detach()});
  return out;
}

}  // namespace vmoba::train
