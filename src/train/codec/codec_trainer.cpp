#include "train/codec/codec_trainer.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/random.h"
#include "model/codec/patch_codec.h"
#include "model/common/parameters.h"
#include "train/optim/gradients.h"

// Shape letters: B videos, F frames, T latent frames, N = frames times videos, the videos of one time next to each
// other.
namespace vmoba::train {
namespace {

constexpr double kLeastError = 1e-4;  // squared: below 40 dB a crop is good enough
constexpr double kLeastAbsoluteError = 0.01;
constexpr double kAbsoluteShare = 0.1;
constexpr double kSpreadShare = 0.1;
constexpr double kLeastVariance = 1e-6;
constexpr double kMaxGradientNorm = 1.0;
constexpr double kLinearLrFactor = 0.05;  // their many small weights move the same way

bool is_linear(const std::string& name) {
  return name.find(".linear.") != std::string::npos;
}

// Blocks begin by passing their input on, and what corrects the linear maps begins at 0: a network that is deep and has
// no norms would multiply its values.
model::Init init_of(const model::ParameterSpec& spec) {
  if (spec.shape.size() == 1 || spec.name.ends_with(".conv.4.weight") || spec.name.ends_with("conv_out.weight"))
    return model::constant(0);
  return model::uniform(std::sqrt(6 / double(spec.numel() / spec.shape[0])));
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

CodecTrainer::CodecTrainer(const CodecTrainerConfig& config, const PrincipalPatches& start, at::Device device)
    : config_(config), device_(device) {
  for (model::ParameterSpec spec : model::patch_codec_specs(config.model)) {
    spec.init = init_of(spec);
    parameters_.push_back({spec.name, model::draw_parameter(spec, config.seed, device)});
  }
  set_linear_maps(start);
  optimizer_ = make_optimizer(optimizer_config(), parameters_);
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (is_linear(parameters_[i].name)) optimizer_->treat(i, {.lr_factor = kLinearLrFactor, .decays = false});
  at::manual_seed(config.seed);
}

// Latents are the components of a patch over their deviations.
void CodecTrainer::set_linear_maps(const PrincipalPatches& start) {
  const at::Tensor in_ZP = start.components_ZP / start.deviations_Z.unsqueeze(1);
  const at::Tensor out_PZ = start.components_ZP.t() * start.deviations_Z;
  const std::map<std::string, at::Tensor> values = {{"encoder.linear.weight", in_ZP},
                                                    {"encoder.linear.bias", -at::mv(in_ZP, start.mean_P)},
                                                    {"decoder.linear.weight", out_PZ},
                                                    {"decoder.linear.bias", start.mean_P}};
  for (const model::Parameter& parameter : parameters_)
    if (const auto value = values.find(parameter.name); value != values.end())
      parameter.tensor.detach().copy_(value->second.view(parameter.tensor.sizes()));
}

model::TensorSource CodecTrainer::source() const {
  return [this](const std::string& name, const std::vector<int64_t>&) {
    for (const model::Parameter& parameter : parameters_)
      if (parameter.name == name)
        return parameter.tensor.to(config_.bf16 && !is_linear(name) ? at::kBFloat16 : at::kFloat);
    return at::Tensor();
  };
}

// Kept: a copy to the GPU in each step would wait for all work before it.
const at::Tensor& CodecTrainer::seen_frames(int64_t frames) const {
  at::Tensor& seen = seen_frames_[frames];
  if (!seen.defined()) seen = at::tensor(model::patch_codec_seen_frames(frames), at::kLong).to(device_);
  return seen;
}

at::Tensor CodecTrainer::step(const at::Tensor& video_BCFHW, double lr) {
  const int64_t batch = video_BCFHW.size(0);
  const model::TensorSource weights = source();
  optimizer_->zero_grad();

  model::FrameMemory encoder_memory, decoder_memory;
  const at::Tensor seen_NCHW = by_time(video_BCFHW.index_select(2, seen_frames(video_BCFHW.size(2))));
  const at::Tensor latents_NZHW = model::PatchEncoder(config_.model, weights)(seen_NCHW, batch, encoder_memory);
  const at::Tensor noisy_NZHW = latents_NZHW + config_.latent_noise * at::randn_like(latents_NZHW);
  const at::Tensor made_NCHW = model::PatchDecoder(config_.model, weights)(noisy_NZHW, batch, decoder_memory);

  const at::Tensor frames_NCHW = made_NCHW.slice(0, (model::kPatchFrames - 1) * batch);
  const at::Tensor difference_FBP = (frames_NCHW - by_time(video_BCFHW)).unflatten(0, {-1, batch}).flatten(2);
  const at::Tensor squared_B = difference_FBP.square().mean(at::IntArrayRef{0, 2});
  const at::Tensor absolute_B = difference_FBP.abs().mean(at::IntArrayRef{0, 2});
  const at::Tensor loss = (squared_B + kLeastError).log() + kAbsoluteShare * (absolute_B + kLeastAbsoluteError).log();
  (loss.mean() + kSpreadShare * spread_error(latents_NZHW)).backward();

  const at::Tensor norm = gradient_norm(parameters_);
  optimizer_->step({lr, clip_factor(norm, kMaxGradientNorm)});
  return squared_B.detach().mean();
}

std::vector<model::NamedTensor> CodecTrainer::weights() const {
  std::vector<model::NamedTensor> out;
  for (const model::Parameter& parameter : parameters_) out.push_back({parameter.name, parameter.tensor.detach()});
  return out;
}

}  // namespace vmoba::train
