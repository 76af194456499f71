// The pretrained codec `hunyuan15_vae`: HunyuanVideo 1.5's causal 3D VAE, 4x16x16 pixels to 32 channels. A video goes
// through it chunk after chunk, so that memory does not grow with its length. Larger pictures are cut into tiles of
// codec.tile_size, which are part of what a latent is.
#pragma once
#include <memory>

#include "model/codec.h"

namespace vmoba::model {

// Reads config.json or the file's header. Both throw Error(kInput) where the weights are missing or another model's, or
// where tiles do not fit the stride.
CodecShape hunyuan15_vae_shape(const CodecConfig& config);
std::unique_ptr<Codec> make_hunyuan15_vae(const CodecConfig& config, at::Device device);

}  // namespace vmoba::model
