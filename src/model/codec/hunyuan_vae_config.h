// What kind of HunyuanVideo VAE: the fields of diffusers' AutoencoderKLHunyuanVideo configuration, read from
// config.json or from the shapes in a weight file.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/codec.h"
#include "model/codec/codec_weights.h"

namespace vmoba::model {

struct HunyuanVaeConfig {
  int64_t latent_channels = 16;
  std::vector<int64_t> block_out_channels = {128, 256, 512, 512};  // width of each stage
  int64_t layers_per_block = 2;                                    // of the encoder; the decoder has one more
  int64_t norm_num_groups = 32;
  double scaling_factor = 0.476986;  // latents are means times this

  CodecShape shape() const { return {latent_channels, 4, 8}; }
  // Throws Error(kInput) naming `origin` where the fields do not make a network.
  void validate(const std::string& origin) const;
};

// config.json beside the weights, else the widths in the shapes and published values for the rest. Throws
// Error(kInput) naming field, expected and found.
HunyuanVaeConfig read_hunyuan_vae_config(const CodecWeights& weights);

}  // namespace vmoba::model
