// The remainder in tensor operations: per head, every video query against the means of the sub-blocks of all blocks,
// those of attended blocks masked out. Text rows have none: their log-sum-exp is -inf.
//
// Shape letters as in vmoba.h; M means, R queries of one chunk.
#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "attention/reference/reference.h"
#include "attention/reference/tasks.h"
#include "attention/vmoba/vmoba.h"

namespace vmoba::attention {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// What all heads share.
struct Call {
  const BlockProblem& problem;
  const Selection& selection;
  const at::Tensor& q_BZND;
  const at::Tensor& k_BZND;
  const at::Tensor& v_BZND;
  at::TensorList learnt;
  std::shared_ptr<const SubBlocks> means =
      sub_blocks(problem, vmoba_rule(problem.layer).remainder_block, q_BZND.device());
  at::Tensor order_S = problem.tables->token_of_S.to(at::kLong);
  at::ScalarType type = reference::compute_type(q_BZND);
  double scale = 1 / std::sqrt(double(q_BZND.size(3)));

  int64_t heads() const { return q_BZND.size(2); }
  int64_t tasks() const { return q_BZND.size(0) * heads(); }
  // A head's video rows in permuted order.
  at::Tensor rows_SD(const at::Tensor& x_BZND, int64_t task) const {
    return x_BZND[task / heads()].select(1, task % heads()).index_select(0, order_S).to(type);
  }
  // A gradient of the means, spread over their tokens.
  at::Tensor spread_SD(const at::Tensor& d_MD) const {
    return (d_MD / means->tokens_M.unsqueeze(1).to(type)).index_select(0, means->mean_of_S);
  }
  at::Tensor bias_M(int64_t task) const {
    const at::Tensor log_M = means->tokens_M.log().to(type);
    return learnt.empty() ? log_M : log_M + learnt[0][task % heads()].to(type);
  }
  // Bool [C, S].
  at::Tensor attends_CS(int64_t task) const {
    const int64_t b = task / heads(), n = task % heads();
    const BlockMask& mask = selection.mask;
    if (mask.tiles_BNUC.defined())
      return mask.tiles_BNUC[b][n].t().index_select(1, problem.tiles->tile_of_S).to(at::kBool);
    const BlockMask of_head{mask.words_BNEW.slice(0, b, b + 1).slice(1, n, n + 1)};
    return of_head.attends_BNEZ(problem.tables->tokens)[0][0].slice(0, 0, problem.tables->blocks);
  }
};

// One head's scores, some queries at a time.
struct Head {
  at::Tensor q_SD, k_MD, v_MD, bias_M, attends_MS;
  double scale;

  Head(const Call& call, int64_t task)
      : q_SD(call.rows_SD(call.q_BZND, task)),
        k_MD(call.means->means_MD(call.rows_SD(call.k_BZND, task))),
        v_MD(call.means->means_MD(call.rows_SD(call.v_BZND, task))),
        bias_M(call.bias_M(task)),
        attends_MS(call.attends_CS(task).index_select(0, call.means->block_of_M)),
        scale(call.scale) {}

