// Masks of clips, as the loss on latents takes them.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace vmoba::train {

// The mask of one clip, uint8 [F, H, W] with one frame for a mask that stands still, as weights of latents [T, h, w]:
// fp32 in [0, 1], the mean brightness of the pixels and frames behind each. The first latent frame is that of the first
// frame alone, as in causal codecs; the others share the rest.
at::Tensor latent_mask(const at::Tensor& mask_FHW, int64_t T, int64_t h, int64_t w);

// Of a batch, [B, T, h, w], 1 for clips without a mask; undefined where no clip has one.
at::Tensor latent_masks(const std::vector<at::Tensor>& masks_FHW, int64_t T, int64_t h, int64_t w);

}  // namespace vmoba::train
