#include "model/common/fp8_linear.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/check.h"
#include "model/architecture.h"
#include "model/common/fp8_factor.h"
#include "model/common/linear.h"
#include "model/dit.h"

namespace vmoba::model {
namespace {

using quantise::Operation;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr at::ScalarType kValue = at::kFloat8_e4m3fn, kGradient = at::kFloat8_e5m2;

at::Tensor with_rows_of(const at::Tensor& y_RO, const at::Tensor& x) {
  return y_RO.unflatten(0, x.sizes().slice(0, size_t(x.dim() - 1)));
}

// A factor [rows, K] with scales [rows, 1] or one.
struct Factor {
  at::Tensor values, scale;
};

// How many bits the tensor cores keep of sums: kFast about 14 behind the point, kExact those of fp32.
enum class Sums { kFast, kExact };

// A B^T + bias in `dtype`.
at::Tensor product(const Factor& a, const Factor& b, at::ScalarType dtype, Sums sums,
                   const std::optional<at::Tensor>& bias = {}) {
  if (a.values.is_cuda())
    return at::_scaled_mm(a.values, b.values.t(), a.scale, b.scale.t(), bias, std::nullopt, dtype, sums == Sums::kFast);
  const at::Tensor left = a.values.to(at::kFloat) * a.scale, right = b.values.to(at::kFloat) * b.scale;
  const at::Tensor out = at::mm(left, right.t());
  return (bias ? out + bias->to(at::kFloat) : out).to(dtype);
}

// Weights one above the other, in the dtype in which they enter products.
at::Tensor stacked(at::TensorList weights, at::ScalarType dtype) {
  if (weights.size() == 1) return weights[0].detach().to(dtype).contiguous();
  int64_t outputs = 0;
  for (const at::Tensor& weight : weights) outputs += weight.size(0);
  const at::Tensor out = at::empty({outputs, weights[0].size(1)}, weights[0].options().dtype(dtype));
  outputs = 0;
  for (const at::Tensor& weight : weights) {
    out.narrow(0, outputs, weight.size(0)).copy_(weight.detach());
    outputs += weight.size(0);
  }
  return out;
}

// dy W [R, I] in the dtype of W.
at::Tensor gradient_of_input(const Fp8Rows& dy, const at::Tensor& weight_OI) {
  const Fp8Transposed weight = fp8_transposed(fp8_rows({weight_OI}, kValue));
  // Where one factor has a scale for each row, the tensor cores' library wants them of both.
  const at::Tensor scale = weight.scale.expand({weight.values.size(0), 1}).contiguous();
  return product({dy.values, dy.scale}, {weight.values, scale}, weight_OI.scalar_type(), Sums::kFast);
}

// dy^T x [O, I].
at::Tensor gradient_of_weight(const Fp8Rows& dy, const Fp8Transposed& x_IR, at::ScalarType dtype) {
  const Fp8Transposed dy_OR = fp8_transposed(dy);
  return product({dy_OR.values, dy_OR.scale}, {x_IR.values, x_IR.scale}, dtype, Sums::kExact);
}

// Consecutive maps whose gradients are quantised together.
struct Group {
  size_t first = 0, count = 0;
};
std::vector<Group> groups_of(const std::vector<int64_t>& outputs) {
  std::vector<Group> out;
  int64_t width = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (out.empty() || out.back().count == size_t(quantise::kMaxParts) || width + outputs[i] > quantise::kMaxWidth) {
      out.push_back({i, 0});
      width = 0;
    }
    out.back().count += 1;
    width += outputs[i];
  }
  return out;
}

struct LinearsFunction : torch::autograd::Function<LinearsFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x, at::TensorList weights,
                               at::TensorList biases, Fp8Known* known) {
    const at::ScalarType dtype = x.scalar_type();
    std::optional<Fp8Rows> input;  // one for all maps
    const auto quantised = [&]() -> const Fp8Rows& {
      if (!input) input = fp8_rows({as_rows(x)}, kValue);
      return *input;
    };
    if (!known->largest.defined()) known->largest = quantised().largest;
    variable_list out = known->results;
    variable_list saved = {x, known->largest};
    std::vector<int64_t> outputs;
    for (const at::Tensor& weight : weights) outputs.push_back(weight.size(0));
    for (const auto [first, count] : groups_of(outputs)) {
      saved.push_back(stacked(weights.slice(first, count), dtype));
      std::optional<Fp8Rows> factor;
      int64_t row = 0;
      for (size_t i = first; i < first + count; row += outputs[i++]) {
        if (out[i].defined()) continue;
        if (!factor) factor = fp8_rows({saved.back()}, kValue);
        const Factor weight{factor->values.narrow(0, row, outputs[i]), factor->scale.narrow(0, row, outputs[i])};
        const Fp8Rows& rows = quantised();
        out[i] = with_rows_of(
            product({rows.values, rows.scale}, weight, dtype, Sums::kFast, biases[i].detach().to(dtype)), x);
      }
    }
    context->save_for_backward(std::move(saved));
    context->saved_data["outputs"] = outputs;
    context->saved_data["dtype"] = weights[0].scalar_type();
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &largest = saved[1];
    const size_t maps = gradients.size();
    const std::vector<int64_t> outputs = context->saved_data["outputs"].toIntVector();
    const std::vector<Group> groups = groups_of(outputs);
    std::optional<Fp8Transposed> input_IR;
    at::Tensor dx_RI;
    variable_list out(2 * maps + 2);  // the last belongs to `known`
    for (size_t g = 0; g < groups.size(); ++g) {
      const auto [first, count] = groups[g];
      std::vector<at::Tensor> dys;
      bool of_weights = false;
      for (size_t i = first; i < first + count; ++i) {
        dys.push_back(as_rows(gradients[i]));
        of_weights |= context->needs_input_grad(1 + i);
      }
      at::Tensor sums;
      const Fp8Rows dy = fp8_rows(dys, kGradient, sums);
      if (context->needs_input_grad(0)) {
        const at::Tensor part = gradient_of_input(dy, saved[2 + g]);
        dx_RI = dx_RI.defined() ? dx_RI.add_(part) : part;
      }
      at::Tensor dweight;
      if (of_weights) {
        if (!input_IR) input_IR = fp8_transposed(as_rows(x), largest);
        dweight = gradient_of_weight(dy, *input_IR, context->saved_data["dtype"].toScalarType());
      }
      int64_t row = 0;
      for (size_t i = first; i < first + count; row += outputs[i++]) {
        if (context->needs_input_grad(1 + i)) out[1 + i] = dweight.narrow(0, row, outputs[i]);
        if (context->needs_input_grad(1 + maps + i)) out[1 + maps + i] = sums.narrow(0, row, outputs[i]);
      }
    }
    if (dx_RI.defined()) out[0] = dx_RI.view(x.sizes());
    return out;
  }
};

