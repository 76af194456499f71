#include "model/codec/hunyuan15_vae.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/json.h"
#include "model/codec/codec_checks.h"
#include "model/codec/each_sample.h"
#include "model/codec/hunyuan15_vae_network.h"
#include "model/codec/tiling.h"
#include "model/common/dtype.h"

// Shape letters: B samples, C colours or latent channels, F frames, T latent frames, H x W positions, Z latent
// channels.
namespace vmoba::model {
namespace {

using nlohmann::json;

constexpr const char* kType = "hunyuan_15_vae";
constexpr int64_t kMaxConfigBytes = 1 << 20;

const CodecFileKind& hunyuan15_vae_files() {
  static const CodecFileKind kind = {
      kType,
      "get the folder vae/ of hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v or of "
      "tencent/HunyuanVideo-1.5 "
      "on Hugging Face, or hunyuanvideo15_vae_fp16.safetensors from Comfy-Org, and set codec.weights",
      hunyuan15_vae_name};
  return kind;
}

// config.json of diffusers or of the original repository beside the weights, else widths from the shapes.
Hunyuan15VaeConfig read_config(const CodecWeights& weights) {
  Hunyuan15VaeConfig out;
  const std::string file = weights.config_file();
  if (file.empty()) {
    const std::vector<int64_t> latents = weights.shape("decoder.conv_in.conv.weight");
    VMOBA_CHECK_INPUT(latents.size() == 5 && !weights.shape("encoder.norm_out.gamma").empty(),
                      "expected a HunyuanVideo 1.5 VAE with a 5-dimensional 'decoder.conv_in.conv.weight' and "
                      "'encoder.norm_out.gamma' at '{}' (codec.weights), found none",
                      weights.path());
    out.latent_channels = latents[1];
    for (size_t i = 0; i < out.block_out_channels.size(); ++i) {
      const auto norm = weights.shape(fmt::format("encoder.down_blocks.{}.resnets.0.norm1.gamma", i));
      out.block_out_channels[i] = norm.empty() ? 0 : norm[0];
    }
  } else {
    const json config = read_json(file, kMaxConfigBytes, "a VAE's configuration");
    use_json(file, [&] {
      const json fixed = {{"spatial_compression_ratio", 16},
                          {"temporal_compression_ratio", 4},
                          {"downsample_match_channel", true},
                          {"upsample_match_channel", true}};
      for (const auto& [key, value] : fixed.items())
        VMOBA_CHECK_INPUT(config.value(key, value) == value, "'{}': expected {} {} of a HunyuanVideo 1.5 VAE, found {}",
                          file, key, json_text(value), json_text(config[key]));
      const std::string kind = config.value("_class_name", "AutoencoderKLHunyuanVideo15");
      VMOBA_CHECK_INPUT(kind == "AutoencoderKLHunyuanVideo15" || kind == "AutoencoderKLConv3D",
                        "'{}': expected the configuration of a HunyuanVideo 1.5 VAE, found that of {}", file, kind);
      out.latent_channels = config.value("latent_channels", out.latent_channels);
      out.block_out_channels = config.value("block_out_channels", out.block_out_channels);
      out.layers_per_block = config.value("layers_per_block", out.layers_per_block);
      out.scaling_factor = config.value("scaling_factor", out.scaling_factor);
      return 0;
    });
  }
  out.validate(file.empty() ? weights.path() : file);
  weights.check(hunyuan15_vae_specs(out), fmt::format("a HunyuanVideo 1.5 VAE of {} latent channels and {} channels "
                                                      "in its first stage",
                                                      out.latent_channels, out.block_out_channels.front()));
  return out;
}

class Hunyuan15Vae : public Codec {
 public:
  Hunyuan15Vae(const CodecConfig& codec, const Hunyuan15VaeConfig& config, const TensorSource& weights,
               at::ScalarType dtype, at::Device device)
      : tile_(codec.tile_size),
        overlap_(codec.tile_overlap),
        shape_(config.shape()),
        scale_(config.scaling_factor),
        options_(at::TensorOptions().dtype(dtype).device(device)),
        encoder_(config, weights),
        decoder_(config, weights) {}

  CodecShape shape() const override { return shape_; }
  at::Tensor encode(const at::Tensor& video_BCFHW) const override;
  at::Tensor decode(const at::Tensor& latents_BCTHW) const override;

 private:
  bool tiled(int64_t height, int64_t width) const { return tile_ > 0 && (height > tile_ || width > tile_); }
  at::Tensor encode_region(const at::Tensor& video_CFHW) const;
  at::Tensor decode_region(const at::Tensor& latents_THWZ) const;

