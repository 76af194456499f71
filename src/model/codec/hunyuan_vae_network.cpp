#include "model/codec/hunyuan_vae_network.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

namespace vmoba::model {
namespace {

constexpr double kEps = 1e-6;
constexpr int64_t kTimeStages = 2, kSpaceStages = 3;  // of the three changes of size: 4x in time, 8x in space

Linear pointwise(const TensorSource& source, const std::string& name, int64_t in, int64_t out) {
  return {source(name + ".weight", {out, in, 1, 1, 1}).view({out, in}), source(name + ".bias", {out})};
}

Linear map(const TensorSource& source, const std::string& name, int64_t width) {
  return {source(name + ".weight", {width, width}), source(name + ".bias", {width})};
}

// Whether the change of size behind stage i of n is one in space, and one in time.
bool in_space(size_t stage, size_t stages) {
  return stage + 1 < stages && stage < size_t(kSpaceStages);
}
bool in_time(size_t stage, size_t stages) {
  return stage + 1 < stages && stage + 1 + size_t(kTimeStages) >= stages;
}

HunyuanVaeStage make_stage(const HunyuanVaeConfig& config, const TensorSource& source, const std::string& name,
                           int64_t in, int64_t out, int64_t blocks, size_t index) {
  HunyuanVaeStage stage;
  for (int64_t block = 0; block < blocks; ++block) {
    stage.blocks.emplace_back(source, fmt::format("{}.resnets.{}", name, block), in, out, config.norm_num_groups);
    in = out;
  }
  stage.space = in_space(index, config.block_out_channels.size()) ? 2 : 1;
  stage.time = in_time(index, config.block_out_channels.size()) ? 2 : 1;
  return stage;
}

// Each value of a frame twice in both directions, and each frame but the first `time` times.
FrameSource upsampled(const at::Tensor& x_THWC, int64_t time, int64_t space) {
  return [x_THWC, time, space](int64_t first, const at::Tensor& out_THWC) {
    const at::Tensor number_T = at::arange(first, first + out_THWC.size(0), x_THWC.options().dtype(at::kLong));
    const at::Tensor from_T = at::where(number_T.eq(0), number_T, (number_T - 1).floor_divide(time) + 1);
    const at::Tensor frames_THWC = x_THWC.index_select(0, from_T);
    const int64_t height = x_THWC.size(1), width = x_THWC.size(2);
    out_THWC.unflatten(1, {height, space})
        .unflatten(3, {width, space})
        .copy_(frames_THWC.unsqueeze(2).unsqueeze(4).expand({-1, height, space, width, space, -1}));
  };
}

at::Tensor upsample(const HunyuanVaeStage& stage, const at::Tensor& x_THWC) {
  const FrameSize size = {1 + (x_THWC.size(0) - 1) * stage.time, x_THWC.size(1) * stage.space,
                          x_THWC.size(2) * stage.space};
  return (*stage.resample)(size, upsampled(x_THWC, stage.time, stage.space));
}

FrameSize size_of(const at::Tensor& x_THWC) {
  return {x_THWC.size(0), x_THWC.size(1), x_THWC.size(2)};
}

}  // namespace

GroupNorm::GroupNorm(const TensorSource& source, const std::string& name, int64_t width, int64_t groups)
    : weight_C_(source(name + ".weight", {width}).to(at::kFloat)),
      bias_C_(source(name + ".bias", {width}).to(at::kFloat)),
      groups_(groups) {}

GroupNorm::Affine GroupNorm::of(const at::Tensor& x_THWC) const {
  const int64_t width = x_THWC.size(3);
  // One frame at a time is widened to fp32; the frames' statistics are put together in fp64.
  std::vector<at::Tensor> means, variances;
  for (const at::Tensor& x_HWC : x_THWC.unbind(0)) {
    const auto [variance_G, mean_G] = at::var_mean(x_HWC.to(at::kFloat).view({-1, groups_, width / groups_}),
                                                   at::IntArrayRef({0, 2}), /*correction=*/0);
    means.push_back(mean_G);
    variances.push_back(variance_G);
  }
  const at::Tensor mean_TG = at::stack(means).to(at::kDouble), mean_G = mean_TG.mean(0);
  const at::Tensor variance_G = at::stack(variances).to(at::kDouble).mean(0) + (mean_TG - mean_G).square().mean(0);
  const auto of_channels = [&](const at::Tensor& value_G) {
    return value_G.to(at::kFloat).repeat_interleave(width / groups_);
  };
  const at::Tensor scale_C = weight_C_ * of_channels((variance_G + kEps).rsqrt());
  return {scale_C, bias_C_ - of_channels(mean_G) * scale_C};
}

FrameSource GroupNorm::activated(const at::Tensor& x_THWC) const {
  return [x_THWC, affine = of(x_THWC)](int64_t first, const at::Tensor& out_THWC) {
    at::Tensor normed_THWC =
        at::addcmul(affine.shift_C, x_THWC.narrow(0, first, out_THWC.size(0)).to(at::kFloat), affine.scale_C);
    out_THWC.copy_(at::silu_(normed_THWC));
  };
}

HunyuanVaeResBlock::HunyuanVaeResBlock(const TensorSource& source, const std::string& name, int64_t in, int64_t out,
                                       int64_t groups)
    : norm1_(source, name + ".norm1", in, groups),
      norm2_(source, name + ".norm2", out, groups),
      conv1_(source, name + ".conv1.conv", in, out),
      conv2_(source, name + ".conv2.conv", out, out) {
  if (in != out) shortcut_ = pointwise(source, name + ".conv_shortcut.conv", in, out);
}

at::Tensor HunyuanVaeResBlock::operator()(const at::Tensor& x_THWC) const {
  at::Tensor h_THWC = conv1_(size_of(x_THWC), norm1_.activated(x_THWC));
  h_THWC = conv2_(size_of(h_THWC), norm2_.activated(h_THWC));
  return h_THWC.add_(shortcut_ ? linear(x_THWC, *shortcut_) : x_THWC);
}

HunyuanVaeMiddle::HunyuanVaeMiddle(const TensorSource& source, const std::string& name, int64_t width, int64_t groups)
    : before_(source, name + ".resnets.0", width, width, groups),
      after_(source, name + ".resnets.1", width, width, groups),
      norm_(source, name + ".attentions.0.group_norm", width, groups),
      to_q_(map(source, name + ".attentions.0.to_q", width)),
      to_k_(map(source, name + ".attentions.0.to_k", width)),
      to_v_(map(source, name + ".attentions.0.to_v", width)),
      to_out_(map(source, name + ".attentions.0.to_out.0", width)) {}

at::Tensor HunyuanVaeMiddle::operator()(const at::Tensor& x_THWC) const {
  const at::Tensor h_THWC = before_(x_THWC);
  const GroupNorm::Affine affine = norm_.of(h_THWC);
  const at::Tensor normed_THWC =
      at::addcmul(affine.shift_C, h_THWC.to(at::kFloat), affine.scale_C).to(h_THWC.scalar_type());
  const int64_t frames = h_THWC.size(0), positions = h_THWC.size(1) * h_THWC.size(2);
  // [1 sample, 1 head, all positions, C]
  const auto flat = [&](const Linear& to) { return linear(normed_THWC, to).flatten(0, 2).unsqueeze(0).unsqueeze(0); };
  const at::Tensor q = flat(to_q_), k = flat(to_k_), v = flat(to_v_);
  const at::Tensor mixed = at::empty_like(q);
  for (int64_t t = 0; t < frames; ++t) {
    const int64_t seen = (t + 1) * positions;
    mixed.narrow(2, t * positions, positions)
        .copy_(at::scaled_dot_product_attention(q.narrow(2, t * positions, positions), k.narrow(2, 0, seen),
                                                v.narrow(2, 0, seen)));
  }
  return after_(linear(mixed.view(h_THWC.sizes()), to_out_).add_(h_THWC));
}

HunyuanVaeEncoder::HunyuanVaeEncoder(const HunyuanVaeConfig& config, const TensorSource& source)
    : conv_in_(source, "encoder.conv_in.conv", 3, config.block_out_channels.front()),
      middle_(source, "encoder.mid_block", config.block_out_channels.back(), config.norm_num_groups),
      norm_out_(source, "encoder.conv_norm_out", config.block_out_channels.back(), config.norm_num_groups),
      conv_out_(source, "encoder.conv_out.conv", config.block_out_channels.back(), 2 * config.latent_channels) {
  int64_t in = config.block_out_channels.front();
  for (size_t i = 0; i < config.block_out_channels.size(); ++i) {
    const std::string name = fmt::format("encoder.down_blocks.{}", i);
    const int64_t out = config.block_out_channels[i];
    HunyuanVaeStage stage = make_stage(config, source, name, in, out, config.layers_per_block, i);
    if (stage.time * stage.space > 1)
      stage.resample.emplace(source, name + ".downsamplers.0.conv.conv", out, out,
                             std::array{stage.time, stage.space, stage.space});
    stages_.push_back(std::move(stage));
    in = out;
  }
  // Means come before log-variances; only they are used.
  const Linear moments = pointwise(source, "quant_conv", 2 * config.latent_channels, 2 * config.latent_channels);
  to_mean_ = {moments.weight.slice(0, 0, config.latent_channels), moments.bias.slice(0, 0, config.latent_channels)};
}

at::Tensor HunyuanVaeEncoder::operator()(const at::Tensor& frames_THWC) const {
  at::Tensor x_THWC = conv_in_(frames_THWC);
  for (const HunyuanVaeStage& stage : stages_) {
    for (const HunyuanVaeResBlock& block : stage.blocks) x_THWC = block(x_THWC);
    if (stage.resample) x_THWC = (*stage.resample)(x_THWC);
  }
  x_THWC = middle_(x_THWC);
  return linear(conv_out_(size_of(x_THWC), norm_out_.activated(x_THWC)), to_mean_);
}

HunyuanVaeDecoder::HunyuanVaeDecoder(const HunyuanVaeConfig& config, const TensorSource& source)
    : from_latents_(pointwise(source, "post_quant_conv", config.latent_channels, config.latent_channels)),
      conv_in_(source, "decoder.conv_in.conv", config.latent_channels, config.block_out_channels.back()),
      middle_(source, "decoder.mid_block", config.block_out_channels.back(), config.norm_num_groups),
      norm_out_(source, "decoder.conv_norm_out", config.block_out_channels.front(), config.norm_num_groups),
      conv_out_(source, "decoder.conv_out.conv", config.block_out_channels.front(), 3) {
  int64_t in = config.block_out_channels.back();
  for (size_t i = 0; i < config.block_out_channels.size(); ++i) {
    const std::string name = fmt::format("decoder.up_blocks.{}", i);
    const int64_t out = config.block_out_channels[config.block_out_channels.size() - 1 - i];
    HunyuanVaeStage stage = make_stage(config, source, name, in, out, config.layers_per_block + 1, i);
    if (stage.time * stage.space > 1) stage.resample.emplace(source, name + ".upsamplers.0.conv.conv", out, out);
    stages_.push_back(std::move(stage));
    in = out;
  }
}

at::Tensor HunyuanVaeDecoder::operator()(const at::Tensor& latents_THWZ) const {
  at::Tensor x_THWC = middle_(conv_in_(linear(latents_THWZ, from_latents_)));
  for (const HunyuanVaeStage& stage : stages_) {
    for (const HunyuanVaeResBlock& block : stage.blocks) x_THWC = block(x_THWC);
    if (stage.resample) x_THWC = upsample(stage, x_THWC);
  }
  return conv_out_(size_of(x_THWC), norm_out_.activated(x_THWC));
}

std::vector<ParameterSpec> hunyuan_vae_specs(const HunyuanVaeConfig& config) {
  return specs_of<HunyuanVaeEncoder, HunyuanVaeDecoder>(config);
}

}  // namespace vmoba::model
