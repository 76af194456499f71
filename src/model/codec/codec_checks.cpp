#include "model/codec/codec_checks.h"

#include <algorithm>

#include "core/check.h"

namespace vmoba::model {

void check_codec_video(const at::Tensor& video, const CodecShape& shape, const char* type) {
  VMOBA_CHECK_INPUT(video.dim() == 5 && video.size(1) == 3 && video.size(2) > 0,
                    "codec {}: expected a video [B, 3, F, H, W], found {} dimensions", type, video.dim());
  const int64_t frames = video.size(2), height = video.size(3), width = video.size(4);
  const int64_t down = shape.frames(shape.latent_frames(frames));
  VMOBA_CHECK_INPUT(frames == down, "codec {}: expected 1 + {}n frames, found {}; use {} or {}", type,
                    shape.temporal_stride, frames, down, down + shape.temporal_stride);
  const int64_t stride = shape.spatial_stride;
  const auto near = [&](int64_t size) { return std::max(stride, (size + stride / 2) / stride * stride); };
  VMOBA_CHECK_INPUT(height > 0 && width > 0 && height % stride == 0 && width % stride == 0,
                    "codec {}: expected height and width to be multiples of {}, found {}x{}; use {}x{}", type, stride,
                    height, width, near(height), near(width));
}

void check_codec_latents(const at::Tensor& latents, const CodecShape& shape, const char* type) {
  VMOBA_CHECK_INPUT(latents.dim() == 5 && latents.size(1) == shape.channels && latents.numel() > 0,
                    "codec {}: expected latents [B, {}, T, H, W], found {} dimensions and {} channels", type,
                    shape.channels, latents.dim(), latents.dim() > 1 ? latents.size(1) : 0);
}

void check_space_tiles(const CodecConfig& config, const CodecShape& shape) {
  if (config.tile_size == 0) return;
  const int64_t stride = shape.spatial_stride;
  VMOBA_CHECK_INPUT(
      config.tile_size % stride == 0 && config.tile_overlap % stride == 0 && config.tile_overlap < config.tile_size,
      "codec.tile_size and codec.tile_overlap: expected multiples of {} (the VAE's spatial stride), the "
      "overlap less than the tile, found {} and {}",
      stride, config.tile_size, config.tile_overlap);
}

}  // namespace vmoba::model