  int64_t tile_, overlap_;  // pixels
  CodecShape shape_;
  double scale_;
  at::TensorOptions options_;  // of activations
  Hunyuan15VaeEncoder encoder_;
  Hunyuan15VaeDecoder decoder_;
};

// -> means [T, H, W, Z], fp32, not scaled.
at::Tensor Hunyuan15Vae::encode_region(const at::Tensor& video_CFHW) const {
  const int64_t stride = shape_.spatial_stride;
  const at::Tensor mean_THWZ = at::empty({shape_.latent_frames(video_CFHW.size(1)), video_CFHW.size(2) / stride,
                                          video_CFHW.size(3) / stride, shape_.channels},
                                         options_.dtype(at::kFloat));
  FrameMemory memory;
  for (int64_t t = 0; t < mean_THWZ.size(0); ++t) {
    const int64_t end = shape_.frames(t + 1), begin = t == 0 ? 0 : end - shape_.temporal_stride;
    const at::Tensor chunk_THWC = video_CFHW.slice(1, begin, end).permute({1, 2, 3, 0}).to(options_).contiguous();
    mean_THWZ.narrow(0, t, 1).copy_(encoder_(chunk_THWC, memory));
  }
  return mean_THWZ;
}

// Latents, not scaled -> frames [F, H, W, 3], fp32, not clamped.
at::Tensor Hunyuan15Vae::decode_region(const at::Tensor& latents_THWZ) const {
  const int64_t stride = shape_.spatial_stride;
  const at::Tensor frames_FHWC =
      at::empty({shape_.frames(latents_THWZ.size(0)), latents_THWZ.size(1) * stride, latents_THWZ.size(2) * stride, 3},
                options_.dtype(at::kFloat));
  FrameMemory memory;
  for (int64_t t = 0; t < latents_THWZ.size(0); ++t) {
    const at::Tensor chunk_FHWC = decoder_(latents_THWZ.narrow(0, t, 1).to(options_).contiguous(), memory);
    frames_FHWC.narrow(0, t == 0 ? 0 : shape_.frames(t), chunk_FHWC.size(0)).copy_(chunk_FHWC);
  }
  return frames_FHWC;
}

at::Tensor Hunyuan15Vae::encode(const at::Tensor& video_BCFHW) const {
  const Tiling tiling = {tile_, tile_ - overlap_, 1, shape_.spatial_stride};
  return encode_each(video_BCFHW, shape_, kType, scale_, [&](const at::Tensor& video_CFHW) {
    const int64_t height = video_CFHW.size(2), width = video_CFHW.size(3);
    const auto region = [&](int64_t y, int64_t x, int64_t rows, int64_t columns) {
      return encode_region(video_CFHW.narrow(2, y, rows).narrow(3, x, columns));
    };
    return tiled(height, width) ? run_tiled(height, width, tiling, region) : region(0, 0, height, width);
  });
}

at::Tensor Hunyuan15Vae::decode(const at::Tensor& latents_BCTHW) const {
  const int64_t stride = shape_.spatial_stride;
  const Tiling tiling = {tile_ / stride, (tile_ - overlap_) / stride, stride, 1};
  return decode_each(latents_BCTHW, shape_, kType, scale_, options_.device(), [&](const at::Tensor& latents_THWZ) {
    const int64_t height = latents_THWZ.size(1), width = latents_THWZ.size(2);
    const auto region = [&](int64_t y, int64_t x, int64_t rows, int64_t columns) {
      return decode_region(latents_THWZ.narrow(1, y, rows).narrow(2, x, columns));
    };
    return tiled(height * stride, width * stride) ? run_tiled(height, width, tiling, region)
                                                  : region(0, 0, height, width);
  });
}

}  // namespace

CodecShape hunyuan15_vae_shape(const CodecConfig& config) {
  const CodecShape shape = read_config(CodecWeights(config.weights, hunyuan15_vae_files())).shape();
  check_space_tiles(config, shape);
  return shape;
}

std::unique_ptr<Codec> make_hunyuan15_vae(const CodecConfig& config, at::Device device) {
  const CodecWeights weights(config.weights, hunyuan15_vae_files());
  const Hunyuan15VaeConfig vae = read_config(weights);
  check_space_tiles(config, vae.shape());
  const at::ScalarType dtype = scalar_type(config.compute_dtype);
  return std::make_unique<Hunyuan15Vae>(config, vae, weights.load(dtype, device), dtype, device);
}

}  // namespace vmoba::model
