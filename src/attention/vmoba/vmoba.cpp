#include "attention/vmoba/vmoba.h"

#include <ATen/ops/one_hot.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "attention/block/partition.h"
#include "core/check.h"

namespace vmoba::attention {
namespace {

// Partition of sparse layer `index`, or kFullLayer.
std::string partition_word(const VmobaConfig& config, int64_t index) {
  if (!config.partitions.empty()) return config.partitions[size_t(index) % config.partitions.size()];
  const int64_t cycle = config.temporal_layers + config.spatial_layers + config.spatiotemporal_layers;
  const int64_t entry = index % cycle;
  if (entry < config.temporal_layers) return choice_word(Partition::kTemporal);
  return choice_word(entry < config.temporal_layers + config.spatial_layers ? Partition::kSpatial
                                                                            : Partition::kSpatiotemporal);
}

// 0: a number of blocks decides.
double density_of(const VmobaConfig& config, int64_t index) {
  if (config.densities.empty()) return config.density;
  return config.densities[size_t(index) % config.densities.size()];
}

int64_t density_steps(const std::any& part) {
  return std::any_cast<const VmobaConfig&>(part).density_steps;
}

void plan(const std::any& part, int64_t index, double sparsity, LayerAttention& layer) {
  const auto& config = std::any_cast<const VmobaConfig&>(part);
  const std::string word = partition_word(config, index);
  if (word == kFullLayer) {
    layer.method = &full_method();
    return;
  }
  layer.partition = choice_value<Partition>(word);
  VmobaRule rule{config.select, config.pool, config.tau};
  rule.query_tile = tile_tokens(config.query_tile);
  rule.density = density_of(config, index);
  if (rule.density > 0) rule.density = std::pow(rule.density, sparsity);
  rule.remainder = config.remainder;
  std::copy_n(config.remainder_block.begin(), 3, rule.remainder_block.begin());
  rule.learns_beta = config.remainder_beta == RemainderBeta::kLearnt;
  for (const std::string& text : config.mean_heads)
    if (const auto place = head_of_layer(text); place && place->layer == layer.index)
      rule.mean_heads.push_back(place->head);
  rule.score = config.score;
  std::copy_n(config.gate_block.begin(), 3, rule.gate_block.begin());
  rule.least_blocks = config.least_blocks;
  switch (layer.partition) {
    case Partition::kTemporal:
      layer.chunk = {config.temporal_chunk, 0, 0};
      rule.topk = config.temporal_topk;
      break;
    case Partition::kSpatial:
      layer.chunk = {0, config.spatial_chunk[0], config.spatial_chunk[1]};
      rule.topk = config.spatial_topk;
      break;
    case Partition::kSpatiotemporal:
      layer.chunk = {config.spatiotemporal_chunk[0], config.spatiotemporal_chunk[1], config.spatiotemporal_chunk[2]};
      rule.topk = config.spatiotemporal_topk;
      break;
  }
  if (config.select == SelectMode::kOwn) {  // no pool decides, so that heads stay independent of each other
    rule.select = SelectMode::kTopk;
    rule.pool = Pool::kQueryHead;
    rule.topk = 1;
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
  VMOBA_CHECK_INPUT(rule.density >= 0 && rule.density <= 1,
                    "attention: expected a density of 0 to 1 (0: topk), found {}", rule.density);
}

// What the pools of one sample compare, of tokens or tiles.
at::Tensor scores_NCU(const BlockProblem& problem, const at::Tensor& q_ZND, const at::Tensor& k_ZND,
                      const HashedChoices& hashed) {
  if (hashed.gate_NCU.defined()) return hashed.gate_NCU;
  if (vmoba_rule(problem.layer).score == Score::kShare) return log_shares_NCU(problem, q_ZND, k_ZND);
  return problem.tiles ? tile_gate_NCU(*problem.tables, *problem.tiles, q_ZND, k_ZND)
                       : gate_NCS(*problem.tables, q_ZND, k_ZND);
}

Selection select(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor&,
                 at::TensorList) {
  const bool tiled = problem.tiles != nullptr;
  const VmobaRule& rule = vmoba_rule(problem.layer);
  const Choosers who = choosers(problem);
  const HashedChoices hashed = hashed_choices(problem, who, q_BZND.size(2));
  std::vector<at::Tensor> of_sample;  // scores of tiles, which are few, or masks of tokens
  for (int64_t b = 0; b < q_BZND.size(0); ++b) {
    const at::Tensor scores = scores_NCU(problem, q_BZND[b], k_BZND[b], hashed);
    of_sample.push_back(tiled ? scores : attention::select(who, rule, scores, hashed.one_more_NU));
  }
  BlockMask mask;
  if (tiled)
    mask.tiles_BNUC =
        select_samples(who, rule, at::stack(of_sample), hashed.one_more_NU).transpose(2, 3).to(at::kByte).contiguous();
  else
    mask = BlockMask::of(at::stack(of_sample), problem.text_tokens);
  leave_to_means(problem, mask);
  return {std::move(mask)};
}

double expected_density(const LayerAttention& layer, int64_t blocks) {
  // Share of the pairs that hold a share `tau` of the attention, about: of a small trained model 0.3, 0.5, 0.7 and 0.85
  // were in 0.12, 0.22, 0.36 and 0.49 of the pairs of cubes of 64.
  constexpr double kSharePower = 3;
  const VmobaRule& rule = vmoba_rule(layer);
  if (rule.select != SelectMode::kThreshold) return std::min(1.0, rule.blocks_per_query(blocks) / double(blocks));
  return std::min(1.0, rule.score == Score::kShare ? std::pow(rule.tau, kSharePower) : rule.tau);
}

double flops(const LayerAttention& layer, const Grid& grid, int64_t heads, int64_t head_dim, double density) {
  const double means = double(remainder_means(grid, layer)) / double(grid.tokens());  // as a share of the keys
  const VmobaRule& rule = vmoba_rule(layer);
  const int64_t gates =
      rule.score == Score::kShare ? sub_block_count(grid, layer.chunk, rule.gate_block) : block_count(grid, layer);
  return attention_flops(grid.tokens(), heads, head_dim, density + means, gates);
}

std::vector<LearntParameter> could_learn(int64_t heads, int64_t) {
  return {{"remainder_beta", {heads}, 0.0}};
}

void check_network(const std::any& part, int64_t layers, int64_t heads) {
  for (const std::string& text : std::any_cast<const VmobaConfig&>(part).mean_heads) {
    const auto place = head_of_layer(text);
    VMOBA_CHECK_INPUT(
        place && place->layer < layers && place->head < heads,
        "expected attention.mean_heads of layers 0 to {} and heads 0 to {}, which the model has, found {}", layers - 1,
        heads - 1, text);
  }
}

std::vector<LearntParameter> learnt(const LayerAttention& layer, int64_t heads, int64_t head_dim) {
  return vmoba_rule(layer).learns_beta ? could_learn(heads, head_dim) : std::vector<LearntParameter>();
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

void leave_to_means(const BlockProblem& problem, BlockMask& mask) {
  const std::vector<int64_t>& heads = vmoba_rule(problem.layer).mean_heads;
  if (heads.empty()) return;
  const bool tiled = mask.tiles_BNUC.defined();
  const at::Tensor& all = tiled ? mask.tiles_BNUC : mask.words_BNEW;
  at::Tensor own = at::one_hot(choosers(problem).block_of.to(at::kLong), problem.tables->blocks);
  if (!tiled)
    own = BlockMask::of(own.t().to(at::kBool).unsqueeze(0).unsqueeze(0), problem.text_tokens).words_BNEW[0][0];
  for (const int64_t head : heads) {
    const int64_t here = head - problem.layer.first_head;
    if (here >= 0 && here < all.size(1)) all.select(1, here).copy_(own);  // others are another rank's
  }
}

const Method& vmoba_method() {
  static const Method row = [] {
    Method m;
    m.name = "vmoba";
    m.part = method_part<VmobaConfig>();
    m.plan = plan;
    m.density_steps = density_steps;
    m.check_network = check_network;
    m.check = check;
    m.select = select;
    m.select_native = vmoba_select_native;
    m.could_learn = could_learn;
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
