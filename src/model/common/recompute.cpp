#include "model/common/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "model/common/host_inputs.h"

namespace vmoba::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Recompute : torch::autograd::Function<Recompute> {
  // at::TensorList and not a vector: only a list's members are counted as differentiable inputs.
  static at::Tensor forward(AutogradContext* context, const RecomputedFunction& body,
                            const std::set<std::string>& wanted, HostInputs* host, at::TensorList inputs) {
    Kept kept = Kept::first_run(wanted);
    variable_list saved = inputs.vec();
    HostInputs::Handle away;
    if (host != nullptr) away = host->put(std::exchange(saved[0], at::Tensor()));
    at::Tensor output = body(inputs.vec(), kept);
    std::vector<std::string> names;  // of those behind the inputs
    for (const auto& [name, tensors] : kept.tensors()) {
      names.insert(names.end(), tensors.size(), name);
      saved.insert(saved.end(), tensors.begin(), tensors.end());
    }
    context->save_for_backward(saved);
    context->saved_data["body"] =
        c10::IValue::make_capsule(c10::make_intrusive<FirstRun>(body, std::move(names), host, std::move(away)));
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& output_gradients) {
    variable_list saved = context->get_saved_variables();
    const auto holder = context->saved_data["body"].toCapsule();
    const auto& first = static_cast<const FirstRun&>(*holder);
    if (first.away) saved[0] = first.host->take(first.away);
    const size_t inputs = saved.size() - first.kept.size();
    std::map<std::string, std::vector<at::Tensor>> tensors;
    for (size_t i = 0; i < first.kept.size(); ++i) tensors[first.kept[i]].push_back(saved[inputs + i]);
    variable_list leaves, wanted;
    for (size_t i = 0; i < inputs; ++i) {
      leaves.push_back(saved[i].detach());
      if (!context->needs_input_grad(i)) continue;
      leaves.back().requires_grad_(true);
      wanted.push_back(leaves.back());
    }
    const at::AutoGradMode with_gradients(true);
    Kept kept = Kept::second_run(std::move(tensors));
    const at::Tensor output = first.body(leaves, kept);
    const variable_list found = torch::autograd::grad({output}, wanted, output_gradients, std::nullopt,
                                                      /*create_graph=*/false, /*allow_unused=*/true);
    variable_list gradients(3 + inputs);  // the first three belong to `body`, `wanted` and `host`
    for (size_t i = 0, next = 0; i < inputs; ++i) {
      if (leaves[i].requires_grad()) gradients[i + 3] = found[next++];
    }
    return gradients;
  }

 private:
  struct FirstRun : torch::CustomClassHolder {
    FirstRun(RecomputedFunction function, std::vector<std::string> names, HostInputs* host, HostInputs::Handle away)
        : body(std::move(function)), kept(std::move(names)), host(host), away(std::move(away)) {}
    RecomputedFunction body;
    std::vector<std::string> kept;
    HostInputs* host;
    HostInputs::Handle away;  // the first input; null: saved with the others
  };
};

}  // namespace

Kept Kept::first_run(std::set<std::string> wanted) {
  Kept kept;
  kept.wanted_ = std::move(wanted);
  return kept;
}

Kept Kept::second_run(std::map<std::string, std::vector<at::Tensor>> tensors) {
  Kept kept;
  kept.again_ = true;
  kept.tensors_ = std::move(tensors);
  return kept;
}

void Kept::keep(const std::string& name, const std::vector<at::Tensor>& tensors) {
  if (!wants(name)) return;
  std::vector<at::Tensor> values;
  for (const at::Tensor& tensor : tensors) values.push_back(tensor.defined() ? tensor.detach() : tensor);
  VMOBA_CHECK(tensors_.emplace(name, std::move(values)).second,
              "expected '{}' of a recomputed body to be kept once, found it twice", name);
}

std::vector<at::Tensor> Kept::fetch_all(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (!again_ || found == tensors_.end()) return {};
  std::vector<at::Tensor> out;
  // Other tensors each time: who takes one may give it a history.
  for (const at::Tensor& tensor : found->second) out.push_back(tensor.defined() ? tensor.detach() : tensor);
  return out;
}

at::Tensor Kept::fetch(const std::string& name) const {
  const std::vector<at::Tensor> found = fetch_all(name);
  VMOBA_CHECK(found.size() < 2, "expected one tensor '{}' of a recomputed body, found {}", name, found.size());
  return found.empty() ? at::Tensor() : found.front();
}

at::Tensor recompute_in_backward(const RecomputedFunction& body, const std::vector<at::Tensor>& inputs,
                                 const RecomputePolicy& policy, HostInputs* host) {
  const bool differentiable =
      std::any_of(inputs.begin(), inputs.end(), [](const at::Tensor& input) { return input.requires_grad(); });
  if (policy.enabled && differentiable && at::GradMode::is_enabled())
    return Recompute::apply(body, policy.kept, host, at::TensorList(inputs));
  Kept nothing;
  return body(inputs, nothing);
}

}  // namespace vmoba::model