struct FeedForwardFunction : torch::autograd::Function<FeedForwardFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& up_weight,
                            const at::Tensor& up_bias, const at::Tensor& down_weight, const at::Tensor& down_bias,
                            Fp8Known* up, Fp8Known* down) {
    const at::ScalarType dtype = x.scalar_type();
    const at::Tensor up_FI = stacked({up_weight}, dtype), down_OF = stacked({down_weight}, dtype);
    const auto map = [&](const Fp8Rows& input, const at::Tensor& weight, const at::Tensor& bias) {
      const Fp8Rows factor = fp8_rows({weight}, kValue);
      return with_rows_of(product({input.values, input.scale}, {factor.values, factor.scale}, dtype, Sums::kFast,
                                  bias.detach().to(dtype)),
                          x);
    };
    at::Tensor& hidden = up->results[0];
    if (!hidden.defined() || !up->largest.defined()) {
      const Fp8Rows input = fp8_rows({as_rows(x)}, kValue);
      up->largest = input.largest;
      if (!hidden.defined()) hidden = map(input, up_FI, up_bias);
    }
    at::Tensor& y = down->results[0];
    if (!y.defined() || !down->largest.defined()) {
      const Fp8Rows activated = fp8_rows({as_rows(hidden)}, kValue, Operation::kGelu);
      down->largest = activated.largest;
      if (!y.defined()) y = map(activated, down_OF, down_bias);
    }
    context->save_for_backward({x, hidden, up->largest, down->largest, up_FI, down_OF});
    context->saved_data["up"] = up_weight.scalar_type();
    context->saved_data["down"] = down_weight.scalar_type();
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], hidden_RF = as_rows(saved[1]);
    const auto needs = [&](size_t input) { return context->needs_input_grad(input); };
    const auto dtype_of = [&](const char* map) { return context->saved_data[map].toScalarType(); };
    variable_list out(7);  // the last two belong to `up` and `down`
    at::Tensor dhidden_RF;
    {
      at::Tensor sums;
      const Fp8Rows dy = fp8_rows({as_rows(gradients[0])}, kGradient, sums);
      if (needs(3))
        out[3] = gradient_of_weight(dy, fp8_transposed(hidden_RF, saved[3], Operation::kGelu), dtype_of("down"));
      if (needs(4)) out[4] = sums;
      if (needs(0) || needs(1) || needs(2)) dhidden_RF = gradient_of_input(dy, saved[5]);
    }
    if (!dhidden_RF.defined()) return out;
    at::Tensor sums;
    const Fp8Rows dup = fp8_rows_through_gelu(dhidden_RF, hidden_RF, kGradient, sums);
    dhidden_RF.reset();
    if (needs(1)) out[1] = gradient_of_weight(dup, fp8_transposed(as_rows(x), saved[2]), dtype_of("up"));
    if (needs(2)) out[2] = sums;
    if (needs(0)) out[0] = gradient_of_input(dup, saved[4]).view(x.sizes());
    return out;
  }
};

