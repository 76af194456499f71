// Encoder and decoder of the HunyuanVideo VAE (diffusers: AutoencoderKLHunyuanVideo) on one tile of one video. Group
// norms and the attention in the middle reach over all its frames, so that a video is no stream of chunks: all frames
// of a tile are in memory at once.
//
// Shape letters: T frames, H x W positions, C channels, Z latent channels. Layout [T, H, W, C] as in replicate_conv.h.
// Weights are owned; compute is in their dtype and device, norms in fp32.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/codec/hunyuan_vae_config.h"
#include "model/codec/replicate_conv.h"
#include "model/common/linear.h"

namespace vmoba::model {

class GroupNorm {
 public:
  GroupNorm(const TensorSource& source, const std::string& name, int64_t width, int64_t groups);
  // As a map of each channel, whose statistics are over all frames: x * scale + shift, fp32 [C].
  struct Affine {
    at::Tensor scale_C, shift_C;
  };
  Affine of(const at::Tensor& x_THWC) const;
  // silu(norm(x)) where a convolution asks for it.
  FrameSource activated(const at::Tensor& x_THWC) const;

 private:
  at::Tensor weight_C_, bias_C_;
  int64_t groups_;
};

class HunyuanVaeResBlock {
 public:
  HunyuanVaeResBlock(const TensorSource& source, const std::string& name, int64_t in, int64_t out, int64_t groups);
  at::Tensor operator()(const at::Tensor& x_THWC) const;

 private:
  GroupNorm norm1_, norm2_;
  ReplicateConv conv1_, conv2_;
  std::optional<Linear> shortcut_;  // where the width changes
};

// Two residual blocks with attention of one head between them: a position sees those of its own and earlier frames.
class HunyuanVaeMiddle {
 public:
  HunyuanVaeMiddle(const TensorSource& source, const std::string& name, int64_t width, int64_t groups);
  at::Tensor operator()(const at::Tensor& x_THWC) const;

 private:
  HunyuanVaeResBlock before_, after_;
  GroupNorm norm_;
  Linear to_q_, to_k_, to_v_, to_out_;
};

// Blocks of one width and what follows them.
struct HunyuanVaeStage {
  std::vector<HunyuanVaeResBlock> blocks;
  std::optional<ReplicateConv> resample;
  int64_t time = 1, space = 1;  // what the stage divides (encoder) or multiplies (decoder) by
};

class HunyuanVaeEncoder {
 public:
  HunyuanVaeEncoder(const HunyuanVaeConfig& config, const TensorSource& source);
  // Frames [1 + 4n, H, W, 3] -> means of the latents' distribution [1 + n, H/8, W/8, Z], not scaled.
  at::Tensor operator()(const at::Tensor& frames_THWC) const;

 private:
  ReplicateConv conv_in_;
  std::vector<HunyuanVaeStage> stages_;
  HunyuanVaeMiddle middle_;
  GroupNorm norm_out_;
  ReplicateConv conv_out_;
  Linear to_mean_;
};

class HunyuanVaeDecoder {
 public:
  HunyuanVaeDecoder(const HunyuanVaeConfig& config, const TensorSource& source);
  // Latents [1 + n, h, w, Z], not scaled -> frames [1 + 4n, 8h, 8w, 3], not clamped.
  at::Tensor operator()(const at::Tensor& latents_THWZ) const;

 private:
  Linear from_latents_;
  ReplicateConv conv_in_;
  HunyuanVaeMiddle middle_;
  std::vector<HunyuanVaeStage> stages_;
  GroupNorm norm_out_;
  ReplicateConv conv_out_;
};

// Names and shapes of all parameters, as diffusers and the original repository have them.
std::vector<ParameterSpec> hunyuan_vae_specs(const HunyuanVaeConfig& config);

}  // namespace vmoba::model
