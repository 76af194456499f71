#include <ATen/ATen.h>

#include "attention/reference/reference.h"

namespace vmoba::attention::reference {
namespace {

// Attended pairs: rows of every list times the keys of its block, text rows and keys included.
at::Tensor count_pairs(const SparseProblem& problem, const at::Tensor& mask_BNCS) {
  const double heads = static_cast<double>(mask_BNCS.size(0) * mask_BNCS.size(1));
  const double video = static_cast<double>(problem.tables->tokens), text = static_cast<double>(problem.text_tokens);
  const at::Tensor rows_BNC = mask_BNCS.sum(3).to(at::kDouble);
  return (rows_BNC * problem.tables->block_tokens_C).sum() + heads * (2 * video * text + text * text);
}

class ReferenceBackend final : public SparseBackend {
 public:
  Selection select(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                   const at::Tensor&) const override {
    std::vector<at::Tensor> masks;
    for (int64_t b = 0; b < q_BZND.size(0); ++b) {
      const at::Tensor gates = gate_NCS(*problem.tables, q_BZND[b], k_BZND[b]);
      masks.push_back(select_NCS(*problem.tables, problem.layer, gates));
    }
    return {at::stack(masks)};
  }

  SparseForward attend(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                       const at::Tensor& v_BZND, const Selection& selection) const override {
    const at::Tensor& mask_BNCS = selection.at(0);
    Attended attended = reference::attend(*problem.tables, problem.text_tokens, mask_BNCS, q_BZND, k_BZND, v_BZND);
    return {attended.out_BZND, attended.lse_BNZ, count_pairs(problem, mask_BNCS), selection};
  }

  SparseGradients backward(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                           const at::Tensor& v_BZND, const SparseForward& saved,
                           const at::Tensor& dout_BZND) const override {
    return attend_backward(*problem.tables, problem.text_tokens, saved.selection.at(0), q_BZND, k_BZND, v_BZND,
                           {saved.out_BZND, saved.lse_BNZ}, dout_BZND);
  }

  at::Tensor mask_BNCS(const SparseProblem&, const std::vector<at::Tensor>& selection) const override {
    return selection.at(0);
  }
};

}  // namespace

const SparseBackend& backend() {
  static const ReferenceBackend instance;
  return instance;
}

}  // namespace vmoba::attention::reference
