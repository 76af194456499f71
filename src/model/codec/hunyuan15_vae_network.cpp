#include "model/codec/hunyuan15_vae_network.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/check.h"

namespace vmoba::model {
namespace {

constexpr int64_t kPastFrames = 2;
constexpr size_t kStages = 5;      // four changes of size between them: 16x in space
constexpr size_t kTimeStages = 2;  // of these: 4x in time, at the small sizes
constexpr int64_t kMostChannels = 1 << 14;

at::Tensor gamma(const TensorSource& source, const std::string& name, int64_t width) {
  return source(name + ".gamma", {width, 1, 1, 1}).view({width});
}

Linear pointwise(const TensorSource& source, const std::string& name, int64_t width) {
  return {source(name + ".weight", {width, width, 1, 1, 1}).view({width, width}), source(name + ".bias", {width})};
}

// [T, H, W, C] -> [T/time, H/2, W/2, (time, 2, 2, C)].
at::Tensor pack(const at::Tensor& x_THWC, int64_t time) {
  const int64_t frames = x_THWC.size(0) / time, height = x_THWC.size(1) / 2, width = x_THWC.size(2) / 2;
  return x_THWC.reshape({frames, time, height, 2, width, 2, x_THWC.size(3)})
      .permute({0, 2, 4, 1, 3, 5, 6})
      .reshape({frames, height, width, -1});
}

// The inverse.
at::Tensor unpack(const at::Tensor& x_THWC, int64_t time) {
  const int64_t frames = x_THWC.size(0), height = x_THWC.size(1), width = x_THWC.size(2);
  return x_THWC.reshape({frames, height, width, time, 2, 2, -1})
      .permute({0, 3, 1, 4, 2, 5, 6})
      .reshape({frames * time, height * 2, width * 2, -1});
}

// Means of neighbouring channels.
at::Tensor group_mean(const at::Tensor& x_THWC, int64_t channels) {
  return x_THWC.unflatten(3, {channels, -1}).mean(-1);
}

at::Tensor repeat_channels(const at::Tensor& x_THWC, int64_t times) {
  return x_THWC.repeat_interleave(times, 3);
}

// Behind "encoder." or "decoder."; "" where there is nothing to translate.
std::string side_part(const std::string& part, bool encoder) {
  const auto with = [&](const std::string& stored, const std::string& ours) {
    return part.starts_with(stored) ? ours + part.substr(stored.size()) : std::string();
  };
  for (const auto& [stored, ours] : {std::pair{"mid.block_1.", "mid_block.resnets.0."},
                                     {"mid.block_2.", "mid_block.resnets.1."},
                                     {"mid.attn_1.norm.", "mid_block.attentions.0.norm."},
                                     {"mid.attn_1.proj_out.", "mid_block.attentions.0.proj_out."},
                                     {"mid.attn_1.q.", "mid_block.attentions.0.to_q."},
                                     {"mid.attn_1.k.", "mid_block.attentions.0.to_k."},
                                     {"mid.attn_1.v.", "mid_block.attentions.0.to_v."}})
    if (const std::string renamed = with(stored, ours); !renamed.empty()) return renamed;
  const std::string stored = encoder ? "down." : "up.";
  const size_t dot = part.find('.', stored.size());
  if (!part.starts_with(stored) || dot == std::string::npos) return "";
  const std::string stage = (encoder ? "down_blocks." : "up_blocks.") + part.substr(stored.size(), dot - stored.size());
  const std::string rest = part.substr(dot + 1), sample = encoder ? "downsample." : "upsample.", block = "block.";
  if (rest.starts_with(sample))
    return fmt::format("{}.{}.0.{}", stage, encoder ? "downsamplers" : "upsamplers", rest.substr(sample.size()));
  return rest.starts_with(block) ? fmt::format("{}.resnets.{}", stage, rest.substr(block.size())) : "";
}

}  // namespace

void Hunyuan15VaeConfig::validate(const std::string& origin) const {
  VMOBA_CHECK_INPUT(block_out_channels.size() == kStages && layers_per_block >= 1 && layers_per_block <= 64 &&
                        latent_channels >= 1 && latent_channels <= kMostChannels && scaling_factor > 0,
                    "'{}': expected block_out_channels of {} stages, layers_per_block of 1 to 64, latent_channels of 1 "
                    "to {} and scaling_factor above 0, found {}, {}, {} and {}",
                    origin, kStages, kMostChannels, block_out_channels.size(), layers_per_block, latent_channels,
                    scaling_factor);
  for (size_t i = 0; i < kStages; ++i) {
    const int64_t width = block_out_channels[i];
    const int64_t next = block_out_channels[std::min(i + 1, kStages - 1)];
    // Channels are packed and unpacked in groups of 4 or 8, and repeated whole.
    const bool sound = width >= 8 && width <= kMostChannels && next >= 8 && next <= kMostChannels;
    VMOBA_CHECK_INPUT(sound && width % 8 == 0 && 8 * width % next == 0 && 8 * next % width == 0,
                      "'{}': expected block_out_channels of 8 to {} in multiples of 8 that differ by factors of 2, "
                      "found {} and {}",
                      origin, kMostChannels, width, next);
  }
  VMOBA_CHECK_INPUT(block_out_channels.back() % (2 * latent_channels) == 0,
                    "'{}': expected the last of block_out_channels to be a multiple of twice latent_channels ({}), "
                    "found {}",
                    origin, latent_channels, block_out_channels.back());
}

StreamedConv::StreamedConv(const TensorSource& source, const std::string& name, int64_t in, int64_t out)
    : conv_(source, name, in, out) {}

at::Tensor StreamedConv::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  at::Tensor& past = memory.next();
  const at::Tensor before = past.defined() ? past : x_THWC.slice(0, 0, 1).expand({kPastFrames, -1, -1, -1});
  const at::Tensor joined = repeat_border(kPastFrames + x_THWC.size(0), x_THWC.size(1), x_THWC.size(2), x_THWC.size(3),
                                          x_THWC.options(), [&](const at::Tensor& inside_THWC) {
                                            inside_THWC.slice(0, 0, kPastFrames).copy_(before);
                                            inside_THWC.slice(0, kPastFrames).copy_(x_THWC);
                                            past = last_frames(inside_THWC, kPastFrames);
                                          });
  return conv_.padded(joined);
}

