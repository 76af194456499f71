#include "model/codec/hunyuan_vae.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "model/codec/codec_checks.h"
#include "model/codec/each_sample.h"
#include "model/codec/hunyuan_vae_names.h"
#include "model/codec/hunyuan_vae_network.h"
#include "model/codec/tiling.h"
#include "model/common/dtype.h"

// Shape letters: B samples, C colours or latent channels, F frames, T latent frames, H x W positions, Z latent
// channels.
namespace vmoba::model {
namespace {

constexpr const char* kType = "hunyuan_vae";

const CodecFileKind& hunyuan_vae_files() {
  static const CodecFileKind kind = {kType,
                                     "get the folder vae/ of hunyuanvideo-community/HunyuanVideo on Hugging Face or "
                                     "hunyuan_video_vae_bf16.safetensors "
                                     "from Comfy-Org, and set codec.weights",
                                     hunyuan_vae_name};
  return kind;
}

class HunyuanVae : public Codec {
 public:
  HunyuanVae(const CodecConfig& codec, const HunyuanVaeConfig& config, const TensorSource& weights,
             at::ScalarType dtype, at::Device device)
      : codec_(codec),
        shape_(config.shape()),
        scale_(config.scaling_factor),
        options_(at::TensorOptions().dtype(dtype).device(device)),
        encoder_(config, weights),
        decoder_(config, weights) {}

  CodecShape shape() const override { return shape_; }
  at::Tensor encode(const at::Tensor& video_BCFHW) const override;
  at::Tensor decode(const at::Tensor& latents_BCTHW) const override;

 private:
  bool tiled_in_space(int64_t height, int64_t width) const {
    return codec_.tile_size > 0 && (height > codec_.tile_size || width > codec_.tile_size);
  }
  bool tiled_in_time(int64_t frames) const { return codec_.tile_frames > 0 && frames > codec_.tile_frames; }
  at::Tensor encode_frames(const at::Tensor& video_CFHW) const;
  at::Tensor decode_frames(const at::Tensor& latents_THWZ) const;

  CodecConfig codec_;
  CodecShape shape_;
  double scale_;
  at::TensorOptions options_;  // of activations
  HunyuanVaeEncoder encoder_;
  HunyuanVaeDecoder decoder_;
};

// Frames of one tile in time -> means [T, H, W, Z], fp32, not scaled.
at::Tensor HunyuanVae::encode_frames(const at::Tensor& video_CFHW) const {
  const auto encode_region = [&](int64_t y, int64_t x, int64_t rows, int64_t columns) {
    const at::Tensor region_CFHW = video_CFHW.narrow(2, y, rows).narrow(3, x, columns);
    return encoder_(region_CFHW.permute({1, 2, 3, 0}).to(options_).contiguous()).to(at::kFloat);
  };
  const int64_t height = video_CFHW.size(2), width = video_CFHW.size(3);
  if (!tiled_in_space(height, width)) return encode_region(0, 0, height, width);
  const int64_t stride = codec_.tile_size - codec_.tile_overlap;
  return run_tiled(height, width, {codec_.tile_size, stride, 1, shape_.spatial_stride}, encode_region);
}

// Latents of one tile in time, not scaled -> frames [F, H, W, 3], fp32.
at::Tensor HunyuanVae::decode_frames(const at::Tensor& latents_THWZ) const {
  const auto decode_region = [&](int64_t y, int64_t x, int64_t rows, int64_t columns) {
    const at::Tensor region_THWZ = latents_THWZ.narrow(1, y, rows).narrow(2, x, columns);
    return decoder_(region_THWZ.to(options_).contiguous()).to(at::kFloat);
  };
  const int64_t scale = shape_.spatial_stride, height = latents_THWZ.size(1), width = latents_THWZ.size(2);
  if (!tiled_in_space(height * scale, width * scale)) return decode_region(0, 0, height, width);
  const int64_t stride = (codec_.tile_size - codec_.tile_overlap) / scale;
  return run_tiled(height, width, {codec_.tile_size / scale, stride, scale, 1}, decode_region);
}

at::Tensor HunyuanVae::encode(const at::Tensor& video_BCFHW) const {
  const int64_t stride = codec_.tile_frames - codec_.tile_frames_overlap;
  return encode_each(video_BCFHW, shape_, kType, scale_, [&](const at::Tensor& video_CFHW) {
    const int64_t frames = video_CFHW.size(1);
    const auto encode_tile = [&](int64_t first, int64_t count) {
      return encode_frames(video_CFHW.narrow(1, first, count));
    };
    return tiled_in_time(frames)
               ? run_time_tiled(frames, {codec_.tile_frames, stride, 1, shape_.temporal_stride}, encode_tile)
               : encode_tile(0, frames);
  });
}

at::Tensor HunyuanVae::decode(const at::Tensor& latents_BCTHW) const {
  const int64_t scale = shape_.temporal_stride;
  const int64_t tile = codec_.tile_frames / scale, stride = tile - codec_.tile_frames_overlap / scale;
  return decode_each(latents_BCTHW, shape_, kType, scale_, options_.device(), [&](const at::Tensor& latents_THWZ) {
    const int64_t frames = latents_THWZ.size(0);
    const auto decode_tile = [&](int64_t first, int64_t count) {
      return decode_frames(latents_THWZ.narrow(0, first, count));
    };
    return tiled_in_time(shape_.frames(frames)) ? run_time_tiled(frames, {tile, stride, scale, 1}, decode_tile)
                                                : decode_tile(0, frames);
  });
}

void check_tiles(const CodecConfig& config, const CodecShape& shape) {
  check_space_tiles(config, shape);
  const int64_t stride = shape.temporal_stride, tile = config.tile_frames, overlap = config.tile_frames_overlap;
  VMOBA_CHECK_INPUT(tile == 0 || (tile % stride == 0 && overlap % stride == 0 && overlap < tile),
                    "codec.tile_frames and codec.tile_frames_overlap: expected multiples of {} (the VAE's temporal "
                    "stride), the overlap less than the tile, found {} and {}",
                    stride, tile, overlap);
}

// The file must hold exactly the tensors of its configuration.
HunyuanVaeConfig checked_config(const CodecWeights& weights) {
  HunyuanVaeConfig config = read_hunyuan_vae_config(weights);
  weights.check(hunyuan_vae_specs(config), fmt::format("a HunyuanVideo VAE of {} latent channels and {} channels in "
                                                       "its first stage",
                                                       config.latent_channels, config.block_out_channels.front()));
  return config;
}

}  // namespace

CodecShape hunyuan_vae_shape(const CodecConfig& config) {
  const CodecShape shape = checked_config(CodecWeights(config.weights, hunyuan_vae_files())).shape();
  check_tiles(config, shape);
  return shape;
}

std::unique_ptr<Codec> make_hunyuan_vae(const CodecConfig& config, at::Device device) {
  const CodecWeights weights(config.weights, hunyuan_vae_files());
  const HunyuanVaeConfig vae = checked_config(weights);
  check_tiles(config, vae.shape());
  const at::ScalarType dtype = scalar_type(config.compute_dtype);
  return std::make_unique<HunyuanVae>(config, vae, weights.load(dtype, device), dtype, device);
}

}  // namespace vmoba::model
