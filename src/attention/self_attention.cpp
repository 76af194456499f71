#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <c10/util/StringUtil.h>

#include <vector>

#include "attention/attention.h"
#include "attention/block/autograd.h"
#include "attention/dispatch.h"
#include "attention/full/full.h"
#include "attention/full/query_runs.h"
#include "attention/method.h"
#include "attention/observer.h"
#include "attention/samples.h"
#include "core/check.h"

namespace vmoba::attention {
namespace {

std::string sizes(const at::Tensor& x) {
  return c10::str(x.sizes());
}

void check_same_kind(const char* name, const at::Tensor& x, const at::Tensor& q) {
  VMOBA_CHECK_INPUT(x.scalar_type() == q.scalar_type() && x.device() == q.device(),
                    "attention: expected {} like q ({} on {}), found {} on {}", name, c10::toString(q.scalar_type()),
                    q.device().str(), c10::toString(x.scalar_type()), x.device().str());
}

// Of one head.
double all_pairs(const at::Tensor& q_BZND) {
  const double tokens = static_cast<double>(q_BZND.size(1));
  return static_cast<double>(q_BZND.size(0)) * tokens * tokens;
}

void record_all(AttentionStats* stats, const std::string& name, const LayerAttention& layer, const at::Tensor& q_BZND) {
  if (stats == nullptr) return;
  const double pairs = all_pairs(q_BZND);
  stats->record(name, layer, at::full({q_BZND.size(2)}, pairs, at::TensorOptions().dtype(at::kDouble)), pairs);
}

// Samples without padded text.
at::Tensor attend(const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND, const Grid& grid,
                  int64_t text_tokens, const LayerAttention& layer, AttentionStats* stats, at::TensorList learnt,
                  ResultTape* tape) {
  const int64_t blocks = block_count(grid, layer);
  if (blocks == 1) {
    record_all(stats, layer.sparse() ? choice_word(layer.partition) : "full", layer, q_BZND);
    return full_attention(q_BZND, k_BZND, v_BZND, tape);
  }
  if (choose_full(q_BZND, blocks, layer)) {
    record_all(stats, "full", layer, q_BZND);
    return full_attention(q_BZND, k_BZND, v_BZND, tape);
  }
  const BlockEngine& engine = block_engine(layer, q_BZND);
  at::Tensor pairs_N;
  at::Tensor out = block_attention(engine, make_block_problem(q_BZND, grid, text_tokens, layer), q_BZND, k_BZND, v_BZND,
                                   learnt, &pairs_N, tape);
  if (stats != nullptr) stats->record(choice_word(layer.partition), layer, pairs_N, all_pairs(q_BZND));
  return out;
}

}  // namespace

void check_call(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND, const Grid& grid,
                int64_t text_tokens, const LayerAttention& layer, at::IntArrayRef text_lengths) {
  check_tensor("q", q_BSND);
  check_tensor("k", k_BSND);
  check_tensor("v", v_BSND);
  check_same_kind("k", k_BSND, q_BSND);
  check_same_kind("v", v_BSND, q_BSND);
  VMOBA_CHECK_INPUT(k_BSND.sizes() == q_BSND.sizes() && v_BSND.sizes() == q_BSND.sizes(),
                    "attention: expected q, k and v of one shape, found {}, {} and {}", sizes(q_BSND), sizes(k_BSND),
                    sizes(v_BSND));
  check_tokens(q_BSND, grid, text_tokens);
  check_lengths(text_lengths, q_BSND.size(0), 0, text_tokens);
  if (layer.method->check != nullptr) layer.method->check(layer);
}

at::Tensor self_attention(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND,
                          const Grid& grid, int64_t text_tokens, const LayerAttention& layer, AttentionStats* stats,
                          at::IntArrayRef text_lengths, at::TensorList learnt, ResultTape* tape) {
  check_call(q_BSND, k_BSND, v_BSND, grid, text_tokens, layer, text_lengths);
  const size_t wanted = learnt_parameters(layer, q_BSND.size(2), q_BSND.size(3)).size();
  VMOBA_CHECK_INPUT(learnt.size() == wanted, "attention: expected {} learnt tensors of method {}, found {}", wanted,
                    layer.method->name, learnt.size());

  if (AttentionObserver* observer = attention_observer())
    observer->observe(layer, grid, text_tokens, q_BSND, k_BSND, v_BSND);
  return attend_by_samples(
      q_BSND, k_BSND, v_BSND, grid.tokens(), text_tokens, text_lengths,
      [&](const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND, int64_t own_text_tokens) {
        return attend(q_BZND, k_BZND, v_BZND, grid, own_text_tokens, layer, stats, learnt, tape);
      });
}

at::Tensor cross_attention(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND,
                           at::IntArrayRef lengths, ResultTape* tape) {
  check_tensor("q", q_BSND);
  check_tensor("k", k_BLND);
  check_tensor("v", v_BLND);
  check_same_kind("k", k_BLND, q_BSND);
  check_same_kind("v", v_BLND, q_BSND);
  VMOBA_CHECK_INPUT(k_BLND.sizes() == v_BLND.sizes() && k_BLND.size(0) == q_BSND.size(0) &&
                        k_BLND.size(2) == q_BSND.size(2) && k_BLND.size(3) == q_BSND.size(3),
                    "attention: expected k and v of one shape with the batch, heads and head_dim of q, found q {}, "
                    "k {} and v {}",
                    sizes(q_BSND), sizes(k_BLND), sizes(v_BLND));
  check_lengths(lengths, k_BLND.size(0), 1, k_BLND.size(1));
  std::vector<at::Tensor> out;
  for (const EqualSamples& samples : equal_samples(lengths, q_BSND.size(0), k_BLND.size(1))) {
    const auto own = [&](const at::Tensor& x) { return samples.of(x).narrow(1, 0, samples.length); };
    const at::Tensor q = samples.of(q_BSND), k = own(k_BLND), v = own(v_BLND);
    const int64_t runs = q.is_cuda() ? query_runs(q.size(0), q.size(1), q.size(2), k.size(1)) : 1;
    out.push_back(runs == 1 ? full_attention(q, k, v, tape) : attend_in_runs(q, k, v, runs, tape));
  }
  return out.size() == 1 ? out[0] : at::cat(out);
}

}  // namespace vmoba::attention