bool fits(int64_t outputs, int64_t inputs) {
  const auto one = [](int64_t size) { return size % quantise::kMultiple == 0 && size <= quantise::kMaxWidth; };
  return one(outputs) && one(inputs);
}

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

bool asks_for_fp8(const ModelConfig& config, std::string_view name) {
  return config.linear_compute == "fp8" && (config.fp8_maps != "feed_forward" || name.starts_with("ff"));
}

bool takes_fp8(const ModelConfig& config, const at::Tensor& x, const Linear& map, std::string_view name) {
  if (!asks_for_fp8(config, name) || map.adapter.a.defined() || x.numel() == 0) return false;
  if (!fits(map.weight.size(0), x.size(-1))) return false;
  if (x.is_cuda()) check_gpu(x);
  return true;
}

std::set<std::string> fp8_weights(const ModelConfig& config, const std::vector<Parameter>& parameters) {
  if (config.linear_compute != "fp8") return {};
  std::set<std::string> out;
  for (const ForwardWork& work : forward_work(config, {}, {1, 1, 1}, /*text_tokens=*/1, /*density=*/1)) {
    if (work.module.empty() || work.result.empty()) continue;
    const std::string block = block_of(architecture_of(config), work.result);
    if (block.empty()) continue;  // the head
    if (asks_for_fp8(config, std::string_view(work.result).substr(block.size()))) out.insert(work.module + ".weight");
  }
  for (const Parameter& p : parameters)
    if (out.contains(p.name) && !fits(p.shape()[0], p.shape()[1])) return {};
  return out;
}

std::vector<at::Tensor> fp8_linears(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                    const std::vector<at::Tensor>& biases, Fp8Known& known) {
  known.results.resize(weights.size());
  return LinearsFunction::apply(x, at::TensorList(weights), at::TensorList(biases), &known);
}

at::Tensor fp8_feed_forward(const at::Tensor& x, const Fp8FeedForward& maps, Fp8Known& up, Fp8Known& down) {
  up.results.resize(1);
  down.results.resize(1);
  return FeedForwardFunction::apply(x, maps.up_weight, maps.up_bias, maps.down_weight, maps.down_bias, &up, &down);
}

}  // namespace vmoba::model
