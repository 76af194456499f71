#include "model/common/fp8_linear.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string_view>

#include "core/check.h"
#include "model/common/kept.h"
#include "model/dit.h"
#include "model/kernels/quantise.h"

namespace vmoba::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr at::ScalarType kValue = at::kFloat8_e4m3fn, kGradient = at::kFloat8_e5m2;
constexpr int64_t kMultiple = 16;  // of rows and columns that the tensor cores take

int64_t padded(int64_t rows) {
  return (rows + kMultiple - 1) / kMultiple * kMultiple;
}

double largest_of(at::ScalarType format) {
  return format == kValue ? quantise::kLargestE4m3 : quantise::kLargestE5m2;
}

Fp8Factor factor_on_gpu(const at::Tensor& x, at::ScalarType format, bool by_row, bool transposed) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t rows = transposed ? x.size(1) : x.size(0), columns = transposed ? padded(x.size(0)) : x.size(1);
  const int64_t scales = by_row ? rows : 1;
  Fp8Factor out{at::empty({rows, columns}, x.options().dtype(format)),
                at::empty({scales, 1}, x.options().dtype(at::kFloat))};
  const at::Tensor largest = at::empty_like(out.scale);
  const quantise::Matrix call{x.const_data_ptr(),
                              x.size(0),
                              int32_t(x.size(1)),
                              format == kValue ? quantise::Format::kE4m3 : quantise::Format::kE5m2,
                              by_row,
                              out.values.mutable_data_ptr(),
                              out.scale.mutable_data_ptr<float>(),
                              largest.mutable_data_ptr<float>()};
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(x.device().index()).stream();
  const cudaError_t error = transposed ? quantise::quantise_transposed(call, stream) : quantise::quantise(call, stream);
  VMOBA_CHECK(error == cudaSuccess, "fp8: expected a matrix of {} x {} to be quantised, found: {}", x.size(0),
              x.size(1), cudaGetErrorString(error));
  return out;
}

// As the kernels compute it.
Fp8Factor factor_on_cpu(const at::Tensor& x, at::ScalarType format, bool by_row) {
  const at::Tensor values = x.to(at::kFloat), magnitude = values.abs();
  const at::Tensor largest = by_row ? magnitude.amax(1, /*keepdim=*/true) : magnitude.amax().view({1, 1});
  const at::Tensor zero = largest == 0, one = at::ones({}, at::kFloat);
  const auto limit = float(largest_of(format));
  const at::Tensor factor = at::where(zero, one, limit / largest), scale = at::where(zero, one, largest / limit);
  return {(values * factor).to(format), scale};
}

// A B^T + bias in `dtype`. `fast`: sums of products keep fewer bits than fp32 within the tensor cores.
at::Tensor product(const Fp8Factor& a, const Fp8Factor& b, const std::optional<at::Tensor>& bias, at::ScalarType dtype,
                   bool fast) {
  if (a.values.is_cuda())
    return at::_scaled_mm(a.values, b.values.t(), a.scale, b.scale.t(), bias, std::nullopt, dtype, fast);
  const at::Tensor left = a.values.to(at::kFloat) * a.scale, right = b.values.to(at::kFloat) * b.scale;
  const at::Tensor out = at::mm(left, right.t());
  return (bias ? out + bias->to(at::kFloat) : out).to(dtype);
}

