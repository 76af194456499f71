// Shares as scores: the estimate, from means of keys, of the part of its attention that a query gives to each block.
//
// Shape letters as in vmoba.h; M sub-blocks, R queries of one chunk.
#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "attention/reference/reference.h"
#include "attention/reference/tasks.h"
#include "attention/vmoba/vmoba.h"

namespace vmoba::attention {

at::Tensor log_shares(const SubBlocks& means, const at::Tensor& scores_RM) {
  at::Tensor scores_RC = scores_RM;
  if (!means.whole()) {
    // A block with fewer sub-blocks than others has one more, of no tokens.
    const at::Tensor padded = at::constant_pad_nd(scores_RM, {0, 1}, -std::numeric_limits<double>::infinity());
    std::vector<int64_t> shape = scores_RM.sizes().vec();
    shape.back() = means.of_block_CK.size(0);
    shape.push_back(means.of_block_CK.size(1));
    scores_RC = padded.index_select(-1, means.of_block_CK.flatten()).view(shape).logsumexp(-1);
  }
  return scores_RC - scores_RC.logsumexp({-1}, /*keepdim=*/true);
}

void log_shares_into(const BlockProblem& problem, const at::Tensor& q_ZND, const at::Tensor& k_ZND,
                     const at::Tensor& out_NCU) {
  const auto means = sub_blocks(problem, vmoba_rule(problem.layer).gate_block, q_ZND.device());
  const at::ScalarType type = reference::compute_type(q_ZND);
  const at::Tensor order_S = problem.tables->token_of_S.to(at::kLong), log_M = means->tokens_M.log().to(type);
  const double scale = 1 / std::sqrt(double(q_ZND.size(2)));
  reference::for_each_task(q_ZND.size(1), q_ZND.is_cpu(), [&](int64_t n) {
    const auto rows_SD = [&](const at::Tensor& x_ZND) { return x_ZND.select(1, n).index_select(0, order_S).to(type); };
    const at::Tensor q_SD = rows_SD(q_ZND), k_DM = means->means_MD(rows_SD(k_ZND)).t();
    const at::Tensor q_UD = problem.tiles ? means_of_runs_RD(q_SD, problem.tiles->start) : q_SD;
    const int64_t choosers = q_UD.size(0), step = reference::rows_per_chunk(means->count(), q_UD.is_cpu());
    for (int64_t begin = 0; begin < choosers; begin += step) {
      const int64_t end = std::min(begin + step, choosers);
      const at::Tensor scores_RM = at::addmm(log_M, q_UD.slice(0, begin, end), k_DM, 1, scale);
      out_NCU[n].slice(1, begin, end).copy_(log_shares(*means, scores_RM).t());
    }
  });
}

at::Tensor log_shares_NCU(const BlockProblem& problem, const at::Tensor& q_ZND, const at::Tensor& k_ZND) {
  const int64_t count = problem.tiles ? problem.tiles->tiles : problem.tables->tokens;
  const at::Tensor out_NCU =
      at::empty({q_ZND.size(1), problem.tables->blocks, count}, q_ZND.options().dtype(reference::compute_type(q_ZND)));
  log_shares_into(problem, q_ZND, k_ZND, out_NCU);
  return out_NCU;
}

}  // namespace vmoba::attention
