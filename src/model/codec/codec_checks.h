// What every codec demands of its input, refused in the same words. Used by the codecs only.
#pragma once
#include <ATen/core/Tensor.h>

#include "model/codec.h"

namespace vmoba::model {

// [B, 3, 1 + stride * n, H, W] with H and W multiples of the spatial stride. Throws Error(kInput) naming the nearest
// sizes that work; `type` is the codec's name.
void check_codec_video(const at::Tensor& video_BCFHW, const CodecShape& shape, const char* type);

// [B, channels, T, H, W], none of them empty.
void check_codec_latents(const at::Tensor& latents_BCTHW, const CodecShape& shape, const char* type);

// Sizes of tiles in space: multiples of the spatial stride, the overlap less than the tile. Throws Error(kInput).
void check_space_tiles(const CodecConfig& config, const CodecShape& shape);

}  // namespace vmoba::model
