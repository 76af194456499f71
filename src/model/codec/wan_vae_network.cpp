#include "model/codec/wan_vae_network.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

namespace vmoba::model {
namespace {

at::Tensor norm_out(const TensorSource& source, const std::string& name, int64_t channels) {
  return source(name + ".norm_out.gamma", {channels, 1, 1, 1}).view({channels});
}

Linear quant_conv(const TensorSource& source, const std::string& name, int64_t width) {
  const at::Tensor weight = source(name + ".weight", {width, width, 1, 1, 1});
  return {weight.view({width, width}), source(name + ".bias", {width})};
}

int64_t widest(int64_t base, const WanVaeConfig& config) {
  return base * config.dim_mult.back();
}

}  // namespace

WanVaeEncoder::Stage WanVaeEncoder::make_stage(const WanVaeConfig& config, const TensorSource& source, size_t index,
                                               int64_t& layer) const {
  // Wan2.1 numbers blocks and downsamplers through all stages, Wan2.2 within a stage.
  const auto block_name = [&](int64_t block) {
    return shortcuts_ ? fmt::format("encoder.down_blocks.{}.resnets.{}", index, block)
                      : fmt::format("encoder.down_blocks.{}", layer++);
  };
  Stage stage;
  stage.width = config.base_dim * config.dim_mult[index];
  int64_t in = index == 0 ? config.base_dim : config.base_dim * config.dim_mult[index - 1];
  for (int64_t block = 0; block < config.num_res_blocks; ++block) {
    stage.blocks.emplace_back(source, block_name(block), in, stage.width);
    in = stage.width;
  }
  if (index + 1 == config.dim_mult.size()) return stage;
  const std::string name = shortcuts_ ? fmt::format("encoder.down_blocks.{}.downsampler", index)
                                      : fmt::format("encoder.down_blocks.{}", layer++);
  stage.down.emplace(source, name, stage.width, config.temporal_downsample[index]);
  stage.time = config.temporal_downsample[index] ? 2 : 1;
  stage.space = 2;
  return stage;
}

WanVaeEncoder::WanVaeEncoder(const WanVaeConfig& config, const TensorSource& source)
    : shortcuts_(config.is_residual),
      conv_in_(source, "encoder.conv_in", config.patch_channels(), config.base_dim, 3),
      middle_(source, "encoder.mid_block", widest(config.base_dim, config)),
      gamma_out_C_(norm_out(source, "encoder", widest(config.base_dim, config))),
      conv_out_(source, "encoder.conv_out", widest(config.base_dim, config), 2 * config.z_dim, 3) {
  int64_t layer = 0;
  for (size_t i = 0; i < config.dim_mult.size(); ++i) stages_.push_back(make_stage(config, source, i, layer));
  // Means come before log-variances; only they are used.
  const Linear moments = quant_conv(source, "quant_conv", 2 * config.z_dim);
  to_mean_ = {moments.weight.slice(0, 0, config.z_dim), moments.bias.slice(0, 0, config.z_dim)};
}

at::Tensor WanVaeEncoder::operator()(const at::Tensor& frames_FHWC, FrameMemory& memory) const {
  at::Tensor x_THWC = conv_in_(frames_FHWC, memory);
  for (const Stage& stage : stages_) {
    const at::Tensor before = shortcuts_ ? x_THWC : at::Tensor();
    for (const VaeResBlock& block : stage.blocks) x_THWC = block(x_THWC, memory);
    if (stage.down) x_THWC = (*stage.down)(x_THWC, memory);
    if (shortcuts_) x_THWC.add_(mean_shortcut(before, stage.width, stage.time, stage.space));
  }
  const at::Tensor moments = conv_out_.after_norm(middle_(x_THWC, memory), gamma_out_C_, memory);
  memory.end_chunk();
  return linear(moments, to_mean_);
}

WanVaeDecoder::Stage WanVaeDecoder::make_stage(const WanVaeConfig& config, const TensorSource& source,
                                               size_t index) const {
  const size_t last = config.dim_mult.size() - 1;
  const std::string name = fmt::format("decoder.up_blocks.{}", index);
  Stage stage;
  stage.width = config.decoder_base_dim * config.dim_mult[last - index];
  int64_t in = config.decoder_base_dim * config.dim_mult[index == 0 ? last : last - index + 1];
  if (index > 0 && !shortcuts_) in /= 2;  // Wan2.1's upsamplers halve the width
  for (int64_t block = 0; block <= config.num_res_blocks; ++block) {
    stage.blocks.emplace_back(source, fmt::format("{}.resnets.{}", name, block), in, stage.width);
    in = stage.width;
  }
  if (index == last) return stage;
  const bool temporal = config.temporal_downsample[last - 1 - index];
  stage.up.emplace(source, name + (shortcuts_ ? ".upsampler" : ".upsamplers.0"), stage.width,
                   shortcuts_ ? stage.width : stage.width / 2, temporal);
  stage.time = temporal ? 2 : 1;
  stage.space = 2;
  return stage;
}

WanVaeDecoder::WanVaeDecoder(const WanVaeConfig& config, const TensorSource& source)
    : shortcuts_(config.is_residual),
      from_latents_(quant_conv(source, "post_quant_conv", config.z_dim)),
      conv_in_(source, "decoder.conv_in", config.z_dim, widest(config.decoder_base_dim, config), 3),
      middle_(source, "decoder.mid_block", widest(config.decoder_base_dim, config)),
      gamma_out_C_(norm_out(source, "decoder", config.decoder_base_dim * config.dim_mult.front())),
      conv_out_(source, "decoder.conv_out", config.decoder_base_dim * config.dim_mult.front(), config.patch_channels(),
                3) {
  for (size_t i = 0; i < config.dim_mult.size(); ++i) stages_.push_back(make_stage(config, source, i));
}

at::Tensor WanVaeDecoder::operator()(const at::Tensor& latents_THWC, FrameMemory& memory) const {
  at::Tensor x_THWC = middle_(conv_in_(linear(latents_THWC, from_latents_), memory), memory);
  for (const Stage& stage : stages_) {
    const bool shortcut = shortcuts_ && stage.up;
    const at::Tensor before = shortcut ? x_THWC : at::Tensor();
    for (const VaeResBlock& block : stage.blocks) x_THWC = block(x_THWC, memory);
    if (stage.up) x_THWC = (*stage.up)(x_THWC, memory);
    if (shortcut) x_THWC.add_(repeat_shortcut(before, stage.width, stage.time, stage.space, memory.first_chunk()));
  }
  const at::Tensor frames = conv_out_.after_norm(x_THWC, gamma_out_C_, memory);
  memory.end_chunk();
  return frames;
}

std::vector<ParameterSpec> wan_vae_specs(const WanVaeConfig& config) {
  return specs_of<WanVaeEncoder, WanVaeDecoder>(config);
}

}  // namespace vmoba::model