  at::Tensor scores_RM(int64_t begin, int64_t end) const {
    const at::Tensor scores_RM = at::addmm(bias_M, q_SD.slice(0, begin, end), k_MD.t(), 1, scale);
    return scores_RM.masked_fill_(attends_MS.slice(1, begin, end).t(), kNever);
  }
  template <typename Function>
  void for_each_chunk(const Function& function) const {
    const int64_t tokens = q_SD.size(0), step = reference::rows_per_chunk(k_MD.size(0), q_SD.is_cpu());
    for (int64_t begin = 0; begin < tokens; begin += step) function(begin, std::min(begin + step, tokens));
  }
};

Attended attend(const BlockProblem& problem, const Selection& selection, const at::Tensor& q_BZND,
                const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt) {
  const Call call{problem, selection, q_BZND, k_BZND, v_BZND, learnt};
  const auto options = q_BZND.options().dtype(call.type);
  Attended out{at::zeros(q_BZND.sizes(), options),
               at::full({q_BZND.size(0), q_BZND.size(2), q_BZND.size(1)}, kNever, options)};
  reference::for_each_task(call.tasks(), q_BZND.is_cpu(), [&](int64_t task) {
    const Head head(call, task);
    const int64_t b = task / call.heads(), n = task % call.heads();
    at::Tensor out_ZD = out.out_BZND[b].select(1, n), lse_Z = out.lse_BNZ[b][n];
    head.for_each_chunk([&](int64_t begin, int64_t end) {
      const at::Tensor scores_RM = head.scores_RM(begin, end), lse_R = scores_RM.logsumexp(1);
      // A query that attends every block has no means: its row is zeros.
      const at::Tensor p_RM = (scores_RM - lse_R.masked_fill(lse_R == kNever, 0).unsqueeze(1)).exp_();
      const at::Tensor tokens_R = call.order_S.slice(0, begin, end);
      out_ZD.index_copy_(0, tokens_R, p_RM.mm(head.v_MD));
      lse_Z.index_copy_(0, tokens_R, lse_R);
    });
  });
  return out;
}

// P = exp(score - lse), dE = P * (dout v' - rowsum(dout * out)).
BranchGradients backward(const BlockProblem& problem, const Selection& selection, const at::Tensor& q_BZND,
                         const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt,
                         const Attended& merged, const at::Tensor& dout_BZND) {
  const Call call{problem, selection, q_BZND, k_BZND, v_BZND, learnt};
  const auto like_q = [&] { return at::zeros(q_BZND.sizes(), q_BZND.options()); };
  BranchGradients d{like_q(), like_q(), like_q(), {}};
  const at::Tensor dbeta_BN = at::zeros({q_BZND.size(0), q_BZND.size(2)}, q_BZND.options().dtype(call.type));
  reference::for_each_task(call.tasks(), q_BZND.is_cpu(), [&](int64_t task) {
    const Head head(call, task);
    const int64_t b = task / call.heads(), n = task % call.heads();
    const at::Tensor lse_S = merged.lse_BNZ[b][n].index_select(0, call.order_S);
    const at::Tensor dout_SD = call.rows_SD(dout_BZND, task);
    const at::Tensor delta_S = (dout_SD * call.rows_SD(merged.out_BZND, task)).sum(1);
    at::Tensor dq_SD = at::empty_like(head.q_SD), dk_MD = at::zeros_like(head.k_MD), dv_MD = at::zeros_like(head.v_MD);
    at::Tensor dbeta = dbeta_BN[b][n];
    head.for_each_chunk([&](int64_t begin, int64_t end) {
      const auto part = [&](const at::Tensor& x_S) { return x_S.slice(0, begin, end); };
      const at::Tensor p_RM = head.scores_RM(begin, end).sub_(part(lse_S).unsqueeze(1)).exp_();
      dv_MD.addmm_(p_RM.t(), part(dout_SD));
      const at::Tensor de_RM = part(dout_SD).mm(head.v_MD.t()).sub_(part(delta_S).unsqueeze(1)).mul_(p_RM);
      part(dq_SD).copy_(de_RM.mm(head.k_MD).mul_(call.scale));
      dk_MD.addmm_(de_RM.t(), part(head.q_SD), 1, call.scale);
      dbeta.add_(de_RM.sum());
    });
    const auto store = [&](at::Tensor& x_BZND, const at::Tensor& rows_SD) {
      x_BZND[b].select(1, n).index_copy_(0, call.order_S, rows_SD.to(x_BZND.scalar_type()));
    };
    store(d.dq_BZND, dq_SD);
    store(d.dk_BZND, call.spread_SD(dk_MD));
    store(d.dv_BZND, call.spread_SD(dv_MD));
  });
  if (!learnt.empty()) d.dlearnt = {dbeta_BN.sum(0).to(learnt[0].scalar_type())};
  return d;
}

}  // namespace

const ExtraBranch* remainder_branch(const LayerAttention& layer) {
  static const ExtraBranch branch = {attend, backward};
  return vmoba_rule(layer).remainder == Remainder::kNone ? nullptr : &branch;
}

int64_t remainder_means(const Grid& grid, const LayerAttention& layer) {
  const VmobaRule& rule = vmoba_rule(layer);
  if (rule.remainder == Remainder::kNone) return 0;
  return sub_block_count(grid, layer.chunk, rule.remainder_block);
}

}  // namespace vmoba::attention
