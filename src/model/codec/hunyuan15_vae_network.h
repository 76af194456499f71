// Encoder and decoder of the HunyuanVideo 1.5 VAE (diffusers: AutoencoderKLHunyuanVideo15): what they do to one chunk
// of one video, a first frame and then chunks of 4n frames. All is causal and no statistic reaches over positions, so
// that chunks of any n give the same numbers to rounding.
//
// Shape letters: T frames of the chunk, H x W positions, C channels, Z latent channels. Layout [T, H, W, C]. Weights
// are owned; compute is in their dtype and device.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/codec.h"
#include "model/codec/codec_weights.h"
#include "model/codec/frame_memory.h"
#include "model/codec/replicate_conv.h"
#include "model/common/linear.h"

namespace vmoba::model {

// The fields of diffusers' configuration.
struct Hunyuan15VaeConfig {
  int64_t latent_channels = 32;
  std::vector<int64_t> block_out_channels = {128, 256, 512, 1024, 1024};
  int64_t layers_per_block = 2;  // of the encoder; the decoder has one more
  double scaling_factor = 1.03682;

  CodecShape shape() const { return {latent_channels, 4, 16}; }
  // Throws Error(kInput) naming `origin` where the fields do not make a network.
  void validate(const std::string& origin) const;
};

// A convolution that remembers its last two input frames.
class StreamedConv {
 public:
  StreamedConv(const TensorSource& source, const std::string& name, int64_t in, int64_t out);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;
  // Of silu(norm(x)).
  at::Tensor after_norm(const at::Tensor& x_THWC, const at::Tensor& gamma_C, FrameMemory& memory) const;

 private:
  ReplicateConv conv_;
};

class Hunyuan15VaeResBlock {
 public:
  Hunyuan15VaeResBlock(const TensorSource& source, const std::string& name, int64_t width);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;

 private:
  at::Tensor gamma1_C_, gamma2_C_;
  StreamedConv conv1_, conv2_;
};

// Two residual blocks with attention of one head between them: a position sees those of its own and earlier frames,
// whose keys and values are remembered.
class Hunyuan15VaeMiddle {
 public:
  Hunyuan15VaeMiddle(const TensorSource& source, const std::string& name, int64_t width);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;

 private:
  at::Tensor attention(const at::Tensor& x_THWC, FrameMemory& memory) const;

  Hunyuan15VaeResBlock before_, after_;
  at::Tensor gamma_C_;
  Linear to_q_, to_k_, to_v_, to_out_;
};

// Positions become channels: half the height and width, and half the frames where `temporal`; the first frame of a
// video stays one frame.
class Hunyuan15VaeDownsample {
 public:
  Hunyuan15VaeDownsample(const TensorSource& source, const std::string& name, int64_t in, int64_t out, bool temporal);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;

 private:
  StreamedConv conv_;
  int64_t out_;
  bool temporal_;
};

// The inverse: channels become positions.
class Hunyuan15VaeUpsample {
 public:
  Hunyuan15VaeUpsample(const TensorSource& source, const std::string& name, int64_t in, int64_t out, bool temporal);
  at::Tensor operator()(const at::Tensor& x_THWC, FrameMemory& memory) const;

 private:
  StreamedConv conv_;
  int64_t out_;
  bool temporal_;
};

class Hunyuan15VaeEncoder {
 public:
  Hunyuan15VaeEncoder(const Hunyuan15VaeConfig& config, const TensorSource& source);
  // Frames [T, H, W, 3], T = 1 for the first chunk and 4n later -> means of the latents' distribution
  // [1 or n, H/16, W/16, Z], not scaled.
  at::Tensor operator()(const at::Tensor& frames_THWC, FrameMemory& memory) const;

 private:
  struct Stage {
    std::vector<Hunyuan15VaeResBlock> blocks;
    std::optional<Hunyuan15VaeDownsample> down;
  };
  StreamedConv conv_in_;
  std::vector<Stage> stages_;
  Hunyuan15VaeMiddle middle_;
  at::Tensor gamma_out_C_;
  StreamedConv conv_out_;
  int64_t latent_channels_;
};

class Hunyuan15VaeDecoder {
 public:
  Hunyuan15VaeDecoder(const Hunyuan15VaeConfig& config, const TensorSource& source);
  // Latents [1, h, w, Z] of the first chunk, [n, h, w, Z] later, not scaled -> frames [1 or 4n, 16h, 16w, 3], not
  // clamped.
  at::Tensor operator()(const at::Tensor& latents_THWZ, FrameMemory& memory) const;

 private:
  struct Stage {
    std::vector<Hunyuan15VaeResBlock> blocks;
    std::optional<Hunyuan15VaeUpsample> up;
  };
  StreamedConv conv_in_;
  Hunyuan15VaeMiddle middle_;
  std::vector<Stage> stages_;
  at::Tensor gamma_out_C_;
  StreamedConv conv_out_;
  int64_t repeats_;  // of a latent channel beside the first convolution
};

// Names and shapes of all parameters, as diffusers has them.
std::vector<ParameterSpec> hunyuan15_vae_specs(const Hunyuan15VaeConfig& config);

// encoder.down.0.block.1.conv1.conv.weight of the original repository -> encoder.down_blocks.0.resnets.1.conv1.conv.
// weight; a name in diffusers' layout, or one that is not such a VAE's, comes back as it is.
std::string hunyuan15_vae_name(const std::string& name);

}  // namespace vmoba::model
