// What kind of Wan VAE: the fields of diffusers' AutoencoderKLWan configuration, read from config.json or from the
// shapes in a weight file.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/codec.h"

namespace vmoba::model {

struct WanVaeConfig {
  int64_t base_dim = 96, decoder_base_dim = 96;
  int64_t z_dim = 16;                                           // latent channels
  std::vector<int64_t> dim_mult = {1, 2, 4, 4};                 // width of each stage over base_dim
  std::vector<bool> temporal_downsample = {false, true, true};  // between stages
  int64_t num_res_blocks = 2;                                   // per stage of the encoder; the decoder has one more
  bool is_residual = false;                                     // Wan2.2: shortcuts around the stages
  int64_t patch_size = 1;                                       // pixels of a side that go into one position
  std::vector<double> latents_mean, latents_std;                // per latent channel

  int64_t patch_channels() const { return 3 * patch_size * patch_size; }
  CodecShape shape() const;
  // Throws Error(kInput) naming `origin` where the fields do not make a network.
  void validate(const std::string& origin) const;
};

// config.json of a diffusers folder vae/. Throws Error(kInput) naming field, expected and found.
WanVaeConfig read_wan_vae_config(const std::string& path);

// From the shapes of a file in diffusers' names: `shape_of` gives a tensor's shape, empty where there is none. Stages,
// blocks and latent statistics are the published ones. Throws Error(kInput) naming `origin`.
using ShapeOf = std::function<std::vector<int64_t>(const std::string& name)>;
WanVaeConfig deduce_wan_vae_config(const ShapeOf& shape_of, const std::string& origin);

}  // namespace vmoba::model
