// Video <-> latents. Implementations: `dct` (training-free, codec/dct_codec.cpp) and pretrained VAEs.
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
  std::string weights;  // file of a pretrained codec

  void visit(ConfigVisitor& v);
};

struct CodecShape {
  int64_t channels = 16;         // latent channels
  int64_t temporal_stride = 4;   // 1 + temporal_stride * n frames -> 1 + n latent frames
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

// The shape of the configured codec, without loading it.
CodecShape codec_shape(const CodecConfig& config);

std::unique_ptr<Codec> make_codec(const CodecConfig& config, at::Device device);

}  // namespace vmoba::model
