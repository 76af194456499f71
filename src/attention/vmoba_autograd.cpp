#include "attention/vmoba_autograd.h"

#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "core/check.h"

namespace vmoba::attention {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SavedCall : torch::CustomClassHolder {
  SavedCall(const SparseBackend& b, SparseProblem p) : backend(&b), problem(std::move(p)) {}
  const SparseBackend* backend;
  SparseProblem problem;
};

struct SparseAttention : torch::autograd::Function<SparseAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                            const at::Tensor& v_BZND, const c10::intrusive_ptr<SavedCall>& call, at::Tensor* pairs) {
    SparseForward result = call->backend->forward(call->problem, q_BZND, k_BZND, v_BZND);
    *pairs = result.pairs;
    variable_list saved = {q_BZND, k_BZND, v_BZND, result.out_BZND, result.lse_BNZ};
    saved.insert(saved.end(), result.selection.begin(), result.selection.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return result.out_BZND;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    VMOBA_CHECK(!at::GradMode::is_enabled(),
                "attention: expected a first-order backward, found create_graph; VMoBA has no second derivative");
    const auto capsule = ctx->saved_data["call"].toCapsule();
    const auto* call = static_cast<const SavedCall*>(capsule.get());
    const variable_list saved = ctx->get_saved_variables();
    SparseForward forward;
    forward.out_BZND = saved[3];
    forward.lse_BNZ = saved[4];
    forward.selection.assign(saved.begin() + 5, saved.end());
    SparseGradients d = call->backend->backward(call->problem, saved[0], saved[1], saved[2], forward, grads[0]);
    return {d.dq_BZND, d.dk_BZND, d.dv_BZND, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor sparse_attention(const SparseBackend& backend, const SparseProblem& problem, const at::Tensor& q_BZND,
                            const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::Tensor* pairs) {
  return SparseAttention::apply(q_BZND, k_BZND, v_BZND, c10::make_intrusive<SavedCall>(backend, problem), pairs);
}

}  // namespace vmoba::attention
