#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/reference/reference.h"
#include "attention/reference/tasks.h"

namespace vmoba::attention::reference {
namespace {

// One head in permuted order and in the compute type; q is scaled by 1/sqrt(D).
struct Head {
  at::Tensor q_ZD, k_ZD, v_ZD;
  HeadRows lists;
  std::vector<int64_t> key_start;  // [E+1] first permuted position of each block's keys
};

struct Call {
  const PartitionTables& tables;
  int64_t text_tokens;
  at::Tensor attends_BNEZ;
  const at::Tensor& q_BZND;
  const at::Tensor& k_BZND;
  const at::Tensor& v_BZND;
  at::Tensor order_Z;
  at::ScalarType type;
  double scale;

  Call(const PartitionTables& t, int64_t text, const BlockMask& mask, const at::Tensor& q, const at::Tensor& k,
       const at::Tensor& v)
      : tables(t),
        text_tokens(text),
        attends_BNEZ(mask.attends_BNEZ(t.tokens + text)),
        q_BZND(q),
        k_BZND(k),
        v_BZND(v),
        order_Z(token_order_Z(t, text)),
        type(compute_type(q)),
        scale(1.0 / std::sqrt(static_cast<double>(q.size(3)))) {}

  int64_t heads() const { return q_BZND.size(2); }
  int64_t tasks() const { return q_BZND.size(0) * heads(); }
  at::Tensor rows_ZD(const at::Tensor& x_BZND, int64_t task) const {
    return x_BZND[task / heads()].select(1, task % heads()).index_select(0, order_Z).to(type);
  }
  // Back to original token order, and to the type of `x`.
  void store(at::Tensor& x_BZND, int64_t task, const at::Tensor& rows_ZD) const {
    x_BZND[task / heads()].select(1, task % heads()).index_copy_(0, order_Z, rows_ZD.to(x_BZND.scalar_type()));
  }
  Head head(int64_t task) const {
    Head head{rows_ZD(q_BZND, task).mul(scale), rows_ZD(k_BZND, task), rows_ZD(v_BZND, task),
              index_rows(attends_BNEZ[task / heads()][task % heads()]), tables.block_start};
    if (text_tokens > 0) head.key_start.push_back(tables.tokens + text_tokens);
    return head;
  }
};

struct Chunk {
  at::Tensor rows;             // [R] permuted positions of the queries
  int64_t key_begin, key_end;  // permuted positions of the block's keys
};

// Every (query rows, block) chunk of a head, always in the same order.
template <typename Function>
void for_each_chunk(const Head& head, const Function& function) {
  for (size_t e = 0; e + 1 < head.lists.start.size(); ++e) {
    const int64_t keys = head.key_start[e + 1] - head.key_start[e];
    const int64_t step = rows_per_chunk(keys, head.q_ZD.is_cpu());
    for (int64_t begin = head.lists.start[e]; begin < head.lists.start[e + 1]; begin += step) {
      const int64_t end = std::min(begin + step, head.lists.start[e + 1]);
      function(Chunk{head.lists.rows.slice(0, begin, end), head.key_start[e], head.key_start[e + 1]});
    }
  }
}

// Online softmax over the blocks of one head: (out, lse).
std::pair<at::Tensor, at::Tensor> attend_head(const Head& head) {
  const auto options = head.q_ZD.options();
  const int64_t tokens = head.q_ZD.size(0);
  at::Tensor max_Z = at::full({tokens}, -std::numeric_limits<double>::infinity(), options);
  at::Tensor sum_Z = at::zeros({tokens}, options);
  at::Tensor out_ZD = at::zeros_like(head.q_ZD);
  for_each_chunk(head, [&](const Chunk& chunk) {
    const at::Tensor k_LD = head.k_ZD.slice(0, chunk.key_begin, chunk.key_end);
    const at::Tensor v_LD = head.v_ZD.slice(0, chunk.key_begin, chunk.key_end);
    at::Tensor p_RL = head.q_ZD.index_select(0, chunk.rows).mm(k_LD.t());
    const at::Tensor old_R = max_Z.index_select(0, chunk.rows);
    const at::Tensor max_R = at::maximum(old_R, p_RL.amax(1));
    const at::Tensor keep_R = (old_R - max_R).exp_();
    p_RL.sub_(max_R.unsqueeze(1)).exp_();
    const at::Tensor sum_R = sum_Z.index_select(0, chunk.rows).mul_(keep_R).add_(p_RL.sum(1));
    at::Tensor out_RD = out_ZD.index_select(0, chunk.rows).mul_(keep_R.unsqueeze(1));
    out_RD.addmm_(p_RL, v_LD);
    max_Z.index_copy_(0, chunk.rows, max_R);
    sum_Z.index_copy_(0, chunk.rows, sum_R);
    out_ZD.index_copy_(0, chunk.rows, out_RD);
  });
  out_ZD.div_(sum_Z.unsqueeze(1));
  return {out_ZD, max_Z + sum_Z.log()};
}

struct HeadGradients {
  at::Tensor dq_ZD, dk_ZD, dv_ZD;
};

// With P the softmax: dv = P' dout, dS = P * (dout v' - rowsum(dout * out)), dq = scale dS k, dk = scale dS' q.
HeadGradients backward_head(const Head& head, const at::Tensor& lse_Z, const at::Tensor& out_ZD,
                            const at::Tensor& dout_ZD, double scale) {
  const at::Tensor delta_Z = (out_ZD * dout_ZD).sum(1);
  HeadGradients d{at::zeros_like(head.q_ZD), at::zeros_like(head.k_ZD), at::zeros_like(head.v_ZD)};
  for_each_chunk(head, [&](const Chunk& chunk) {
    const at::Tensor k_LD = head.k_ZD.slice(0, chunk.key_begin, chunk.key_end);
    const at::Tensor v_LD = head.v_ZD.slice(0, chunk.key_begin, chunk.key_end);
    const at::Tensor q_RD = head.q_ZD.index_select(0, chunk.rows);
    const at::Tensor dout_RD = dout_ZD.index_select(0, chunk.rows);
    at::Tensor p_RL = q_RD.mm(k_LD.t());
    p_RL.sub_(lse_Z.index_select(0, chunk.rows).unsqueeze(1)).exp_();
    d.dv_ZD.slice(0, chunk.key_begin, chunk.key_end).addmm_(p_RL.t(), dout_RD);
    at::Tensor ds_RL = dout_RD.mm(v_LD.t());
    ds_RL.sub_(delta_Z.index_select(0, chunk.rows).unsqueeze(1)).mul_(p_RL);
    d.dk_ZD.slice(0, chunk.key_begin, chunk.key_end).addmm_(ds_RL.t(), q_RD);
    d.dq_ZD.index_add_(0, chunk.rows, ds_RL.mm(k_LD));
  });
  d.dq_ZD.mul_(scale);
  return d;
}

}  // namespace

at::ScalarType compute_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

int64_t rows_per_chunk(int64_t keys, bool on_cpu) {
  return std::max<int64_t>(1, (on_cpu ? kScoresPerChunkCpu : kScoresPerChunkGpu) / keys);
}

Attended attend(const PartitionTables& tables, int64_t text_tokens, const BlockMask& mask, const at::Tensor& q_BZND,
                const at::Tensor& k_BZND, const at::Tensor& v_BZND) {
  const Call call(tables, text_tokens, mask, q_BZND, k_BZND, v_BZND);
  Attended attended{at::empty(q_BZND.sizes(), q_BZND.options()),
                    at::empty({q_BZND.size(0), q_BZND.size(2), q_BZND.size(1)}, q_BZND.options().dtype(call.type))};
  for_each_task(call.tasks(), q_BZND.is_cpu(), [&](int64_t task) {
    const auto [out_ZD, lse_Z] = attend_head(call.head(task));
    call.store(attended.out_BZND, task, out_ZD);
    attended.lse_BNZ[task / call.heads()][task % call.heads()].index_copy_(0, call.order_Z, lse_Z);
  });
  return attended;
}

BlockGradients attend_backward(const PartitionTables& tables, int64_t text_tokens, const BlockMask& mask,
                               const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND,
                               const Attended& attended, const at::Tensor& dout_BZND) {
  const Call call(tables, text_tokens, mask, q_BZND, k_BZND, v_BZND);
  const auto like_q = [&] { return at::empty(q_BZND.sizes(), q_BZND.options()); };
  BlockGradients d{like_q(), like_q(), like_q()};
  for_each_task(call.tasks(), q_BZND.is_cpu(), [&](int64_t task) {
    const at::Tensor lse_Z = attended.lse_BNZ[task / call.heads()][task % call.heads()].index_select(0, call.order_Z);
    const HeadGradients head = backward_head(call.head(task), lse_Z, call.rows_ZD(attended.out_BZND, task),
                                             call.rows_ZD(dout_BZND, task), call.scale);
    call.store(d.dq_BZND, task, head.dq_ZD);
    call.store(d.dk_BZND, task, head.dk_ZD);
    call.store(d.dv_BZND, task, head.dv_ZD);
  });
  return d;
}

}  // namespace vmoba::attention::reference
