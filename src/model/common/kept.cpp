// Shape letters: R rows, I inputs, O outputs, K rank of an adapter.
#include "model/common/kept.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "model/common/fp8_linear.h"
#include "model/common/lt_product.h"
#include "model/common/pointwise.h"

namespace vmoba::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// An affine map whose result is known: y = x W^T + bias + scale (x A^T) B^T. Its gradients are the products that
// autograd makes of linear(), in the same order.
struct KnownLinear : torch::autograd::Function<KnownLinear> {
  // a and b undefined: no adapter.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& /*bias*/, const std::optional<at::Tensor>& a,
                            const std::optional<at::Tensor>& b, double scale, const at::Tensor& known) {
    context->save_for_backward({x, weight, a.value_or(at::Tensor()), b.value_or(at::Tensor())});
    context->saved_data["scale"] = scale;
    return known;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight_OI = saved[1], &a_KI = saved[2], &b_OK = saved[3];
    const at::Tensor x_RI = x.flatten(0, -2), dy_RO = gradients[0].flatten(0, -2);
    const auto needs = [&](size_t input) { return context->needs_input_grad(input); };
    variable_list out(7);
    if (needs(0)) out[0] = at::mm(dy_RO, weight_OI);
    if (needs(1)) out[1] = at::mm(dy_RO.t(), x_RI);
    if (needs(2)) out[2] = dy_RO.sum(0);
    if (a_KI.defined()) add_adapter(dy_RO, x_RI, a_KI, b_OK, context->saved_data["scale"].toDouble(), needs(0), out);
    if (out[0].defined()) out[0] = out[0].view(x.sizes());
    return out;
  }

 private:
  static void add_adapter(const at::Tensor& dy_RO, const at::Tensor& x_RI, const at::Tensor& a_KI,
                          const at::Tensor& b_OK, double scale, bool of_x, variable_list& out) {
    const at::Tensor dh_RK = at::mm(dy_RO, b_OK) * scale;
    out[3] = at::mm(dh_RK.t(), x_RI);
    out[4] = at::mm(dy_RO.t(), at::mm(x_RI, a_KI.t())) * scale;
    if (of_x) out[0] = out[0] + at::mm(dh_RK, a_KI);
  }
};

// dy^T x in `dtype`. The sums are rounded into it once.
at::Tensor gradient_of_weight(const at::Tensor& dy_RO, const at::Tensor& x_RI, at::ScalarType dtype) {
  return dtype == dy_RO.scalar_type() ? at::mm(dy_RO.t(), x_RI) : at::mm(dy_RO.t(), x_RI, dtype);
}

// The functions below take weights and biases as their parameters are; gradients have the parameters' dtype. Affine
// maps of one input, whose gradients of it add up within their products. Results that are known are taken.
struct FusedLinears : torch::autograd::Function<FusedLinears> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x, at::TensorList weights,
                               at::TensorList biases, const variable_list& known) {
    const at::ScalarType dtype = x.scalar_type();
    variable_list saved = {x}, out;
    for (size_t i = 0; i < weights.size(); ++i) {
      saved.push_back(weights[i].detach().to(dtype));
      out.push_back(known[i].defined() ? known[i] : at::linear(x, saved.back(), biases[i].detach().to(dtype)));
    }
    context->save_for_backward(std::move(saved));
    context->saved_data["weight"] = weights[0].scalar_type();
    context->saved_data["bias"] = biases[0].scalar_type();
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const size_t maps = saved.size() - 1;
    const at::Tensor x_RI = as_rows(saved[0]);
    at::Tensor dx_RI;
    variable_list out(2 * maps + 2);  // the last belongs to `known`
    for (size_t i = 0; i < maps; ++i) {
      const at::Tensor dy_RO = as_rows(gradients[i]);
      if (context->needs_input_grad(0)) {
        if (dx_RI.defined())
          dx_RI.addmm_(dy_RO, saved[1 + i]);
        else
          dx_RI = at::mm(dy_RO, saved[1 + i]);
      }
      out[1 + i] = gradient_of_weight(dy_RO, x_RI, context->saved_data["weight"].toScalarType());
      if (context->needs_input_grad(1 + maps + i))
        out[1 + maps + i] = at::sum(dy_RO, 0, /*keepdim=*/false, context->saved_data["bias"].toScalarType());
    }
    if (dx_RI.defined()) out[0] = dx_RI.view(saved[0].sizes());
    return out;
  }
};

// linear(gelu(x)), whose gradient passes GELU within a product (common/lt_product.h).
struct FusedGeluLinear : torch::autograd::Function<FusedGeluLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, const std::optional<at::Tensor>& known) {
    const at::Tensor activated = at::gelu(x, "tanh"), factor = weight.detach().to(x.scalar_type());
    context->save_for_backward({x, activated, factor});
    context->saved_data["weight"] = weight.scalar_type();
    context->saved_data["bias"] = bias.scalar_type();
    return known ? *known : at::linear(activated, factor, bias.detach().to(x.scalar_type()));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    check_first_order();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &activated = saved[1], &weight_OI = saved[2];
    const at::Tensor dy_RO = as_rows(gradients[0]);
    variable_list out(4);
    if (context->needs_input_grad(0)) out[0] = product_through_gelu(dy_RO, weight_OI, as_rows(x)).view(x.sizes());
    out[1] = gradient_of_weight(dy_RO, as_rows(activated), context->saved_data["weight"].toScalarType());
    if (context->needs_input_grad(2))
      out[2] = at::sum(dy_RO, 0, /*keepdim=*/false, context->saved_data["bias"].toScalarType());
    return out;
  }
};

