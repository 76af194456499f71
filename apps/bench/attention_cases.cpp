#include "apps/bench/attention_cases.h"

#include <ATen/ops/empty.h>

#include "attention/vmoba/vmoba.h"
#include "core/check.h"
#include "core/random.h"

namespace vmoba::bench {

using attention::LayerAttention;
using attention::Partition;
using attention::Pool;
using attention::VmobaRule;

namespace {

LayerAttention layer_with(std::array<int64_t, 3> chunk, const VmobaRule& rule) {
  LayerAttention layer;
  layer.method = &attention::vmoba_method();
  layer.partition = chunk[1] == 0   ? Partition::kTemporal
                    : chunk[0] == 0 ? Partition::kSpatial
                                    : Partition::kSpatiotemporal;
  layer.chunk = chunk;
  layer.rule = rule;
  return layer;
}

}  // namespace

LayerAttention threshold_layer(std::array<int64_t, 3> chunk, Pool pool, double tau) {
  return layer_with(chunk, {attention::SelectMode::kThreshold, pool, tau, 1});
}

LayerAttention topk_layer(std::array<int64_t, 3> chunk, Pool pool, int64_t topk) {
  return layer_with(chunk, {attention::SelectMode::kTopk, pool, 0.25, topk});
}

LayerAttention tiled(LayerAttention layer, int64_t query_tile) {
  vmoba_rule(layer).query_tile = query_tile;
  return layer;
}

LayerAttention with_remainder(LayerAttention layer, std::array<int64_t, 3> block) {
  attention::VmobaRule& rule = vmoba_rule(layer);
  rule.remainder = attention::Remainder::kOneSoftmax;
  rule.remainder_block = block;
  return layer;
}

LayerAttention by_shares(LayerAttention layer, std::array<int64_t, 3> block, int64_t least_blocks) {
  attention::VmobaRule& rule = vmoba_rule(layer);
  rule.score = attention::Score::kShare;
  rule.gate_block = block;
  rule.least_blocks = least_blocks;
  return layer;
}

const std::vector<AttentionCase>& small_cases() {
  static const std::vector<AttentionCase> cases = {
      {"temporal-ragged-query-head", {7, 2, 3}, threshold_layer({2, 0, 0}, Pool::kQueryHead, 0.4), 0, 1, 2, 8},
      {"spatial-ragged-block", {3, 5, 7}, threshold_layer({0, 2, 3}, Pool::kBlock, 0.3), 0, 2, 3, 4},
      {"cube-ragged-head-global-text", {5, 3, 4}, threshold_layer({2, 2, 3}, Pool::kHeadGlobal, 0.25), 5, 2, 1, 8},
      {"cube-overall-text", {4, 4, 4}, threshold_layer({2, 2, 2}, Pool::kOverall, 0.5), 1, 1, 3, 16},
      {"blocks-of-one-token", {1, 4, 5}, threshold_layer({1, 1, 1}, Pool::kHeadGlobal, 0.2), 0, 1, 2, 8},
      {"tau-0-still-takes-one", {4, 3, 3}, threshold_layer({1, 0, 0}, Pool::kOverall, 0.0), 0, 1, 2, 8},
      {"topk-query-head", {5, 3, 4}, topk_layer({2, 0, 0}, Pool::kQueryHead, 2), 0, 2, 2, 8},
      {"topk-head-global-text", {3, 4, 5}, topk_layer({0, 3, 2}, Pool::kHeadGlobal, 3), 4, 1, 2, 8},
      {"topk-overall", {3, 4, 4}, topk_layer({2, 2, 3}, Pool::kOverall, 2), 0, 1, 2, 6},
      {"topk-1-own-block-alone", {4, 2, 3}, topk_layer({1, 0, 0}, Pool::kHeadGlobal, 1), 0, 1, 2, 8},
      {"topk-above-block-count", {3, 2, 4}, topk_layer({1, 0, 0}, Pool::kHeadGlobal, 9), 0, 2, 1, 8},
      {"one-block", {2, 3, 3}, threshold_layer({2, 0, 0}, Pool::kBlock, 0.25), 2, 1, 2, 8},
      {"padded-text", {4, 3, 4}, threshold_layer({2, 2, 2}, Pool::kHeadGlobal, 0.3), 6, 3, 2, 8, {2, 6, 0}},
      {"equally-padded-text", {5, 2, 4}, topk_layer({0, 1, 2}, Pool::kQueryHead, 2), 5, 3, 2, 8, {3, 3, 3}},
      {"one-block-padded-text", {2, 3, 3}, threshold_layer({2, 0, 0}, Pool::kBlock, 0.25), 4, 3, 2, 8, {4, 1, 3}},
  };
  return cases;
}

const std::vector<AttentionCase>& tile_cases() {
  static const std::vector<AttentionCase> cases = {
      {"tiles-of-4-text", {5, 3, 4}, tiled(threshold_layer({2, 2, 3}, Pool::kHeadGlobal, 0.3), 4), 5, 2, 2, 8},
      {"tiles-of-3-block", {3, 5, 7}, tiled(threshold_layer({0, 2, 3}, Pool::kBlock, 0.3), 3), 0, 1, 3, 8},
      {"tiles-of-5-overall", {4, 4, 4}, tiled(threshold_layer({2, 2, 2}, Pool::kOverall, 0.4), 5), 0, 2, 2, 16},
      {"cubes-choose-cubes", {4, 6, 6}, tiled(topk_layer({2, 3, 3}, Pool::kQueryHead, 3), 0), 3, 1, 2, 8},
      {"cubes-head-global", {5, 4, 6}, tiled(topk_layer({2, 2, 3}, Pool::kHeadGlobal, 3), 0), 0, 2, 2, 8},
  };
  return cases;
}

const std::vector<AttentionCase>& remainder_cases() {
  const auto mean_heads = [](LayerAttention layer, const std::vector<int64_t>& heads) {
    vmoba_rule(layer).mean_heads = heads;
    return layer;
  };
  const auto cubes = [](int64_t topk) { return topk_layer({2, 3, 3}, Pool::kQueryHead, topk); };
  static const std::vector<AttentionCase> cases = {
      {"remainder-of-queries",
       {5, 4, 6},
       with_remainder(threshold_layer({2, 2, 3}, Pool::kHeadGlobal, 0.3)),
       0,
       2,
       2,
       8},
      {"remainder-temporal", {7, 2, 3}, with_remainder(topk_layer({2, 0, 0}, Pool::kQueryHead, 2)), 0, 1, 2, 8},
      {"remainder-of-cubes", {4, 6, 6}, with_remainder(tiled(cubes(3), 0)), 0, 1, 2, 8},
      {"remainder-of-tiles-text", {5, 6, 7}, with_remainder(tiled(cubes(2), 4)), 5, 2, 2, 8, {5, 2}},
      {"remainder-of-mean-heads", {4, 6, 6}, mean_heads(with_remainder(tiled(cubes(3), 0)), {1}), 0, 2, 3, 8},
      {"remainder-of-mean-heads-text", {4, 6, 6}, mean_heads(with_remainder(cubes(3)), {0}), 4, 1, 2, 8},
      {"remainder-own-blocks-alone", {4, 4, 6}, with_remainder(tiled(cubes(1), 0)), 0, 1, 2, 8},
      {"remainder-of-nothing", {4, 4, 6}, with_remainder(tiled(cubes(99), 0)), 0, 1, 2, 8},
      {"remainder-in-parts", {5, 6, 7}, with_remainder(cubes(3), {1, 2, 2}), 0, 1, 2, 8},
      {"remainder-in-parts-of-tiles", {5, 6, 7}, with_remainder(tiled(cubes(3), 0), {0, 2, 0}), 3, 1, 2, 8},
      {"remainder-in-parts-spatial",
       {4, 5, 7},
       with_remainder(threshold_layer({0, 2, 3}, Pool::kOverall, 0.3), {3, 0, 2}),
       0,
       1,
       2,
       8},
  };
  return cases;
}

const std::vector<AttentionCase>& share_cases() {
  const auto threshold = [](Pool pool, double tau) { return threshold_layer({2, 3, 3}, pool, tau); };
  const auto topk = [](Pool pool, int64_t k) { return topk_layer({2, 3, 3}, pool, k); };
  static const std::vector<AttentionCase> cases = {
      {"shares-of-queries", {5, 6, 7}, by_shares(threshold(Pool::kQueryHead, 0.5)), 0, 2, 2, 8},
      {"shares-of-queries-topk", {5, 6, 7}, by_shares(topk(Pool::kHeadGlobal, 3), {1, 2, 2}), 0, 1, 2, 8},
      {"shares-of-queries-least", {4, 6, 6}, by_shares(topk(Pool::kOverall, 3), {0, 0, 0}, 2), 4, 2, 2, 8},
      {"shares-block", {4, 6, 6}, by_shares(threshold(Pool::kBlock, 0.5)), 0, 1, 2, 8},
      {"shares-of-cubes", {5, 6, 7}, by_shares(tiled(topk(Pool::kQueryHead, 3), 0)), 0, 2, 2, 8},
      {"shares-of-cubes-fine-text", {5, 6, 7}, by_shares(tiled(topk(Pool::kQueryHead, 3), 0), {1, 2, 2}), 5, 2, 3, 8},
      {"shares-of-cubes-overall", {5, 6, 7}, by_shares(tiled(topk(Pool::kOverall, 3), 0), {1, 2, 2}, 2), 0, 2, 3, 8},
      {"shares-of-tiles-threshold", {5, 6, 7}, by_shares(tiled(threshold(Pool::kOverall, 0.5), 4)), 3, 2, 2, 8},
      {"shares-of-cubes-head-remainder",
       {4, 6, 6},
       with_remainder(by_shares(tiled(threshold(Pool::kHeadGlobal, 0.5), 0), {2, 2, 2}, 2)),
       0,
       2,
       2,
       8},
  };
  return cases;
}

const std::vector<AttentionCase>& published_cases() {
  constexpr attention::Grid kGrid = {24, 36, 64};
  static const std::vector<AttentionCase> cases = {
      {"published-temporal", kGrid, threshold_layer({3, 0, 0}, Pool::kHeadGlobal, 0.25), 0, 1, 12, 128},
      {"published-spatial", kGrid, threshold_layer({0, 6, 8}, Pool::kHeadGlobal, 0.25), 0, 1, 12, 128},
      {"published-spatiotemporal", kGrid, threshold_layer({6, 9, 16}, Pool::kHeadGlobal, 0.25), 0, 1, 12, 128},
      {"published-cubes-20", kGrid, tiled(topk_layer({4, 4, 4}, Pool::kQueryHead, 173), 0), 0, 1, 12, 128},
      {"published-cubes-20-remainder", kGrid, with_remainder(tiled(topk_layer({4, 4, 4}, Pool::kQueryHead, 173), 0)), 0,
       1, 12, 128},
      {"published-cubes-5", kGrid, tiled(topk_layer({4, 4, 4}, Pool::kQueryHead, 43), 0), 0, 1, 12, 128},
      {"published-cubes-5-remainder", kGrid, with_remainder(tiled(topk_layer({4, 4, 4}, Pool::kQueryHead, 43), 0)), 0,
       1, 12, 128},
      {"published-spatiotemporal-text", kGrid, threshold_layer({6, 9, 16}, Pool::kHeadGlobal, 0.25), 256, 1, 12, 128},
  };
  return cases;
}

const AttentionCase& find_case(const std::string& name) {
  std::string known;
  for (const auto* cases : {&small_cases(), &tile_cases(), &remainder_cases(), &share_cases(), &published_cases()})
    for (const AttentionCase& c : *cases) {
      if (c.name == name) return c;
      known += (known.empty() ? "" : ", ") + c.name;
    }
  throw_input("--case: expected one of {}, found '{}'", known, name);
}

at::Tensor normal_tensor(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype) {
  at::Tensor x = at::empty(shape, at::kFloat);
  fill_normal(7, name, 0, x.mutable_data_ptr<float>(), x.numel());
  return x.to(dtype);
}

at::Tensor case_tensor(const AttentionCase& c, const std::string& name, at::ScalarType dtype) {
  return normal_tensor(c.name + name, {c.batch, c.tokens(), c.heads, c.head_dim}, dtype);
}

}  // namespace vmoba::bench
