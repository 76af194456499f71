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

// What is dear of a result: the rest of its selection is made of it.
template <typename Forward, typename Function>
void visit_recorded(Forward& forward, const Function& function) {
  function(forward.attended.out_BZND);
  function(forward.attended.lse_BNZ);
  function(forward.selection.mask.words_BNEW);
  function(forward.selection.mask.tiles_BNUC);
  function(forward.selection.means.keys_BNCD);
  function(forward.selection.means.values_BNCD);
  function(forward.selection.means.bias_BNC);
}

BlockForward computed(const SavedCall& call, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                      const at::Tensor& v_BZND, at::TensorList learnt, ResultTape* tape) {
  if (tape != nullptr && tape->replays()) {
    BlockForward out;
    visit_recorded(out, [&](at::Tensor& tensor) { tensor = tape->next(1).front(); });
    out.selection = call.engine->index(call.problem, q_BZND, k_BZND, v_BZND, std::move(out.selection));
    return out;
  }
  BlockForward out = block_forward(*call.engine, call.problem, q_BZND, k_BZND, v_BZND, learnt);
  if (tape != nullptr) visit_recorded(out, [&](const at::Tensor& tensor) { tape->record({tensor}); });
  return out;
}

struct BlockAttention : torch::autograd::Function<BlockAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                            const at::Tensor& v_BZND, at::TensorList learnt, const c10::intrusive_ptr<SavedCall>& call,
                            at::Tensor* pairs_N, ResultTape* tape) {
    BlockForward result = computed(*call, q_BZND, k_BZND, v_BZND, learnt, tape);
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
    out.resize(out.size() + 3);  // of the call, of `pairs_N` and of the tape
    return out;
  }
};

}  // namespace

at::Tensor block_attention(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                           const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt,
                           at::Tensor* pairs_N, ResultTape* tape) {
  return BlockAttention::apply(q_BZND, k_BZND, v_BZND, learnt, c10::make_intrusive<SavedCall>(engine, problem), pairs_N,
                               tape);
}

}  // namespace vmoba::attention
