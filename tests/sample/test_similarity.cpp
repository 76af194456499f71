#include "sample/similarity.h"

#include <ATen/ATen.h>

#include <cmath>

#include "support/catch.h"

using namespace vmoba::sample;

namespace {

at::Tensor flat(int64_t value) {
  return at::full({3, 4, 16, 20}, value, at::kByte);
}

// A pattern without any randomness.
at::Tensor pattern(int64_t height, int64_t width) {
  const at::Tensor n = at::arange(3 * 2 * height * width, at::kLong);
  return (n * n % 251).view({3, 2, height, width}).to(at::kByte);
}

}  // namespace

TEST_CASE("the signal-to-noise ratio of a constant difference, by hand") {
  CHECK(psnr_db(flat(100), flat(110)) == Approx(20 * std::log10(255.0 / 10)));
  CHECK(psnr_db(flat(0), flat(255)) == Approx(0).margin(1e-12));
  CHECK(std::isinf(psnr_db(flat(7), flat(7))));
  at::Tensor half = flat(100);
  half.slice(1, 0, 2).fill_(120);  // half of the values are 20 away: a mean square of 200
  CHECK(psnr_db(half, flat(100)) == Approx(10 * std::log10(255.0 * 255 / 200)));
}

TEST_CASE("structural similarity of equal, flat and opposite frames") {
  CHECK(ssim(pattern(16, 20), pattern(16, 20)) == Approx(1).epsilon(1e-12));
  // Flat frames have no variance: (2 a b + c) / (a^2 + b^2 + c) remains.
  const double c = 2.55 * 2.55;
  CHECK(ssim(flat(50), flat(200)) == Approx((2 * 50.0 * 200 + c) / (50.0 * 50 + 200.0 * 200 + c)).epsilon(1e-9));
  const at::Tensor x = pattern(16, 20), opposite = 255 - x;
  CHECK(ssim(x, opposite) < 0);  // covariance is minus the variance
  CHECK(ssim(x, opposite) == Approx(ssim(opposite, x)).epsilon(1e-12));
  CHECK(ssim(pattern(6, 8), pattern(6, 8)) == Approx(1).epsilon(1e-12));  // smaller than a window
}

TEST_CASE("the window of structural similarity is a Gaussian of 1.5 over 11 values") {
  // One window in all: a single bright pixel in its middle against black. With w its weight: mean 255 w, variance
  // 255^2 (w - w^2), the other frame is all 0.
  at::Tensor dot = at::zeros({3, 1, 11, 11}, at::kByte);
  dot.slice(2, 5, 6).slice(3, 5, 6).fill_(255);
  double sum = 0;
  for (int i = -5; i <= 5; ++i) sum += std::exp(-i * i / 4.5);
  const double w = 1 / (sum * sum), mean = 255 * w, variance = 255.0 * 255 * (w - w * w);
  const double c1 = 2.55 * 2.55, c2 = 7.65 * 7.65;
  CHECK(ssim(dot, at::zeros_like(dot)) == Approx(c1 * c2 / ((mean * mean + c1) * (variance + c2))).epsilon(1e-9));
}

TEST_CASE("the error of latents is relative to the second") {
  const at::Tensor x = at::arange(1, 25, at::kFloat).view({1, 2, 3, 2, 2});
  CHECK(relative_error(x * 1.1, x) == Approx(0.1).epsilon(1e-5));
  CHECK(relative_error(x, x) == 0);
  CHECK(relative_error(at::zeros_like(x), x) == Approx(1));
}
