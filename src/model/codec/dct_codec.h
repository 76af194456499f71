// The training-free codec `dct`: every 4x8x8 block of pixels (t, y, x) becomes one latent of 16 coefficients of its
// space-time cosine transform (orthonormal DCT-II along t, y and x, and an orthonormal turn of the three colours),
// each less its mean and divided by its deviation over natural video. The first frame is a block of its own, repeated
// four times, so that 1 + 4n frames give 1 + n latent frames. docs/numerics.md has the coefficients and their PSNR.
#pragma once
#include <memory>

#include "model/codec.h"

namespace vmoba::model {

CodecShape dct_codec_shape(const CodecConfig& config);

// Throws Error(kInput) where a key of config is set that only pretrained codecs have.
std::unique_ptr<Codec> make_dct_codec(const CodecConfig& config, at::Device device);

}  // namespace vmoba::model
