#include "attention/vmoba_op.h"

#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <set>
#include <utility>

#include "attention/native/native.h"
#include "attention/reference/reference.h"
#include "attention/vmoba_autograd.h"
#include "core/check.h"
#include "core/log.h"

namespace vmoba::attention {
namespace {

std::string sizes(const at::Tensor& x) {
  return c10::str(x.sizes());
}

void check_tensor(const char* name, const at::Tensor& x_BZND) {
  VMOBA_CHECK_INPUT(x_BZND.defined() && x_BZND.dim() == 4 && x_BZND.numel() > 0,
                    "attention: expected {} as a non-empty [batch, tokens, heads, head_dim], found {}", name,
                    x_BZND.defined() ? sizes(x_BZND) : "no tensor");
  const at::ScalarType dtype = x_BZND.scalar_type();
  VMOBA_CHECK_INPUT(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                    "attention: expected {} in fp32, fp64 or bf16, found {}", name, c10::toString(dtype));
}

void check_same_kind(const char* name, const at::Tensor& x, const at::Tensor& q) {
  VMOBA_CHECK_INPUT(x.scalar_type() == q.scalar_type() && x.device() == q.device(),
                    "attention: expected {} like q ({} on {}), found {} on {}", name, c10::toString(q.scalar_type()),
                    q.device().str(), c10::toString(x.scalar_type()), x.device().str());
}

void check_tokens(const at::Tensor& q_BZND, const Grid& grid, int64_t text_tokens) {
  VMOBA_CHECK_INPUT(grid.t >= 1 && grid.h >= 1 && grid.w >= 1 && text_tokens >= 0,
                    "attention: expected a grid of at least 1x1x1 and text tokens of at least 0, found {}x{}x{} and {}",
                    grid.t, grid.h, grid.w, text_tokens);
  VMOBA_CHECK_INPUT(q_BZND.size(1) == grid.tokens() + text_tokens,
                    "attention: expected {} tokens (grid {}x{}x{} and {} of text), found q {}",
                    grid.tokens() + text_tokens, grid.t, grid.h, grid.w, text_tokens, sizes(q_BZND));
}

void check_layer(const LayerAttention& layer) {
  if (layer.select == SelectMode::kThreshold) {
    VMOBA_CHECK_INPUT(std::isfinite(layer.tau) && layer.tau >= 0,
                      "attention: expected tau to be a number of at least 0, found {}", layer.tau);
    return;
  }
  VMOBA_CHECK_INPUT(layer.pool != Pool::kBlock,
                    "attention: expected pool query_head, head_global or overall with topk, found block");
  VMOBA_CHECK_INPUT(layer.topk >= 1, "attention: expected topk of at least 1 (the own block counts), found {}",
                    layer.topk);
}

double all_pairs(const at::Tensor& q_BZND) {
  const double tokens = static_cast<double>(q_BZND.size(1));
  return static_cast<double>(q_BZND.size(0) * q_BZND.size(2)) * tokens * tokens;
}

// cuDNN's kernels first wherever they can run: the fastest of torch's on Hopper.
void prefer_cudnn() {
  static std::once_flag once;
  std::call_once(once, [] {
    std::vector<int64_t> order;
    for (const at::SDPBackend backend :
         {at::SDPBackend::cudnn_attention, at::SDPBackend::flash_attention, at::SDPBackend::efficient_attention,
          at::SDPBackend::math, at::SDPBackend::overrideable})
      order.push_back(static_cast<int64_t>(backend));
    at::globalContext().setSDPPriorityOrder(order);
  });
}

at::Tensor full_attention(const at::Tensor& q_BZND, const at::Tensor& k_BLND, const at::Tensor& v_BLND) {
  if (q_BZND.is_cuda()) prefer_cudnn();
  return at::scaled_dot_product_attention(q_BZND.transpose(1, 2), k_BLND.transpose(1, 2), v_BLND.transpose(1, 2))
      .transpose(1, 2);
}

at::Tensor all_pairs_tensor(const at::Tensor& q_BZND) {
  return at::scalar_tensor(all_pairs(q_BZND), at::TensorOptions().dtype(at::kDouble));
}

bool choose_full(const at::Tensor& q_BZND, int64_t blocks, const LayerAttention& layer) {
  return layer.full_when_faster && layer.implementation == "auto" && native::unsupported_reason(q_BZND).empty() &&
         full_is_faster(q_BZND.size(1), blocks, layer);
}

// Once for every size and partition.
void log_full_choice(int64_t tokens, int64_t blocks, const LayerAttention& layer) {
  static std::mutex mutex;
  static std::set<std::pair<int64_t, int64_t>> seen;
  const std::lock_guard lock(mutex);
  if (!seen.emplace(tokens, blocks).second) return;
  log_info(
      "attention: full attention in place of the {} partition of {} tokens in {} blocks, which would be slower; "
      "attention.full_when_faster=false keeps VMoBA",
      partition_name(layer.partition), tokens, blocks);
}

}  // namespace

bool full_is_faster(int64_t tokens, int64_t blocks, const LayerAttention& layer) {
  // Break-even of forward and backward at about 2,400 tokens, of the forward alone at 4,100; at densities of 0.77
  // (13,440 tokens) to 0.92 (55,296), which thresholds a little higher give. One rule for training and sampling: with
  // activation checkpointing a layer runs in both modes and must compute the same.
  constexpr int64_t kFewTokens = 3000;
  constexpr double kDense = 0.8;
  const double asked = layer.select == SelectMode::kTopk ? double(layer.topk) / double(blocks) : layer.tau;
  return tokens < kFewTokens || std::max(asked, 1.0 / double(blocks)) >= kDense;
}

const SparseBackend& sparse_backend(const std::string& implementation, const at::Tensor& q_BZND) {
  VMOBA_CHECK_INPUT(implementation == "auto" || implementation == "reference" || implementation == "native",
                    "expected attention.implementation to be auto, reference or native, found '{}'", implementation);
  if (implementation == "reference") return reference::backend();
  const std::string reason = native::unsupported_reason(q_BZND);
  if (reason.empty()) return native::backend();
  VMOBA_CHECK_INPUT(implementation != "native",
                    "attention.implementation=native: expected bf16 tensors of head size up to 128 on a GPU of compute "
                    "capability 8.0 or later, found {}; set attention.implementation to auto or reference",
                    reason);
  return reference::backend();
}

SparseProblem make_sparse_problem(const at::Tensor& q_BZND, const Grid& grid, int64_t text_tokens,
                                  const LayerAttention& layer) {
  check_tensor("q", q_BZND);
  check_tokens(q_BZND, grid, text_tokens);
  check_layer(layer);
  return {grid, text_tokens, layer, partition_tables(grid, layer.chunk, q_BZND.device())};
}

at::Tensor self_attention(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND,
                          const Grid& grid, int64_t text_tokens, const LayerAttention& layer, AttentionStats* stats) {
  check_tensor("q", q_BSND);
  check_tensor("k", k_BSND);
  check_tensor("v", v_BSND);
  check_same_kind("k", k_BSND, q_BSND);
  check_same_kind("v", v_BSND, q_BSND);
  VMOBA_CHECK_INPUT(k_BSND.sizes() == q_BSND.sizes() && v_BSND.sizes() == q_BSND.sizes(),
                    "attention: expected q, k and v of one shape, found {}, {} and {}", sizes(q_BSND), sizes(k_BSND),
                    sizes(v_BSND));
  check_tokens(q_BSND, grid, text_tokens);
  if (layer.sparse) check_layer(layer);
  const int64_t blocks = block_count(grid, layer);
  if (blocks == 1) {
    if (stats != nullptr) {
      const double pairs = all_pairs(q_BSND);
      stats->record(layer.sparse ? partition_name(layer.partition) : "full", all_pairs_tensor(q_BSND), pairs);
    }
    return full_attention(q_BSND, k_BSND, v_BSND);
  }
  if (choose_full(q_BSND, blocks, layer)) {
    log_full_choice(q_BSND.size(1), blocks, layer);
    if (stats != nullptr) stats->record("full", all_pairs_tensor(q_BSND), all_pairs(q_BSND));
    return full_attention(q_BSND, k_BSND, v_BSND);
  }
  const SparseBackend& backend = sparse_backend(layer.implementation, q_BSND);
  at::Tensor pairs;
  at::Tensor out =
      sparse_attention(backend, make_sparse_problem(q_BSND, grid, text_tokens, layer), q_BSND, k_BSND, v_BSND, &pairs);
  if (stats != nullptr) stats->record(partition_name(layer.partition), pairs, all_pairs(q_BSND));
  return out;
}

at::Tensor cross_attention(const at::Tensor& q_BSND, const at::Tensor& k_BLND, const at::Tensor& v_BLND) {
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
  return full_attention(q_BSND, k_BLND, v_BLND);
}

}  // namespace vmoba::attention
