#include "model/codec/patch_codec_network.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/check.h"

namespace vmoba::model {
namespace {

constexpr int64_t kFine = 2;  // positions a side that a latent position becomes
constexpr int64_t kMaxWidth = 4096;
constexpr double kGrey = 0.5;

std::vector<MemoryBlock> make_blocks(const TensorSource& source, const std::string& name, int64_t count,
                                     int64_t width) {
  std::vector<MemoryBlock> out;
  for (int64_t i = 0; i < count; ++i) out.emplace_back(source, fmt::format("{}.{}", name, i), width);
  return out;
}

at::Tensor in_dtype_of(const FrameConv& layer, const at::Tensor& x) {
  return x.to(layer.weight.scalar_type());
}

}  // namespace

void PatchCodecConfig::validate(const std::string& origin) const {
  for (const int64_t width : {latent_channels, encoder_width, decoder_width, fine_width})
    VMOBA_CHECK_INPUT(width >= 1 && width <= kMaxWidth, "expected widths of 1 to {} in '{}' (codec.weights), found {}",
                      kMaxWidth, origin, width);
}

at::Tensor to_patches(const at::Tensor& frames_NCHW, int64_t batch) {
  return join_frames(at::pixel_unshuffle(frames_NCHW, kPatchSide), batch, kPatchFrames);
}

at::Tensor from_patches(const at::Tensor& patches_NPHW, int64_t batch) {
  return at::pixel_shuffle(part_frames(patches_NPHW, batch, kPatchFrames), kPatchSide);
}

PatchEncoder::PatchEncoder(const PatchCodecConfig& config, const TensorSource& source)
    : linear_(source, "encoder.linear", kPatchValues, config.latent_channels, 1, true),
      conv_in_(source, "encoder.conv_in", kPatchValues, config.encoder_width, 1, true),
      blocks_(make_blocks(source, "encoder.blocks", config.encoder_blocks, config.encoder_width)),
      conv_out_(source, "encoder.conv_out", config.encoder_width, config.latent_channels, 3, true) {}

at::Tensor PatchEncoder::operator()(const at::Tensor& frames_NCHW, int64_t batch, FrameMemory& memory) const {
  const at::Tensor patches = to_patches(frames_NCHW, batch) - kGrey;
  at::Tensor x = conv_in_(in_dtype_of(conv_in_, patches)).relu_();
  for (const MemoryBlock& block : blocks_) x = block(x, batch, memory);
  memory.end_chunk();
  return linear_(in_dtype_of(linear_, patches)).to(at::kFloat) + conv_out_(x).to(at::kFloat);
}

PatchDecoder::PatchDecoder(const PatchCodecConfig& config, const TensorSource& source)
    : linear_(source, "decoder.linear", config.latent_channels, kPatchValues, 1, true),
      conv_in_(source, "decoder.conv_in", config.latent_channels, config.decoder_width, 3, true),
      blocks_(make_blocks(source, "decoder.blocks", config.decoder_blocks, config.decoder_width)),
      enlarge_(source, "decoder.enlarge", config.decoder_width, kFine * kFine * config.fine_width, 1, true),
      fine_blocks_(make_blocks(source, "decoder.fine_blocks", config.fine_blocks, config.fine_width)),
      conv_out_(source, "decoder.conv_out", config.fine_width, kPatchValues / (kFine * kFine), 3, true) {}

at::Tensor PatchDecoder::operator()(const at::Tensor& latents_NZHW, int64_t batch, FrameMemory& memory) const {
  at::Tensor x = conv_in_(in_dtype_of(conv_in_, latents_NZHW)).relu_();
  for (const MemoryBlock& block : blocks_) x = block(x, batch, memory);
  x = at::pixel_shuffle(enlarge_(x), kFine).relu_();
  for (const MemoryBlock& block : fine_blocks_) x = block(x, batch, memory);
  memory.end_chunk();
  const at::Tensor correction = at::pixel_shuffle(part_frames(conv_out_(x), batch, kPatchFrames), kPatchSide / kFine);
  const at::Tensor linear = from_patches(linear_(in_dtype_of(linear_, latents_NZHW)), batch);
  return linear.to(at::kFloat) + correction.to(at::kFloat) + kGrey;
}

std::vector<ParameterSpec> patch_codec_specs(const PatchCodecConfig& config) {
  return specs_of<PatchEncoder, PatchDecoder>(config);
}

}  // namespace vmoba::model
