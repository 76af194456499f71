// Video <-> latents. Implementations: `dct` (training-free, codec/dct_codec.h) and, pretrained, `wan_vae`,
// `hunyuan_vae`, `hunyuan_15_vae` and `taehv` (headers of these names).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "core/config.h"

namespace vmoba::model {

// The `codec:` group.
struct CodecConfig {
  std::string type = "dct";
  std::string weights;                 // folder or file of a pretrained codec
  std::string compute_dtype = "fp32";  // fp32 | bf16
  int64_t tile_size = 0;               // pixels; 0: no tiles
  int64_t tile_overlap = 64;           // pixels
  int64_t tile_frames = 64;            // hunyuan_vae: frames behind the first one; 0: no tiles
  int64_t tile_frames_overlap = 16;

  void visit(ConfigVisitor& v);
};

struct CodecShape {
  int64_t channels = 16;        // latent channels
  int64_t temporal_stride = 4;  // 1 + temporal_stride * n frames -> 1 + n latent frames
  int64_t spatial_stride = 8;
  int64_t latent_frames(int64_t frames) const { return 1 + (frames - 1) / temporal_stride; }
  int64_t frames(int64_t latent_frames) const { return 1 + (latent_frames - 1) * temporal_stride; }
};

class Codec {
 public:
  virtual ~Codec() = default;
  virtual CodecShape shape() const = 0;
  // Video [B, 3, F, H, W], fp32 in [-1, 1], F = 1 + stride*n -> normalised latents [B, C, T, H/s, W/s], fp32.
  // Throws Error(kInput) naming the nearest sizes that work. No gradients.
  virtual at::Tensor encode(const at::Tensor& video_BCFHW) const = 0;
  // The inverse; values clamped to [-1, 1].
  virtual at::Tensor decode(const at::Tensor& latents_BCTHW) const = 0;
};

// The shape of the configured codec, without loading it: of a pretrained one, config.json or the header of its file is
// read. Throws Error(kInput) where that is missing.
CodecShape codec_shape(const CodecConfig& config);

std::unique_ptr<Codec> make_codec(const CodecConfig& config, at::Device device);

}  // namespace vmoba::model