struct Fp8Linears : torch::autograd::Function<Fp8Linears> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x, at::TensorList weights,
                               at::TensorList biases, const variable_list& known, bool by_row) {
    variable_list saved = {x}, out;
    saved.insert(saved.end(), weights.begin(), weights.end());
    context->save_for_backward(std::move(saved));
    context->saved_data["by_row"] = by_row;
    const at::Tensor x_RI = x.flatten(0, -2).contiguous();
    std::optional<Fp8Factor> input;  // one for all maps
    for (size_t i = 0; i < weights.size(); ++i) {
      if (known[i].defined()) {
        out.push_back(known[i]);
        continue;
      }
      if (!input) input = fp8_factor(x_RI, kValue, by_row);
      const at::Tensor y_RO =
          product(*input, fp8_factor(weights[i], kValue, by_row), biases[i], x.scalar_type(), /*fast=*/true);
      out.push_back(y_RO.unflatten(0, x.sizes().slice(0, size_t(x.dim() - 1))));
    }
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    VMOBA_CHECK(!at::GradMode::is_enabled(), "expected a first-order backward, found create_graph");
    const variable_list saved = context->get_saved_variables();
    const bool by_row = context->saved_data["by_row"].toBool();
    const size_t maps = saved.size() - 1;
    const at::Tensor& x = saved[0];
    std::optional<Fp8Factor> input_IR;
    at::Tensor dx_RI;
    variable_list out(2 * maps + 3);  // the last two belong to `known` and `by_row`
    for (size_t i = 0; i < maps; ++i) {
      const at::Tensor dy_RO = gradients[i].flatten(0, -2).contiguous();
      if (context->needs_input_grad(0)) {
        const at::Tensor part = product(fp8_factor(dy_RO, kGradient, by_row),
                                        fp8_transposed(saved[1 + i], kValue, by_row), {}, x.scalar_type(), false);
        dx_RI = dx_RI.defined() ? dx_RI.add_(part) : part;
      }
      if (context->needs_input_grad(1 + i)) {
        if (!input_IR) input_IR = fp8_transposed(x.flatten(0, -2).contiguous(), kValue, by_row);
        out[1 + i] = product(fp8_transposed(dy_RO, kGradient, by_row), *input_IR, {}, x.scalar_type(), false);
      }
      if (context->needs_input_grad(1 + maps + i)) out[1 + maps + i] = dy_RO.sum(0);
    }
    if (dx_RI.defined()) out[0] = dx_RI.view(x.sizes());
    return out;
  }
};

void check_gpu(const at::Tensor& x) {
  const cudaDeviceProp* properties = at::cuda::getDeviceProperties(x.device().index());
  VMOBA_CHECK_INPUT(
      10 * properties->major + properties->minor >= 89,
      "model.linear_compute fp8: expected a GPU of compute capability 8.9 or later, found {}.{} ({}); set "
      "model.linear_compute=bf16",
      properties->major, properties->minor, properties->name);
  VMOBA_CHECK_INPUT(x.scalar_type() == at::kBFloat16,
                    "model.linear_compute fp8: expected model.compute_dtype bf16 on a GPU, found {}",
                    c10::toString(x.scalar_type()));
}

}  // namespace

Fp8Factor fp8_factor(const at::Tensor& x, at::ScalarType format, bool by_row) {
  return x.is_cuda() ? factor_on_gpu(x, format, by_row, /*transposed=*/false) : factor_on_cpu(x, format, by_row);
}

Fp8Factor fp8_transposed(const at::Tensor& x, at::ScalarType format, bool by_row) {
  if (x.is_cuda()) return factor_on_gpu(x, format, by_row, /*transposed=*/true);
  return factor_on_cpu(at::constant_pad_nd(x, {0, 0, 0, padded(x.size(0)) - x.size(0)}).t(), format, by_row);
}

bool takes_fp8(const ModelConfig& config, const at::Tensor& x, const KeptMap& map) {
  if (config.linear_compute != "fp8" || map.map.adapter.a.defined() || x.numel() == 0) return false;
  if (config.fp8_maps == "feed_forward" && !std::string_view(map.name).starts_with("ff")) return false;
  if (map.map.weight.size(0) % kMultiple != 0 || map.map.weight.size(1) % kMultiple != 0) return false;
  if (x.is_cuda()) check_gpu(x);
  return true;
}

std::vector<at::Tensor> fp8_linears(const ModelConfig& config, const at::Tensor& x,
                                    const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& biases,
                                    const std::vector<at::Tensor>& known) {
  return Fp8Linears::apply(x, at::TensorList(weights), at::TensorList(biases), known, config.fp8_scaling == "row");
}

}  // namespace vmoba::model
