// The codec `wan_vae`: the pretrained VAEs of Wan2.1 (4x8x8, 16 channels) and Wan2.2 TI2V-5B (4x16x16, 48 channels),
// with the semantics of diffusers' AutoencoderKLWan. Latents are the means of the encoder's distribution (its mode;
// nothing is sampled), less latents_mean and divided by latents_std. Samples of a batch are worked on one after the
// other and a video in chunks of one latent frame, so that memory is that of one chunk of one sample (or of one tile,
// codec.tile_size) plus the result, however long the video. Weights live on the device in codec.compute_dtype.
#pragma once
#include <memory>

#include "model/codec.h"

namespace vmoba::model {

// Reads config.json or the header of the weight file. Throws Error(kInput) where files are missing, saying where to
// get them.
CodecShape wan_vae_shape(const CodecConfig& config);

std::unique_ptr<Codec> make_wan_vae(const CodecConfig& config, at::Device device);

}  // namespace vmoba::model
