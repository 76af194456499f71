#include "model/codec/taehv.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "model/codec/codec_weights.h"
#include "model/codec/each_sample.h"
#include "model/codec/taehv_config.h"
#include "model/codec/taehv_network.h"
#include "model/common/dtype.h"

// Shape letters: C colours, F frames, T latent frames, H x W positions, Z latent channels, P values of a patch.
namespace vmoba::model {
namespace {

constexpr const char* kType = "taehv";
constexpr const char* kFirstFrameAlone = "first_frame_alone";  // metadata

class Taehv : public Codec {
 public:
  Taehv(const TaehvConfig& config, const TensorSource& source, at::ScalarType dtype, at::Device device)
      : config_(config),
        options_(at::TensorOptions().dtype(dtype).device(device)),
        encoder_(config, source),
        decoder_(config, source) {}

  CodecShape shape() const override { return config_.shape(); }
  at::Tensor encode(const at::Tensor& video_BCFHW) const override {
    return encode_each(video_BCFHW, shape(), kType, 1.0, [&](const at::Tensor& video) { return encode_one(video); });
  }
  at::Tensor decode(const at::Tensor& latents_BCTHW) const override {
    return decode_each(latents_BCTHW, shape(), kType, 1.0, options_.device(),
                       [&](const at::Tensor& latents) { return decode_one(latents); });
  }

 private:
  at::Tensor encode_one(const at::Tensor& video_CFHW) const;
  at::Tensor decode_one(const at::Tensor& latents_THWZ) const;

  TaehvConfig config_;
  at::TensorOptions options_;  // of activations
  TaehvEncoder encoder_;
  TaehvDecoder decoder_;
};

// One latent frame at a time -> [T, H, W, Z], fp32.
at::Tensor Taehv::encode_one(const at::Tensor& video_CFHW) const {
  const at::Tensor seen = at::tensor(config_.seen_frames(video_CFHW.size(1)), at::kLong).to(video_CFHW.device());
  FrameMemory memory;
  std::vector<at::Tensor> latents_1ZHW;
  for (const at::Tensor& frames : seen.split(shape().temporal_stride)) {
    const at::Tensor frames_FCHW = (video_CFHW.index_select(1, frames).transpose(0, 1).to(options_) + 1) / 2;
    latents_1ZHW.push_back(encoder_(at::pixel_unshuffle(frames_FCHW, config_.patch_size), 1, memory).to(at::kFloat));
  }
  return at::cat(latents_1ZHW).permute({0, 2, 3, 1});
}

// One latent frame at a time -> [F, H, W, 3], fp32.
at::Tensor Taehv::decode_one(const at::Tensor& latents_THWZ) const {
  FrameMemory memory;
  std::vector<at::Tensor> frames_FCHW;
  for (const at::Tensor& latent_1HWZ : latents_THWZ.split(1)) {
    const bool first = memory.first_chunk();
    const at::Tensor patches = decoder_(latent_1HWZ.permute({0, 3, 1, 2}).to(options_), 1, memory);
    const at::Tensor frames = at::pixel_shuffle(patches, config_.patch_size).to(at::kFloat) * 2 - 1;
    frames_FCHW.push_back(first ? last_frames(frames, 1) : frames);
  }
  return at::cat(frames_FCHW).permute({0, 2, 3, 1});
}

class TaehvFile {
 public:
  explicit TaehvFile(const CodecConfig& codec)
      : weights_(codec.weights,
                 {kType, "docs/pretrained.md says where to get it", [](const std::string& name) { return name; }}),
        config_(
            deduce_taehv_config([this](const std::string& name) { return weights_.shape(name); }, weights_.path())) {
    VMOBA_CHECK_INPUT(codec.tile_size == 0,
                      "codec.tile_size: expected 0 for codec.type taehv, whose memory is small, found {}",
                      codec.tile_size);
    const auto stated = weights_.metadata().find(kFirstFrameAlone);
    if (stated != weights_.metadata().end()) {
      VMOBA_CHECK_INPUT(stated->second == "true" || stated->second == "false",
                        "expected true or false as {} in the metadata of '{}' (codec.weights), found {}",
                        kFirstFrameAlone, weights_.path(), stated->second);
      config_.first_frame_alone = stated->second == "true";
    }
    weights_.check(taehv_specs(config_), "a TAEHV autoencoder");
  }
  const TaehvConfig& config() const { return config_; }
  TensorSource load(at::ScalarType dtype, at::Device device) const { return weights_.load(dtype, device); }

 private:
  CodecWeights weights_;
  TaehvConfig config_;
};

}  // namespace

CodecShape taehv_shape(const CodecConfig& config) {
  return TaehvFile(config).config().shape();
}

std::unique_ptr<Codec> make_taehv(const CodecConfig& config, at::Device device) {
  const TaehvFile file(config);
  const at::ScalarType dtype = scalar_type(config.compute_dtype);
  return std::make_unique<Taehv>(file.config(), file.load(dtype, device), dtype, device);
}

}  // namespace vmoba::model
