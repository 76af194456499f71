#include <ATen/ATen.h>

#include <utility>

#include "attention/reference/reference.h"

namespace vmoba::attention::reference {
namespace {

class ReferenceEngine final : public BlockEngine {
 public:
  bool native() const override { return false; }

  Selection index(const BlockProblem& problem, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                  Selection selection) const override {
    const int64_t positions = problem.tables->tokens + problem.text_tokens;
    selection.mask = with_words(problem, std::move(selection.mask));
    selection.lists.length_BNE = selection.mask.attends_BNEZ(positions).sum(3);
    return selection;
  }

  Attended attend(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                  const at::Tensor& v_BZND, const Selection& selection) const override {
    return reference::attend(*problem.tables, problem.text_tokens, selection.mask, q_BZND, k_BZND, v_BZND);
  }

  BlockGradients backward(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                          const at::Tensor& v_BZND, const Selection& selection, const Attended& attended,
                          const at::Tensor& dout_BZND) const override {
    return attend_backward(*problem.tables, problem.text_tokens, selection.mask, q_BZND, k_BZND, v_BZND, attended,
                           dout_BZND);
  }
};

}  // namespace

const BlockEngine& engine() {
  static const ReferenceEngine instance;
  return instance;
}

}  // namespace vmoba::attention::reference
