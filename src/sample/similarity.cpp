#include "sample/similarity.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace vmoba::sample {
namespace {

constexpr int64_t kWindow = 11;
constexpr double kWindowDeviation = 1.5;

// The Gaussian window of at most `length` values, an odd number of them.
at::Tensor window(int64_t length, const at::TensorOptions& options) {
  const int64_t size = std::min(kWindow, length % 2 == 1 ? length : length - 1);
  const at::Tensor place = at::arange(size, options) - double(size / 2);
  const at::Tensor weight = (-place.square() / (2 * kWindowDeviation * kWindowDeviation)).exp();
  return weight / weight.sum();
}

// Weighted means over the windows of x [P, 1, H, W].
at::Tensor windowed(const at::Tensor& x_P1HW) {
  const at::Tensor down = window(x_P1HW.size(2), x_P1HW.options()), across = window(x_P1HW.size(3), x_P1HW.options());
  return at::conv2d(at::conv2d(x_P1HW, down.view({1, 1, -1, 1})), across.view({1, 1, 1, -1}));
}

void check_same_shape(const at::Tensor& a, const at::Tensor& b) {
  VMOBA_CHECK(a.sizes() == b.sizes(), "expected two videos of one shape, found others");
}

}  // namespace

double psnr_db(const at::Tensor& video_CFHW, const at::Tensor& other_CFHW) {
  check_same_shape(video_CFHW, other_CFHW);
  const double error = (video_CFHW.to(at::kDouble) - other_CFHW.to(at::kDouble)).square().mean().item<double>();
  return 10 * std::log10(255.0 * 255.0 / error);
}

double ssim(const at::Tensor& video_CFHW, const at::Tensor& other_CFHW) {
  check_same_shape(video_CFHW, other_CFHW);
  constexpr double kMean = (0.01 * 255) * (0.01 * 255), kVariance = (0.03 * 255) * (0.03 * 255);
  double sum = 0;
  for (int64_t frame = 0; frame < video_CFHW.size(1); ++frame) {  // one at a time: intermediates take much memory
    const at::Tensor a = video_CFHW.select(1, frame).unsqueeze(1).to(at::kDouble);
    const at::Tensor b = other_CFHW.select(1, frame).unsqueeze(1).to(at::kDouble);
    const at::Tensor mean_a = windowed(a), mean_b = windowed(b);
    const at::Tensor variance_a = windowed(a * a) - mean_a * mean_a, variance_b = windowed(b * b) - mean_b * mean_b;
    const at::Tensor covariance = windowed(a * b) - mean_a * mean_b;
    const at::Tensor map = (2 * mean_a * mean_b + kMean) * (2 * covariance + kVariance) /
                           ((mean_a * mean_a + mean_b * mean_b + kMean) * (variance_a + variance_b + kVariance));
    sum += map.mean().item<double>();
  }
  return sum / double(video_CFHW.size(1));
}

double relative_error(const at::Tensor& latents, const at::Tensor& other) {
  check_same_shape(latents, other);
  const at::Tensor a = latents.to(at::kDouble), b = other.to(at::kDouble);
  return ((a - b).norm() / b.norm()).item<double>();
}

}  // namespace vmoba::sample
