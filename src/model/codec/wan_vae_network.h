// Encoder and decoder of the Wan VAE (diffusers: AutoencoderKLWan; Wan-Video/Wan2.1 wan/modules/vae.py, Wan2.2
// wan/modules/vae2_2.py): what it does to one chunk of one video.
//
// A video is a first frame and then chunks of 4n frames (n latent frames); any n gives the same numbers to rounding,
// and memory grows with n alone. Layout [T, H, W, C] as in wan_vae_layers.h; "frames" here are patches of
// config.patch_size pixels a side, 3 * patch^2 values each. Weights are owned; compute is in their dtype and device.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/codec/wan_vae_config.h"
#include "model/codec/wan_vae_layers.h"
#include "model/common/parameters.h"

namespace vmoba::model {

class WanVaeEncoder {
 public:
  WanVaeEncoder(const WanVaeConfig& config, const TensorSource& source);
  // Frames [F, H, W, 3*patch^2], F = 1 for the first chunk and stride * n later -> means of the latents' distribution
  // [1 or n, H/s, W/s, z], not normalised.
  at::Tensor operator()(const at::Tensor& frames_FHWC, FrameMemory& memory) const;

 private:
  struct Stage {
    std::vector<VaeResBlock> blocks;
    std::optional<VaeDownsample> down;
    int64_t width = 0;
    int64_t time = 1, space = 1;  // what the stage divides by
  };
  Stage make_stage(const WanVaeConfig& config, const TensorSource& source, size_t index, int64_t& layer) const;

  bool shortcuts_;
  CausalConv conv_in_;
  std::vector<Stage> stages_;
  VaeMiddle middle_;
  at::Tensor gamma_out_C_;
  CausalConv conv_out_;
  Linear to_mean_;
};

class WanVaeDecoder {
 public:
  WanVaeDecoder(const WanVaeConfig& config, const TensorSource& source);
  // Latents [1, h, w, z] of the first chunk, [n, h, w, z] later -> frames [1 or stride * n, H, W, 3*patch^2], not
  // clamped.
  at::Tensor operator()(const at::Tensor& latents_THWC, FrameMemory& memory) const;

 private:
  struct Stage {
    std::vector<VaeResBlock> blocks;
    std::optional<VaeUpsample> up;
    int64_t width = 0;
    int64_t time = 1, space = 1;  // what the stage multiplies by
  };
  Stage make_stage(const WanVaeConfig& config, const TensorSource& source, size_t index) const;

  bool shortcuts_;
  Linear from_latents_;
  CausalConv conv_in_;
  VaeMiddle middle_;
  std::vector<Stage> stages_;
  at::Tensor gamma_out_C_;
  CausalConv conv_out_;
};

// Names and shapes of all parameters, as diffusers has them.
std::vector<ParameterSpec> wan_vae_specs(const WanVaeConfig& config);

}  // namespace vmoba::model
