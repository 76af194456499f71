#include "model/codec/taehv_network.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

namespace vmoba::model {
namespace {

constexpr int64_t kBlocks = 3;      // of a stage
constexpr double kLatentLimit = 3;  // the decoder bends larger values towards this

std::vector<MemoryBlock> make_blocks(const TensorSource& source, const char* side, size_t first, int64_t width) {
  std::vector<MemoryBlock> out;
  for (size_t i = 0; i < kBlocks; ++i) out.emplace_back(source, fmt::format("{}.{}", side, first + i), width);
  return out;
}

at::Tensor twice_as_large(const at::Tensor& x_NCHW) {
  return at::upsample_nearest2d(x_NCHW, {2 * x_NCHW.size(2), 2 * x_NCHW.size(3)});
}

}  // namespace

TaehvEncoder::TaehvEncoder(const TaehvConfig& config, const TensorSource& source)
    : conv_in_(source, "encoder.0", config.patch_channels(), config.encoder_widths[0], 3, true),
      conv_out_(source, fmt::format("encoder.{}", 2 + 5 * kTaehvStages), config.encoder_widths[kTaehvStages],
                config.latent_channels, 3, true) {
  for (size_t i = 0; i < kTaehvStages; ++i) {
    const int64_t in = config.encoder_widths[i], width = config.encoder_widths[i + 1];
    const int64_t time = config.encoder_strides[i];
    const size_t first = 2 + 5 * i;
    stages_.push_back({time, FrameConv(source, fmt::format("encoder.{}.conv", first), in * time, in, 1, false),
                       FrameConv(source, fmt::format("encoder.{}", first + 1), in, width, 3, false, 2),
                       make_blocks(source, "encoder", first + 2, width)});
  }
}

at::Tensor TaehvEncoder::operator()(const at::Tensor& frames_NPHW, int64_t batch, FrameMemory& memory) const {
  at::Tensor x = conv_in_(frames_NPHW).relu_();
  for (const Stage& stage : stages_) {
    x = stage.down(stage.pool(join_frames(x, batch, stage.time)));
    for (const MemoryBlock& block : stage.blocks) x = block(x, batch, memory);
  }
  memory.end_chunk();
  return conv_out_(x);
}

TaehvDecoder::TaehvDecoder(const TaehvConfig& config, const TensorSource& source)
    : conv_in_(source, "decoder.1", config.latent_channels, config.decoder_widths[0], 3, true),
      conv_out_(source, fmt::format("decoder.{}", 4 + 6 * kTaehvStages), config.decoder_widths[kTaehvStages],
                config.patch_channels(), 3, true) {
  for (size_t i = 0; i < kTaehvStages; ++i) {
    const int64_t width = config.decoder_widths[i], time = config.decoder_strides[i];
    const size_t first = 3 + 6 * i;
    stages_.push_back(
        {time, make_blocks(source, "decoder", first, width),
         FrameConv(source, fmt::format("decoder.{}.conv", first + 4), width, width * time, 1, false),
         FrameConv(source, fmt::format("decoder.{}", first + 5), width, config.decoder_widths[i + 1], 3, false)});
  }
}

// The published order is to enlarge, then to make frames; single positions are the same in either order.
at::Tensor TaehvDecoder::operator()(const at::Tensor& latents_NZHW, int64_t batch, FrameMemory& memory) const {
  at::Tensor x = conv_in_(at::tanh(latents_NZHW / kLatentLimit) * kLatentLimit).relu_();
  for (const Stage& stage : stages_) {
    for (const MemoryBlock& block : stage.blocks) x = block(x, batch, memory);
    x = stage.narrow(twice_as_large(part_frames(stage.grow(x), batch, stage.time)));
  }
  memory.end_chunk();
  return conv_out_(x.relu_());
}

std::vector<ParameterSpec> taehv_specs(const TaehvConfig& config) {
  return specs_of<TaehvEncoder, TaehvDecoder>(config);
}

}  // namespace vmoba::model
