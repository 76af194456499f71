#include "model/common/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace vmoba::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Recompute : torch::autograd::Function<Recompute> {
  // at::TensorList and not a vector: only a list's members are counted as differentiable inputs.
  static at::Tensor forward(AutogradContext* context, const RecomputedFunction& body, at::TensorList inputs) {
    context->save_for_backward(inputs.vec());
    context->saved_data["body"] = c10::IValue::make_capsule(c10::make_intrusive<BodyHolder>(body));
    return body(inputs.vec(), false);
  }

  static variable_list backward(AutogradContext* context, const variable_list& output_gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto holder = context->saved_data["body"].toCapsule();
    const RecomputedFunction& body = static_cast<const BodyHolder*>(holder.get())->body;
    variable_list leaves, wanted;
    for (size_t i = 0; i < saved.size(); ++i) {
      leaves.push_back(saved[i].detach());
      if (!context->needs_input_grad(i)) continue;
      leaves.back().requires_grad_(true);
      wanted.push_back(leaves.back());
    }
    const at::AutoGradMode with_gradients(true);
    const at::Tensor output = body(leaves, true);
    const variable_list found = torch::autograd::grad({output}, wanted, output_gradients, std::nullopt,
                                                      /*create_graph=*/false, /*allow_unused=*/true);
    variable_list gradients(1 + saved.size());  // the first belongs to `body`
    for (size_t i = 0, next = 0; i < saved.size(); ++i) {
      if (leaves[i].requires_grad()) gradients[i + 1] = found[next++];
    }
    return gradients;
  }

 private:
  struct BodyHolder : torch::CustomClassHolder {
    explicit BodyHolder(RecomputedFunction function) : body(std::move(function)) {}
    RecomputedFunction body;
  };
};

}  // namespace

at::Tensor recompute_in_backward(const RecomputedFunction& body, const std::vector<at::Tensor>& inputs) {
  bool differentiable = false;
  for (const at::Tensor& input : inputs) differentiable |= input.requires_grad();
  if (!differentiable || !at::GradMode::is_enabled()) return body(inputs, false);
  return Recompute::apply(body, at::TensorList(inputs));
}

}  // namespace vmoba::model