// Adapters and frozen maps go the plain way.
bool takes_fused(const ModelConfig& config, const at::Tensor& x, const Linear& map) {
  return takes_kernels(config, x) && !map.adapter.a.defined() && map.weight.requires_grad() &&
         map.weight.size(0) % 8 == 0 && map.weight.size(1) % 8 == 0;
}

// The weight as the functions of several maps take it: the parameter, or what a frozen one stands for.
at::Tensor parameter_of(const Linear& map, at::ScalarType dtype) {
  return std::holds_alternative<CastWeight>(map.recipe) ? map.weight : weight_in(map, dtype);
}

Fp8Known fetch_fp8(const KeptMap& map, const Kept& kept) {
  const std::vector<at::Tensor> found = kept.fetch_all(map.name);
  return found.empty() ? Fp8Known{{at::Tensor()}, {}} : Fp8Known{{found.at(0)}, found.at(1)};
}

std::vector<at::Tensor> kept_fp8_linears(const at::Tensor& x, const std::vector<KeptMap>& maps, Kept& kept) {
  variable_list weights, biases;
  Fp8Known known;
  for (const KeptMap& map : maps) {
    weights.push_back(parameter_of(map.map, x.scalar_type()));
    biases.push_back(map.map.bias);
    const Fp8Known one = fetch_fp8(map, kept);
    known.results.push_back(one.results[0]);
    if (one.largest.defined()) known.largest = one.largest;
  }
  std::vector<at::Tensor> out = fp8_linears(x, weights, biases, known);
  for (size_t i = 0; i < maps.size(); ++i) kept.keep(maps[i].name, {out[i], known.largest});
  return out;
}

at::Tensor known_linear(const at::Tensor& x, const Linear& map, const at::Tensor& known) {
  const at::ScalarType dtype = x.scalar_type();
  std::optional<at::Tensor> a, b;
  if (map.adapter.a.defined()) {
    a = map.adapter.a.to(dtype);
    b = map.adapter.b.to(dtype);
  }
  return KnownLinear::apply(x, weight_in(map, dtype), map.bias.to(dtype), a, b, map.adapter.scale, known);
}

at::Tensor plain_linear(const at::Tensor& x, const KeptMap& map, const Kept& kept) {
  const at::Tensor known = kept.fetch(map.name);
  return known.defined() ? known_linear(x, map.map, known) : linear(x, map.map);
}

}  // namespace

std::vector<at::Tensor> kept_linears(const ModelConfig& config, const at::Tensor& x, const std::vector<KeptMap>& maps,
                                     Kept& kept) {
  const auto all = [&](const auto& takes) {
    return std::all_of(maps.begin(), maps.end(), [&](const KeptMap& map) { return takes(map); });
  };
  if (all([&](const KeptMap& map) { return takes_fp8(config, x, map.map, map.name); }))
    return kept_fp8_linears(x, maps, kept);
  std::vector<at::Tensor> out;
  if (all([&](const KeptMap& map) { return takes_fused(config, x, map.map); })) {
    variable_list weights, biases, known;
    for (const KeptMap& map : maps) {
      weights.push_back(parameter_of(map.map, x.scalar_type()));
      biases.push_back(map.map.bias);
      known.push_back(kept.fetch(map.name));
    }
    out = FusedLinears::apply(x, at::TensorList(weights), at::TensorList(biases), known);
  } else {
    for (const KeptMap& map : maps) out.push_back(plain_linear(x, map, kept));
  }
  for (size_t i = 0; i < maps.size(); ++i) kept.keep(maps[i].name, out[i]);
  return out;
}

at::Tensor kept_linear(const ModelConfig& config, const at::Tensor& x, const KeptMap& map, Kept& kept) {
  return kept_linears(config, x, {map}, kept).front();
}

at::Tensor kept_gelu_linear(const ModelConfig& config, const at::Tensor& x, const KeptMap& map, Kept& kept) {
  if (takes_fp8(config, x, map.map, map.name) || !takes_fused(config, x, map.map))
    return kept_linear(config, at::gelu(x, "tanh"), map, kept);
  std::optional<at::Tensor> known;
  if (const at::Tensor found = kept.fetch(map.name); found.defined()) known = found;
  at::Tensor out = FusedGeluLinear::apply(x, parameter_of(map.map, x.scalar_type()), map.map.bias, known);
  kept.keep(map.name, out);
  return out;
}

at::Tensor kept_feed_forward(const ModelConfig& config, const at::Tensor& x, const KeptMap& up, const KeptMap& down,
                             Kept& kept) {
  const auto takes = [&](const KeptMap& map) { return takes_fp8(config, x, map.map, map.name); };
  if (!takes(up) || !takes(down)) return kept_gelu_linear(config, kept_linear(config, x, up, kept), down, kept);
  const at::ScalarType dtype = x.scalar_type();
  Fp8Known of_up = fetch_fp8(up, kept), of_down = fetch_fp8(down, kept);
  at::Tensor out = fp8_feed_forward(
      x, {parameter_of(up.map, dtype), up.map.bias, parameter_of(down.map, dtype), down.map.bias}, of_up, of_down);
  kept.keep(up.name, {of_up.results[0], of_up.largest});
  kept.keep(down.name, {out, of_down.largest});
  return out;
}

at::Tensor kept_attention(const std::function<at::Tensor(attention::ResultTape*)>& attend, Kept& kept,
                          const std::string& name) {
  if (std::vector<at::Tensor> known = kept.fetch_all(name); !known.empty()) {
    attention::ResultTape tape(std::move(known));
    return attend(&tape);
  }
  if (!kept.wants(name)) return attend(nullptr);
  attention::ResultTape tape;
  at::Tensor out = attend(&tape);
  kept.keep(name, tape.tensors());
  return out;
}

}  // namespace vmoba::model
