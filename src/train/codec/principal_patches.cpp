#include "train/codec/principal_patches.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/codec/patch_codec_network.h"

namespace vmoba::train {
namespace {

constexpr double kGrey = 0.5;             // what the networks take off their patches
constexpr size_t kMaxClips = 256;         // enough for 768 values; the others are passed over
constexpr double kLeastDeviation = 1e-3;  // of a component: none is enlarged without bound

// [N, P], fp32.
at::Tensor patches_of(const at::Tensor& clip_CFHW) {
  const int64_t frames = clip_CFHW.size(1) / model::kPatchFrames * model::kPatchFrames;
  const at::Tensor frames_FCHW = clip_CFHW.narrow(1, 0, frames).transpose(0, 1).to(at::kFloat) / 255 - kGrey;
  return model::to_patches(frames_FCHW, 1).permute({0, 2, 3, 1}).flatten(0, 2);
}

}  // namespace

PrincipalPatches principal_patches(const std::vector<at::Tensor>& clips_CFHW, int64_t components) {
  const at::TensorOptions options = at::TensorOptions().dtype(at::kDouble);
  at::Tensor mean_P = at::zeros({model::kPatchValues}, options);
  at::Tensor second_PP = at::zeros({model::kPatchValues, model::kPatchValues}, options);
  const size_t used = std::min(clips_CFHW.size(), kMaxClips);
  for (size_t i = 0; i < used; ++i) {
    const at::Tensor x_NP = patches_of(clips_CFHW[i * clips_CFHW.size() / used]);
    mean_P += x_NP.mean(0).cpu();
    second_PP += (at::mm(x_NP.t(), x_NP) / double(x_NP.size(0))).cpu();
  }
  const double count = double(used);
  mean_P /= count;
  const auto [variances_P, vectors_PP] = at::linalg_eigh(second_PP / count - at::outer(mean_P, mean_P));
  const int64_t first = model::kPatchValues - components;
  return {
      mean_P.to(at::kFloat), vectors_PP.narrow(1, first, components).flip({1}).t().contiguous().to(at::kFloat),
      variances_P.narrow(0, first, components).flip({0}).clamp_min(0).sqrt().clamp_min(kLeastDeviation).to(at::kFloat)};
}

}  // namespace vmoba::train