at::Tensor StreamedConv::after_norm(const at::Tensor& x_THWC, const at::Tensor& gamma_C, FrameMemory& memory) const {
  at::Tensor normed_THWC = rms_norm_channels(x_THWC, gamma_C);
  return (*this)(at::silu_(normed_THWC), memory);
}

Hunyuan15VaeResBlock::Hunyuan15VaeResBlock(const TensorSource& source, const std::string& name, int64_t width)
    : gamma1_C_(gamma(source, name + ".norm1", width)),
      gamma2_C_(gamma(source, name + ".norm2", width)),
      conv1_(source, name + ".conv1.conv", width, width),
      conv2_(source, name + ".conv2.conv", width, width) {}

at::Tensor Hunyuan15VaeResBlock::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  const at::Tensor h_THWC = conv1_.after_norm(x_THWC, gamma1_C_, memory);
  return conv2_.after_norm(h_THWC, gamma2_C_, memory).add_(x_THWC);
}

Hunyuan15VaeMiddle::Hunyuan15VaeMiddle(const TensorSource& source, const std::string& name, int64_t width)
    : before_(source, name + ".resnets.0", width),
      after_(source, name + ".resnets.1", width),
      gamma_C_(gamma(source, name + ".attentions.0.norm", width)),
      to_q_(pointwise(source, name + ".attentions.0.to_q", width)),
      to_k_(pointwise(source, name + ".attentions.0.to_k", width)),
      to_v_(pointwise(source, name + ".attentions.0.to_v", width)),
      to_out_(pointwise(source, name + ".attentions.0.proj_out", width)) {}

