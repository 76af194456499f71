// Latent videos <-> token rows.
//
// Shape letters: B samples, C channels, T x H x W latents, S tokens (t*H + h)*W + w of the patch grid, P values of a
// patch.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/attention.h"

namespace vmoba::model {

// The patch grid of a latent video; throws Error(kInput) naming the multiple where sizes do not divide.
attention::Grid patch_grid(int64_t latent_frames, int64_t latent_height, int64_t latent_width,
                           const std::vector<int64_t>& patch_size);

// [B, C, T, H, W] -> [B, S, C*pt*ph*pw], patch values in (c, pt, ph, pw) order, which is that of a convolution weight.
at::Tensor patchify(const at::Tensor& latents_BCTHW, const std::vector<int64_t>& patch_size);

// The order of the values of a patch that a head makes.
enum class PatchOrder {
  kChannelLast,   // (pt, ph, pw, c): Wan's
  kChannelFirst,  // (c, pt, ph, pw): HunyuanVideo's
};

// [B, S, P] -> [B, C, T, H, W].
at::Tensor unpatchify(const at::Tensor& tokens_BSP, const attention::Grid& grid, const std::vector<int64_t>& patch_size,
                      PatchOrder order);

}  // namespace vmoba::model
