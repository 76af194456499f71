#include "attention/vmoba/vmoba.h"

#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>

#include "attention/block/partition.h"
#include "core/check.h"

namespace vmoba::attention {
namespace {

void plan(const std::any& part, int64_t index, LayerAttention& layer) {
  const auto& config = std::any_cast<const VmobaConfig&>(part);
  VmobaRule rule{config.select, config.pool, config.tau};
  rule.remainder = config.remainder;
  std::copy_n(config.remainder_block.begin(), 3, rule.remainder_block.begin());
  rule.query_tile = tile_tokens(config.query_tile);
  const int64_t cycle = config.temporal_layers + config.spatial_layers + config.spatiotemporal_layers;
  const int64_t entry = index % cycle;
  if (entry < config.temporal_layers) {
    layer.partition = Partition::kTemporal;
    layer.chunk = {config.temporal_chunk, 0, 0};
    rule.topk = config.temporal_topk;
  } else if (entry < config.temporal_layers + config.spatial_layers) {
    layer.partition = Partition::kSpatial;
    layer.chunk = {0, config.spatial_chunk[0], config.spatial_chunk[1]};
    rule.topk = config.spatial_topk;
  } else {
    layer.partition = Partition::kSpatiotemporal;
    layer.chunk = {config.spatiotemporal_chunk[0], config.spatiotemporal_chunk[1], config.spatiotemporal_chunk[2]};
    rule.topk = config.spatiotemporal_topk;
  }
  layer.rule = rule;
}

void check(const LayerAttention& layer) {
  const VmobaRule& rule = vmoba_rule(layer);
  if (rule.select == SelectMode::kThreshold) {
    VMOBA_CHECK_INPUT(std::isfinite(rule.tau) && rule.tau >= 0,
                      "attention: expected tau to be a number of at least 0, found {}", rule.tau);
    return;
  }
  VMOBA_CHECK_INPUT(rule.pool != Pool::kBlock,
                    "attention: expected pool query_head, head_global or overall with topk, found block");
  VMOBA_CHECK_INPUT(rule.topk >= 1, "attention: expected topk of at least 1 (the own block counts), found {}",
                    rule.topk);
}

Selection select(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor&,
                 at::TensorList) {
  std::vector<at::Tensor> masks;
  if (problem.tiles != nullptr) {
    const TileTables& tiles = *problem.tiles;
    for (int64_t b = 0; b < q_BZND.size(0); ++b) {
      const at::Tensor gates = tile_gate_NCU(*problem.tables, tiles, q_BZND[b], k_BZND[b]);
      masks.push_back(attention::select(choosers(*problem.tables, tiles), vmoba_rule(problem.layer), gates));
    }
    return {BlockMask{{}, at::stack(masks).transpose(2, 3).to(at::kByte).contiguous()}};
  }
  for (int64_t b = 0; b < q_BZND.size(0); ++b) {
    const at::Tensor gates = gate_NCS(*problem.tables, q_BZND[b], k_BZND[b]);
    masks.push_back(select_NCS(*problem.tables, vmoba_rule(problem.layer), gates));
  }
  return {BlockMask::of(at::stack(masks), problem.text_tokens)};
}

double expected_density(const LayerAttention& layer, int64_t blocks) {
  const VmobaRule& rule = vmoba_rule(layer);
  return std::min(1.0, rule.select == SelectMode::kTopk ? double(rule.topk) / double(blocks) : rule.tau);
}

double flops(const LayerAttention& layer, const Grid& grid, int64_t heads, int64_t head_dim, double density) {
  const double means = double(remainder_means(grid, layer)) / double(grid.tokens());  // as a share of the keys
  return attention_flops(grid.tokens(), heads, head_dim, density + means, block_count(grid, layer));
}

std::vector<LearntParameter> learnt(const LayerAttention& layer, int64_t heads, int64_t) {
  if (!vmoba_rule(layer).learns_beta) return {};
  return {{"beta", {heads}, 0.0}};
}

int64_t query_tile_of(const LayerAttention& layer) {
  return vmoba_rule(layer).query_tile;
}

std::string heads_select_together(const LayerAttention& layer) {
  const Pool pool = vmoba_rule(layer).pool;
  if (pool == Pool::kHeadGlobal || pool == Pool::kQueryHead) return "";
  return "attention.pool=" + choice_word(pool) + "; set attention.pool to head_global or query_head";
}

}  // namespace

const Method& vmoba_method() {
  static const Method row = [] {
    Method m;
    m.name = "vmoba";
    m.part = method_part<VmobaConfig>();
    m.plan = plan;
    m.check = check;
    m.select = select;
    m.select_native = vmoba_select_native;
    m.learnt = learnt;
    m.extra = remainder_branch;
    m.expected_density = expected_density;
    m.flops = flops;
    m.query_tile = query_tile_of;
    m.heads_select_together = heads_select_together;
    return m;
  }();
  return row;
}

}  // namespace vmoba::attention