at::Tensor Hunyuan15VaeMiddle::attention(const at::Tensor& x_THWC, FrameMemory& memory) const {
  const at::Tensor normed_THWC = rms_norm_channels(x_THWC, gamma_C_);
  // [1 sample, 1 head, positions of all frames, C]
  const auto flat = [&](const Linear& map) { return linear(normed_THWC, map).flatten(0, 2).unsqueeze(0).unsqueeze(0); };
  const at::Tensor q = flat(to_q_), now = at::cat({flat(to_k_), flat(to_v_)}, 3);
  at::Tensor& memorised = memory.next();
  memorised = memorised.defined() ? at::cat({memorised, now}, 2) : now;
  const at::Tensor k = memorised.slice(3, 0, x_THWC.size(3)), v = memorised.slice(3, x_THWC.size(3));
  const int64_t positions = x_THWC.size(1) * x_THWC.size(2), past = k.size(2) - q.size(2);
  const at::Tensor mixed = at::empty_like(q);
  for (int64_t first = 0; first < q.size(2); first += positions) {
    const int64_t seen = past + first + positions;
    mixed.narrow(2, first, positions)
        .copy_(at::scaled_dot_product_attention(q.narrow(2, first, positions), k.narrow(2, 0, seen),
                                                v.narrow(2, 0, seen)));
  }
  return linear(mixed.view(x_THWC.sizes()), to_out_).add_(x_THWC);
}

at::Tensor Hunyuan15VaeMiddle::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  return after_(attention(before_(x_THWC, memory), memory), memory);
}

Hunyuan15VaeDownsample::Hunyuan15VaeDownsample(const TensorSource& source, const std::string& name, int64_t in,
                                               int64_t out, bool temporal)
    : conv_(source, name + ".conv.conv", in, out / (temporal ? 8 : 4)), out_(out), temporal_(temporal) {}

at::Tensor Hunyuan15VaeDownsample::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  const bool alone = temporal_ && memory.first_chunk();
  const int64_t time = temporal_ && !alone ? 2 : 1;
  at::Tensor h_THWC = pack(conv_(x_THWC, memory), time);
  if (alone) h_THWC = at::cat({h_THWC, h_THWC}, 3);
  return h_THWC.add_(group_mean(pack(x_THWC, time), out_));
}

Hunyuan15VaeUpsample::Hunyuan15VaeUpsample(const TensorSource& source, const std::string& name, int64_t in, int64_t out,
                                           bool temporal)
    : conv_(source, name + ".conv.conv", in, out * (temporal ? 8 : 4)), out_(out), temporal_(temporal) {}

at::Tensor Hunyuan15VaeUpsample::operator()(const at::Tensor& x_THWC, FrameMemory& memory) const {
  const int64_t in = x_THWC.size(3);
  const at::Tensor h_THWC = conv_(x_THWC, memory);
  if (!temporal_) return unpack(h_THWC, 1).add_(unpack(repeat_channels(x_THWC, 4 * out_ / in), 1));
  if (memory.first_chunk())
    return unpack(h_THWC, 1).slice(3, 0, out_) + repeat_channels(unpack(x_THWC, 1), 4 * out_ / in);
  return unpack(h_THWC, 2).add_(repeat_channels(unpack(x_THWC, 2), 8 * out_ / in));
}

Hunyuan15VaeEncoder::Hunyuan15VaeEncoder(const Hunyuan15VaeConfig& config, const TensorSource& source)
    : conv_in_(source, "encoder.conv_in.conv", 3, config.block_out_channels.front()),
      middle_(source, "encoder.mid_block", config.block_out_channels.back()),
      gamma_out_C_(gamma(source, "encoder.norm_out", config.block_out_channels.back())),
      conv_out_(source, "encoder.conv_out.conv", config.block_out_channels.back(), 2 * config.latent_channels),
      latent_channels_(config.latent_channels) {
  const std::vector<int64_t>& widths = config.block_out_channels;
  for (size_t i = 0; i < widths.size(); ++i) {
    const std::string name = fmt::format("encoder.down_blocks.{}", i);
    Stage stage;
    for (int64_t block = 0; block < config.layers_per_block; ++block)
      stage.blocks.emplace_back(source, fmt::format("{}.resnets.{}", name, block), widths[i]);
    if (i + 1 < widths.size())
      stage.down.emplace(source, name + ".downsamplers.0", widths[i], widths[i + 1], i + 1 + kTimeStages >= kStages);
    stages_.push_back(std::move(stage));
  }
}

