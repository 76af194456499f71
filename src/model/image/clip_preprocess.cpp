#include "model/image/clip_preprocess.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/check.h"

namespace vmoba::model {

namespace {

void check_images(const at::Tensor& images_BCHW) {
  VMOBA_CHECK_INPUT(images_BCHW.dim() == 4 && images_BCHW.size(1) == 3 && images_BCHW.numel() > 0,
                    "expected images [B, 3, H, W] for an image encoder, found [{}]",
                    fmt::join(images_BCHW.sizes(), ", "));
}

}  // namespace

at::Tensor bicubic_resize(const at::Tensor& images_BCHW, int64_t height, int64_t width) {
  check_images(images_BCHW);
  const at::Tensor bytes_BCHW =
      ((images_BCHW.to(at::kCPU, at::kFloat) * 0.5 + 0.5) * 255).round().clamp(0, 255).to(at::kByte).contiguous();
  if (height == bytes_BCHW.size(2) && width == bytes_BCHW.size(3)) return bytes_BCHW;
  return at::_upsample_bicubic2d_aa(bytes_BCHW, {height, width}, false);
}

at::Tensor clip_resize(const at::Tensor& images_BCHW, int64_t size) {
  check_images(images_BCHW);
  const int64_t height = images_BCHW.size(2), width = images_BCHW.size(3), shorter = std::min(height, width);
  const auto scaled = [&](int64_t side) {
    return side == shorter ? size : int64_t(double(size * side) / double(shorter));
  };
  const int64_t new_height = scaled(height), new_width = scaled(width);
  const at::Tensor resized_BCHW = bicubic_resize(images_BCHW, new_height, new_width);
  return resized_BCHW.narrow(2, (new_height - size) / 2, size).narrow(3, (new_width - size) / 2, size).contiguous();
}

at::Tensor siglip_normalize(const at::Tensor& images_BCHW) {
  return (images_BCHW.to(at::kFloat) / 255 - 0.5) / 0.5;
}

at::Tensor clip_normalize(const at::Tensor& images_BCHW) {
  const auto per_channel = [&](std::initializer_list<double> values) {
    return at::tensor(values, at::TensorOptions(at::kFloat).device(images_BCHW.device())).view({1, 3, 1, 1});
  };
  const at::Tensor mean = per_channel({0.48145466, 0.4578275, 0.40821073});
  const at::Tensor deviation = per_channel({0.26862954, 0.26130258, 0.27577711});
  return (images_BCHW.to(at::kFloat) / 255 - mean) / deviation;
}

}  // namespace vmoba::model
