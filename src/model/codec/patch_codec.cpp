#include "model/codec/patch_codec.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/check.h"
#include "model/codec/codec_weights.h"
#include "model/codec/each_sample.h"
#include "model/codec/patch_codec_network.h"
#include "model/common/dtype.h"

// Shape letters: C colours, F frames, T latent frames, H x W positions, Z latent channels.
namespace vmoba::model {
namespace {

constexpr const char* kType = "patch_codec";

class PatchCodec : public Codec {
 public:
  PatchCodec(const PatchCodecConfig& config, const TensorSource& source, at::Device device)
      : shape_(config.shape()), device_(device), encoder_(config, source), decoder_(config, source) {}

  CodecShape shape() const override { return shape_; }
  at::Tensor encode(const at::Tensor& video_BCFHW) const override {
    return encode_each(video_BCFHW, shape_, kType, 1.0, [&](const at::Tensor& video) { return encode_one(video); });
  }
  at::Tensor decode(const at::Tensor& latents_BCTHW) const override {
    return decode_each(latents_BCTHW, shape_, kType, 1.0, device_,
                       [&](const at::Tensor& latents) { return decode_one(latents); });
  }

 private:
  at::Tensor encode_one(const at::Tensor& video_CFHW) const;
  at::Tensor decode_one(const at::Tensor& latents_THWZ) const;

  CodecShape shape_;
  at::Device device_;
  PatchEncoder encoder_;
  PatchDecoder decoder_;
};

// One latent frame at a time -> [T, H, W, Z], fp32.
at::Tensor PatchCodec::encode_one(const at::Tensor& video_CFHW) const {
  const at::Tensor seen = at::tensor(patch_codec_seen_frames(video_CFHW.size(1)), at::kLong).to(video_CFHW.device());
  FrameMemory memory;
  std::vector<at::Tensor> latents_1ZHW;
  for (const at::Tensor& frames : seen.split(kPatchFrames)) {
    const at::Tensor frames_FCHW = (video_CFHW.index_select(1, frames).transpose(0, 1).to(device_) + 1) / 2;
    latents_1ZHW.push_back(encoder_(frames_FCHW, 1, memory));
  }
  return at::cat(latents_1ZHW).permute({0, 2, 3, 1});
}

// One latent frame at a time -> [F, H, W, 3], fp32.
at::Tensor PatchCodec::decode_one(const at::Tensor& latents_THWZ) const {
  FrameMemory memory;
  std::vector<at::Tensor> frames_FCHW;
  for (const at::Tensor& latent_1HWZ : latents_THWZ.split(1)) {
    const bool first = memory.first_chunk();
    const at::Tensor frames = decoder_(latent_1HWZ.permute({0, 3, 1, 2}), 1, memory) * 2 - 1;
    frames_FCHW.push_back(first ? last_frames(frames, 1) : frames);
  }
  return at::cat(frames_FCHW).permute({0, 2, 3, 1});
}

class PatchCodecFile {
 public:
  explicit PatchCodecFile(const CodecConfig& codec)
      : weights_(codec.weights,
                 {kType, "vmoba-train-codec makes one (docs/codec.md)", [](const std::string& name) { return name; }}) {
    VMOBA_CHECK_INPUT(codec.tile_size == 0,
                      "codec.tile_size: expected 0 for codec.type {}, whose memory is small, found {}", kType,
                      codec.tile_size);
    config_.latent_channels = size_of("encoder.linear.weight", 0);
    config_.encoder_width = size_of("encoder.conv_in.weight", 0);
    config_.encoder_blocks = blocks_of("encoder.blocks");
    config_.decoder_width = size_of("decoder.conv_in.weight", 0);
    config_.decoder_blocks = blocks_of("decoder.blocks");
    config_.fine_width = size_of("decoder.conv_out.weight", 1);
    config_.fine_blocks = blocks_of("decoder.fine_blocks");
    config_.validate(weights_.path());
    weights_.check(patch_codec_specs(config_), "a patch codec");
  }
  const PatchCodecConfig& config() const { return config_; }
  TensorSource load(at::ScalarType dtype, at::Device device) const { return weights_.load(dtype, device); }

 private:
  int64_t size_of(const std::string& name, size_t dimension) const {
    const std::vector<int64_t> shape = weights_.shape(name);
    VMOBA_CHECK_INPUT(
        shape.size() == 4,
        "expected a patch codec with a 4-dimensional '{}' at '{}' (codec.weights), found {}; use a file of "
        "vmoba-train-codec",
        name, weights_.path(), shape.empty() ? "none" : fmt::format("{}", fmt::join(shape, "x")));
    return shape[dimension];
  }
  int64_t blocks_of(const std::string& name) const {
    int64_t count = 0;
    while (!weights_.shape(fmt::format("{}.{}.conv.0.weight", name, count)).empty()) ++count;
    return count;
  }

  CodecWeights weights_;
  PatchCodecConfig config_;
};

}  // namespace

std::vector<int64_t> patch_codec_seen_frames(int64_t frames) {
  std::vector<int64_t> out;
  for (int64_t place = 1 - kPatchFrames; place < frames; ++place) out.push_back(std::max<int64_t>(place, 0));
  return out;
}

CodecShape patch_codec_shape(const CodecConfig& config) {
  return PatchCodecFile(config).config().shape();
}

std::unique_ptr<Codec> make_patch_codec(const CodecConfig& config, at::Device device) {
  const PatchCodecFile file(config);
  const at::ScalarType dtype = scalar_type(config.compute_dtype);
  return std::make_unique<PatchCodec>(file.config(), file.load(dtype, device), device);
}

}  // namespace vmoba::model
