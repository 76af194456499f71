// The loops over a batch's samples that codecs share whose networks work on frames [F, H, W, C]: one sample at a time,
// so that its numbers and the memory do not depend on the batch. No gradients.
//
// Shape letters: B samples, C colours or latent channels, F frames, T latent frames, Z latent channels.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

#include "model/codec.h"

namespace vmoba::model {

// Latents [B, Z, T, h, w] of videos; `encode` makes means [T, h, w, Z] of a video [3, F, H, W], in fp32, and these are
// multiplied by `scale`. `type` is the codec's name in messages.
at::Tensor encode_each(const at::Tensor& video_BCFHW, const CodecShape& shape, const char* type, double scale,
                       const std::function<at::Tensor(const at::Tensor& video_CFHW)>& encode);

// Videos [B, 3, F, H, W] in [-1, 1] of latents; `decode` makes frames [F, H, W, 3] of [T, h, w, Z] in fp32 on `device`,
// not scaled.
at::Tensor decode_each(const at::Tensor& latents_BCTHW, const CodecShape& shape, const char* type, double scale,
                       at::Device device, const std::function<at::Tensor(const at::Tensor& latents_THWZ)>& decode);

}  // namespace vmoba::model
