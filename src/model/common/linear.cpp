#include "model/common/linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "core/check.h"
#include "model/common/packed.h"
#include "model/kernels/unpack.h"

namespace vmoba::model {
namespace {

// One function for each recipe.
at::Tensor weight_in(const CastWeight&, const at::Tensor& weight, at::ScalarType dtype) {
  return weight.to(dtype);
}

at::Tensor weight_in(const ScaledWeight& recipe, const at::Tensor& weight, at::ScalarType dtype) {
  return scaled_weight(weight, recipe.scale, dtype);
}

at::Tensor weight_in(const PackedWeight& recipe, const at::Tensor& weight, at::ScalarType dtype) {
  return unpacked(weight, recipe.packing, dtype);
}

// Whether one kernel can compute scaled_weight().
bool takes_kernel(const at::Tensor& weight, const at::Tensor& scale, at::ScalarType dtype) {
  return weight.is_cuda() && weight.scalar_type() == at::kFloat8_e4m3fn && weight.is_contiguous() && scale.is_cuda() &&
         scale.scalar_type() == at::kFloat && scale.is_contiguous() &&
         (dtype == at::kBFloat16 || dtype == at::kFloat) && weight.numel() % (scale.numel() * unpack::kScaledStep) == 0;
}

at::Tensor multiply_there(const at::Tensor& weight, const at::Tensor& scale, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(weight.device());
  const at::Tensor out = at::empty(weight.sizes(), weight.options().dtype(dtype));
  const unpack::Scaled call{static_cast<const uint8_t*>(weight.const_data_ptr()),
                            scale.const_data_ptr<float>(),
                            weight.numel(),
                            weight.numel() / scale.numel(),
                            out.mutable_data_ptr(),
                            dtype == at::kBFloat16};
  const cudaError_t error = unpack::multiply(call, c10::cuda::getCurrentCUDAStream(out.device().index()).stream());
  VMOBA_CHECK(error == cudaSuccess, "expected a kernel to scale weights, found: {}", cudaGetErrorString(error));
  return out;
}

// x W^T + bias.
at::Tensor product(const at::Tensor& x, const Linear& map) {
  const at::ScalarType dtype = x.scalar_type();
  return at::linear(x, weight_in(map, dtype), map.bias.to(dtype));
}

}  // namespace

at::Tensor weight_in(const Linear& map, at::ScalarType dtype) {
  return std::visit([&](const auto& recipe) { return weight_in(recipe, map.weight, dtype); }, map.recipe);
}

at::Tensor scaled_weight(const at::Tensor& weight, const at::Tensor& scale, at::ScalarType dtype) {
  if (takes_kernel(weight, scale, dtype)) return multiply_there(weight, scale, dtype);
  const at::ScalarType precise = precise_type(dtype);
  const at::Tensor values = weight.to(precise), factor = scale.to(precise);
  if (factor.numel() == 1) return (values * factor.reshape(at::IntArrayRef())).to(dtype);
  const int64_t runs = factor.numel() / weight.size(0);
  return (values.view({weight.size(0), runs, -1}) * factor.view({weight.size(0), runs, 1}))
      .view(weight.sizes())
      .to(dtype);
}

at::Tensor linear(const at::Tensor& x, const Linear& map) {
  const LowRank& adapter = map.adapter;
  if (!adapter.a.defined()) return product(x, map);
  const at::ScalarType dtype = x.scalar_type();
  const at::Tensor rows = x.flatten(0, -2);
  at::Tensor out = product(rows, map);
  out.addmm_(at::linear(rows, adapter.a.to(dtype)), adapter.b.to(dtype).t(), /*beta=*/1, adapter.scale);
  return out.unflatten(0, x.sizes().slice(0, size_t(x.dim() - 1)));
}

at::Tensor as_rows(const at::Tensor& x) {
  return x.flatten(0, -2).contiguous();
}

void check_first_order() {
  VMOBA_CHECK(!at::GradMode::is_enabled(), "expected a first-order backward, found create_graph");
}

at::ScalarType precise_type(at::ScalarType compute_dtype) {
  return compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace vmoba::model
