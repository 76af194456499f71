// `codec.type: patch_codec`: a small codec of this project, which vmoba-train-codec trains (docs/codec.md). 4x8x8
// pixels become 16 channels; latent frame 0 holds frame 0 alone. Sizes come from the shapes of the file's tensors.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "model/codec.h"

namespace vmoba::model {

CodecShape patch_codec_shape(const CodecConfig& config);
std::unique_ptr<Codec> make_patch_codec(const CodecConfig& config, at::Device device);

// The frame that the encoder sees at each of its places, 4 for each latent frame: frame 0 four times, then all others.
std::vector<int64_t> patch_codec_seen_frames(int64_t frames);

}  // namespace vmoba::model
