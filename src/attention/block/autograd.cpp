#include "attention/block/autograd.h"

#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "core/check.h"

namespace vmoba::attention {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SavedCall : torch::CustomClassHolder {
  SavedCall(const BlockEngine& e, BlockProblem p) : engine(&e), problem(std::move(p)) {}
  const BlockEngine* engine;
  BlockProblem problem;
};

struct BlockAttention : torch::autograd::Function<BlockAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                            const at::Tensor& v_BZND, at::TensorList learnt, const c10::intrusive_ptr<SavedCall>& call,
                            at::Tensor* pairs_N) {
    BlockForward result = block_forward(*call->engine, call->problem, q_BZND, k_BZND, v_BZND, learnt);
    *pairs_N = result.pairs_N;
    variable_list saved = {q_BZND, k_BZND, v_BZND, result.attended.out_BZND, result.attended.lse_BNZ};
    Selection::visit_tensors(result.selection, [&](const at::Tensor& tensor) { saved.push_back(tensor); });
    saved.insert(saved.end(), learnt.begin(), learnt.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return result.attended.out_BZND;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    VMOBA_CHECK(!at::GradMode::is_enabled(),
                "attention: expected a first-order backward, found create_graph; VMoBA has no second derivative");
    const auto capsule = ctx->saved_data["call"].toCapsule();
    const auto* call = static_cast<const SavedCall*>(capsule.get());
    const variable_list saved = ctx->get_saved_variables();
    BlockForward forward;
    forward.attended = {saved[3], saved[4]};
    size_t next = 5;
    Selection::visit_tensors(forward.selection, [&](at::Tensor& tensor) { tensor = saved[next++]; });
    const at::TensorList learnt = at::TensorList(saved).slice(next);
    BlockGradients d =
        block_backward(*call->engine, call->problem, saved[0], saved[1], saved[2], forward, grads[0], learnt);
    variable_list out = {d.dq_BZND, d.dk_BZND, d.dv_BZND};
    d.dlearnt.resize(learnt.size());
    out.insert(out.end(), d.dlearnt.begin(), d.dlearnt.end());
    out.resize(out.size() + 2);  // of the call and of `pairs_N`
    return out;
  }
};

}  // namespace

at::Tensor block_attention(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                           const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt,
                           at::Tensor* pairs_N) {
  return BlockAttention::apply(q_BZND, k_BZND, v_BZND, learnt, c10::make_intrusive<SavedCall>(engine, problem),
                               pairs_N);
}

}  // namespace vmoba::attention
