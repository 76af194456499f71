#include "model/common/patchify.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "core/check.h"

namespace vmoba::model {
namespace {

int64_t patches(int64_t size, int64_t patch, const char* what) {
  VMOBA_CHECK_INPUT(size > 0 && size % patch == 0,
                    "expected a latent {} that is a positive multiple of {} (model.patch_size), found {}; use {} or {}",
                    what, patch, size, std::max(size / patch, int64_t{1}) * patch,
                    (std::max(size, int64_t{0}) / patch + 1) * patch);
  return size / patch;
}

}  // namespace

attention::Grid patch_grid(int64_t latent_frames, int64_t latent_height, int64_t latent_width,
                           const std::vector<int64_t>& patch_size) {
  return {patches(latent_frames, patch_size[0], "frame count"), patches(latent_height, patch_size[1], "height"),
          patches(latent_width, patch_size[2], "width")};
}

at::Tensor patchify(const at::Tensor& latents_BCTHW, const std::vector<int64_t>& patch_size) {
  const int64_t pt = patch_size[0], ph = patch_size[1], pw = patch_size[2];
  const int64_t batch = latents_BCTHW.size(0), channels = latents_BCTHW.size(1);
  const int64_t t = latents_BCTHW.size(2) / pt, h = latents_BCTHW.size(3) / ph, w = latents_BCTHW.size(4) / pw;
  return latents_BCTHW.reshape({batch, channels, t, pt, h, ph, w, pw})
      .permute({0, 2, 4, 6, 1, 3, 5, 7})
      .reshape({batch, t * h * w, channels * pt * ph * pw});
}

at::Tensor unpatchify(const at::Tensor& tokens_BSP, const attention::Grid& grid, const std::vector<int64_t>& patch_size,
                      PatchOrder order) {
  const int64_t pt = patch_size[0], ph = patch_size[1], pw = patch_size[2];
  const int64_t batch = tokens_BSP.size(0), channels = tokens_BSP.size(2) / (pt * ph * pw);
  const bool last = order == PatchOrder::kChannelLast;
  const at::Tensor patches_BTHWP = tokens_BSP.reshape({batch, grid.t, grid.h, grid.w, -1});
  return (last ? patches_BTHWP.unflatten(-1, {pt, ph, pw, channels}).permute({0, 7, 1, 4, 2, 5, 3, 6})
               : patches_BTHWP.unflatten(-1, {channels, pt, ph, pw}).permute({0, 4, 1, 5, 2, 6, 3, 7}))
      .reshape({batch, channels, grid.t * pt, grid.h * ph, grid.w * pw});
}

}  // namespace vmoba::model