at::Tensor Hunyuan15VaeEncoder::operator()(const at::Tensor& frames_THWC, FrameMemory& memory) const {
  at::Tensor x_THWC = conv_in_(frames_THWC, memory);
  for (const Stage& stage : stages_) {
    for (const Hunyuan15VaeResBlock& block : stage.blocks) x_THWC = block(x_THWC, memory);
    if (stage.down) x_THWC = (*stage.down)(x_THWC, memory);
  }
  x_THWC = middle_(x_THWC, memory);
  const at::Tensor moments =
      conv_out_.after_norm(x_THWC, gamma_out_C_, memory).add_(group_mean(x_THWC, 2 * latent_channels_));
  memory.end_chunk();
  // Means come before log-variances; only they are used.
  return moments.slice(3, 0, latent_channels_);
}

Hunyuan15VaeDecoder::Hunyuan15VaeDecoder(const Hunyuan15VaeConfig& config, const TensorSource& source)
    : conv_in_(source, "decoder.conv_in.conv", config.latent_channels, config.block_out_channels.back()),
      middle_(source, "decoder.mid_block", config.block_out_channels.back()),
      gamma_out_C_(gamma(source, "decoder.norm_out", config.block_out_channels.front())),
      conv_out_(source, "decoder.conv_out.conv", config.block_out_channels.front(), 3),
      repeats_(config.block_out_channels.back() / config.latent_channels) {
  const std::vector<int64_t> widths(config.block_out_channels.rbegin(), config.block_out_channels.rend());
  for (size_t i = 0; i < widths.size(); ++i) {
    const std::string name = fmt::format("decoder.up_blocks.{}", i);
    Stage stage;
    for (int64_t block = 0; block <= config.layers_per_block; ++block)
      stage.blocks.emplace_back(source, fmt::format("{}.resnets.{}", name, block), widths[i]);
    if (i + 1 < widths.size())
      stage.up.emplace(source, name + ".upsamplers.0", widths[i], widths[i + 1], i < kTimeStages);
    stages_.push_back(std::move(stage));
  }
}

at::Tensor Hunyuan15VaeDecoder::operator()(const at::Tensor& latents_THWZ, FrameMemory& memory) const {
  at::Tensor x_THWC = conv_in_(latents_THWZ, memory).add_(repeat_channels(latents_THWZ, repeats_));
  x_THWC = middle_(x_THWC, memory);
  for (const Stage& stage : stages_) {
    for (const Hunyuan15VaeResBlock& block : stage.blocks) x_THWC = block(x_THWC, memory);
    if (stage.up) x_THWC = (*stage.up)(x_THWC, memory);
  }
  const at::Tensor frames_THWC = conv_out_.after_norm(x_THWC, gamma_out_C_, memory);
  memory.end_chunk();
  return frames_THWC;
}

std::vector<ParameterSpec> hunyuan15_vae_specs(const Hunyuan15VaeConfig& config) {
  return specs_of<Hunyuan15VaeEncoder, Hunyuan15VaeDecoder>(config);
}

std::string hunyuan15_vae_name(const std::string& name) {
  std::string bare = name;
  for (const std::string prefix : {"first_stage_model.", "vae."})
    if (bare.starts_with(prefix)) bare = bare.substr(prefix.size());
  for (const std::string side : {"encoder.", "decoder."}) {
    if (!bare.starts_with(side)) continue;
    const std::string part = side_part(bare.substr(side.size()), side == "encoder.");
    if (!part.empty()) return side + part;
  }
  return bare;
}

}  // namespace vmoba::model
