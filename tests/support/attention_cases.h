// The case table of VMoBA: drives the forward, gradient and invariance tests. Odd shapes on purpose.
#pragma once
#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "attention/attention.h"
#include "core/random.h"

namespace vmoba::test {

struct AttentionCase {
  std::string name;
  attention::Grid grid;
  attention::LayerAttention layer;
  int64_t text_tokens, batch, heads, head_dim;

  int64_t tokens() const { return grid.tokens() + text_tokens; }
};

inline attention::LayerAttention threshold_layer(std::array<int64_t, 3> chunk, attention::Pool pool, double tau) {
  attention::LayerAttention layer;
  layer.sparse = true;
  layer.partition = chunk[1] == 0   ? attention::Partition::kTemporal
                    : chunk[0] == 0 ? attention::Partition::kSpatial
                                    : attention::Partition::kSpatiotemporal;
  layer.chunk = chunk;
  layer.pool = pool;
  layer.tau = tau;
  return layer;
}

inline attention::LayerAttention topk_layer(std::array<int64_t, 3> chunk, attention::Pool pool, int64_t topk) {
  attention::LayerAttention layer = threshold_layer(chunk, pool, 0.25);
  layer.select = attention::SelectMode::kTopk;
  layer.topk = topk;
  return layer;
}

inline std::vector<AttentionCase> attention_cases() {
  using attention::Pool;
  return {
      {"temporal ragged, query_head", {7, 2, 3}, threshold_layer({2, 0, 0}, Pool::kQueryHead, 0.4), 0, 1, 2, 8},
      {"spatial ragged, block", {3, 5, 7}, threshold_layer({0, 2, 3}, Pool::kBlock, 0.3), 0, 2, 3, 4},
      {"cube ragged, head_global, text", {5, 3, 4}, threshold_layer({2, 2, 3}, Pool::kHeadGlobal, 0.25), 5, 2, 1, 8},
      {"cube, overall, text", {4, 4, 4}, threshold_layer({2, 2, 2}, Pool::kOverall, 0.5), 1, 1, 3, 16},
      {"blocks of one token", {1, 4, 5}, threshold_layer({1, 1, 1}, Pool::kHeadGlobal, 0.2), 0, 1, 2, 8},
      {"tau 0 still takes one", {4, 3, 3}, threshold_layer({1, 0, 0}, Pool::kOverall, 0.0), 0, 1, 2, 8},
      {"topk query_head", {5, 3, 4}, topk_layer({2, 0, 0}, Pool::kQueryHead, 2), 0, 2, 2, 8},
      {"topk head_global, text", {3, 4, 5}, topk_layer({0, 3, 2}, Pool::kHeadGlobal, 3), 4, 1, 2, 8},
      {"topk overall", {3, 4, 4}, topk_layer({2, 2, 3}, Pool::kOverall, 2), 0, 1, 2, 6},
      {"topk 1: own block alone", {4, 2, 3}, topk_layer({1, 0, 0}, Pool::kHeadGlobal, 1), 0, 1, 2, 8},
      {"topk above the block count", {3, 2, 4}, topk_layer({1, 0, 0}, Pool::kHeadGlobal, 9), 0, 2, 1, 8},
      {"one block", {2, 3, 3}, threshold_layer({2, 0, 0}, Pool::kBlock, 0.25), 2, 1, 2, 8},
  };
}

// A standard normal tensor that depends on `name` only.
inline at::Tensor normal_tensor(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype = at::kDouble) {
  at::Tensor x = at::empty(shape, at::kFloat);
  fill_normal(7, name, 0, x.mutable_data_ptr<float>(), x.numel());
  return x.to(dtype);
}

inline at::Tensor case_tensor(const AttentionCase& c, const std::string& name, at::ScalarType dtype = at::kDouble) {
  return normal_tensor(c.name + name, {c.batch, c.tokens(), c.heads, c.head_dim}, dtype);
}

}  // namespace vmoba::test
