#include "attention/block/engine.h"

#include <ATen/ATen.h>

#include <utility>

#include "attention/method.h"

namespace vmoba::attention {
namespace {

at::Tensor attended_pairs_N(const BlockProblem& problem, const Selection& selection) {
  at::Tensor keys_E = problem.tables->block_tokens_C;
  if (problem.text_tokens > 0) keys_E = at::cat({keys_E, at::full({1}, double(problem.text_tokens), keys_E.options())});
  return (selection.lists.length_BNE.to(at::kDouble) * keys_E).sum(at::IntArrayRef({0, 2}));
}

// One softmax from the softmaxes over two sets of keys.
Attended merged(const Attended& a, const Attended& b) {
  const at::Tensor lse_BNZ = at::logaddexp(a.lse_BNZ, b.lse_BNZ);
  const auto part = [&](const Attended& x) {
    return x.out_BZND.to(lse_BNZ.scalar_type()) * (x.lse_BNZ - lse_BNZ).exp().transpose(1, 2).unsqueeze(-1);
  };
  return {(part(a) + part(b)).to(a.out_BZND.scalar_type()), lse_BNZ};
}

// The branch that the engine does not compute itself.
const ExtraBranch* branch_beside(const BlockEngine& engine, const BlockProblem& problem, const Selection& selection) {
  if (engine.takes_means() && selection.means.keys_BNCD.defined()) return nullptr;
  return extra_branch(problem.layer);
}

void add_if_defined(at::Tensor& sum, const at::Tensor& part) {
  if (part.defined()) sum = sum + part;
}

}  // namespace

Selection block_select(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                       const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt) {
  const Method& method = *problem.layer.method;
  const bool by_kernels = engine.native() && method.select_native != nullptr;
  const SelectFunction select = by_kernels ? method.select_native : method.select;
  return engine.index(problem, q_BZND, k_BZND, v_BZND, select(problem, q_BZND, k_BZND, v_BZND, learnt));
}

BlockForward block_attend(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                          const at::Tensor& k_BZND, const at::Tensor& v_BZND, Selection selection,
                          at::TensorList learnt) {
  Attended attended = engine.attend(problem, q_BZND, k_BZND, v_BZND, selection);
  if (const ExtraBranch* extra = branch_beside(engine, problem, selection))
    attended = merged(attended, extra->attend(problem, selection, q_BZND, k_BZND, v_BZND, learnt));
  at::Tensor pairs_N = attended_pairs_N(problem, selection);
  return {std::move(selection), std::move(attended), std::move(pairs_N)};
}

BlockForward block_forward(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                           const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt) {
  Selection selection = block_select(engine, problem, q_BZND, k_BZND, v_BZND, learnt);
  return block_attend(engine, problem, q_BZND, k_BZND, v_BZND, std::move(selection), learnt);
}

BlockGradients block_backward(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                              const at::Tensor& k_BZND, const at::Tensor& v_BZND, const BlockForward& saved,
                              const at::Tensor& dout_BZND, at::TensorList learnt) {
  BlockGradients d = engine.backward(problem, q_BZND, k_BZND, v_BZND, saved.selection, saved.attended, dout_BZND);
  const ExtraBranch* extra = branch_beside(engine, problem, saved.selection);
  if (extra == nullptr) return d;
  BranchGradients branch =
      extra->backward(problem, saved.selection, q_BZND, k_BZND, v_BZND, learnt, saved.attended, dout_BZND);
  add_if_defined(d.dq_BZND, branch.dq_BZND);
  add_if_defined(d.dk_BZND, branch.dk_BZND);
  add_if_defined(d.dv_BZND, branch.dv_BZND);
  d.dlearnt = std::move(branch.dlearnt);
  return d;
}

BlockMask with_words(const BlockProblem& problem, BlockMask mask) {
  if (mask.words_BNEW.defined()) return mask;
  const at::Tensor of_tokens_BNCS = mask.tiles_BNUC.transpose(2, 3).index_select(3, problem.tiles->tile_of_S);
  mask.words_BNEW = BlockMask::of(of_tokens_BNCS.to(at::kBool), problem.text_tokens).words_BNEW;
  return mask;
}

at::Tensor attends_BNCS(const BlockProblem& problem, const Selection& selection) {
  return with_words(problem, selection.mask).attends_BNEZ(problem.tables->tokens).slice(2, 0, problem.tables->blocks);
}

}  // namespace vmoba::attention
