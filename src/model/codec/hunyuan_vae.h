// The pretrained codec `hunyuan_vae`: HunyuanVideo's causal 3D VAE, 4x8x8 pixels to 16 channels. Longer videos are cut
// into overlapping tiles of codec.tile_frames, larger pictures into tiles of codec.tile_size, as diffusers and the
// original repository cut them: the tiles are part of what a latent is. Memory grows with the tile, not with the video.
#pragma once
#include <memory>

#include "model/codec.h"

namespace vmoba::model {

// Reads config.json or the file's header. Both throw Error(kInput) where the weights are missing or another model's, or
// where tiles do not fit the strides.
CodecShape hunyuan_vae_shape(const CodecConfig& config);
std::unique_ptr<Codec> make_hunyuan_vae(const CodecConfig& config, at::Device device);

}  // namespace vmoba::model
