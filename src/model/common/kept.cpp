// Shape letters: R rows, I inputs, O outputs, K rank of an adapter.
#include "model/common/kept.h"

#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>
#include <vector>

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

at::Tensor known_linear(const at::Tensor& x, const Linear& map, const at::Tensor& known) {
  const at::ScalarType dtype = x.scalar_type();
  std::optional<at::Tensor> a, b;
  if (map.adapter.a.defined()) {
    a = map.adapter.a.to(dtype);
    b = map.adapter.b.to(dtype);
  }
  return KnownLinear::apply(x, weight_in(map, dtype), map.bias.to(dtype), a, b, map.adapter.scale, known);
}

}  // namespace

at::Tensor kept_linear(const at::Tensor& x, const Linear& map, Kept& kept, const std::string& name) {
  const at::Tensor known = kept.fetch(name);
  if (known.defined()) return known_linear(x, map, known);
  at::Tensor y = linear(x, map);
  kept.keep(name, y);
  return y;
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
