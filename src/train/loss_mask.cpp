#include "train/loss_mask.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"

namespace vmoba::train {

at::Tensor latent_mask(const at::Tensor& mask_FHW, int64_t T, int64_t h, int64_t w) {
  const int64_t frames = mask_FHW.size(0);
  const at::Tensor small_FHW = at::adaptive_avg_pool2d(mask_FHW.to(at::kFloat) / 255, {h, w});
  if (frames == 1) return small_FHW.expand({T, h, w}).contiguous();
  VMOBA_CHECK(T > 1 && (frames - 1) % (T - 1) == 0, "expected a mask of 1 + {} n frames, found {}", T - 1, frames);
  const at::Tensor later_THW = small_FHW.slice(0, 1).reshape({T - 1, (frames - 1) / (T - 1), h, w}).mean(1);
  return at::cat({small_FHW.slice(0, 0, 1), later_THW});
}

at::Tensor latent_masks(const std::vector<at::Tensor>& masks_FHW, int64_t T, int64_t h, int64_t w) {
  if (std::none_of(masks_FHW.begin(), masks_FHW.end(), [](const at::Tensor& mask) { return mask.defined(); }))
    return {};
  std::vector<at::Tensor> out;
  for (const at::Tensor& mask : masks_FHW)
    out.push_back(mask.defined() ? latent_mask(mask, T, h, w) : at::ones({T, h, w}, at::kFloat));
  return at::stack(out);
}

}  // namespace vmoba::train
