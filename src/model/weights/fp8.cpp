#include "model/weights/fp8.h"

#include <ATen/ATen.h>

#include <limits>

namespace vmoba::model {

Fp8Matrix quantise_fp8(const at::Tensor& matrix) {
  constexpr double kLargest = 448;
  const at::Tensor precise = matrix.to(at::kFloat);
  const at::Tensor largest = precise.abs().amax(1, /*keepdim=*/true);
  const at::Tensor scale = (largest / kLargest).clamp_min(std::numeric_limits<float>::min());
  return {(precise / scale).clamp(-kLargest, kLargest).to(at::kFloat8_e4m3fn), scale};
}

}  // namespace vmoba::model
