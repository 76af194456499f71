#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "attention/reference/tasks.h"
#include "attention/vmoba/vmoba.h"

namespace vmoba::attention {
namespace {

constexpr double kEps = 1e-6;  // of the official code: flat pools and empty sums

// The tasks of a pool kind: task i handles the pools inside pool_slice(x, pool, i), pools_of_task() of them at once.
int64_t task_count(Pool pool, int64_t heads, int64_t blocks) {
  switch (pool) {
    case Pool::kQueryHead:
    case Pool::kHeadGlobal:
      return heads;
    case Pool::kBlock:
      return blocks;
    case Pool::kOverall:
      return 1;
  }
  return 0;
}

// A view; flattened per pool it lists the pool's values in the order that breaks ties: block, head, token.
at::Tensor pool_slice(const at::Tensor& x_NCS, Pool pool, int64_t task) {
  switch (pool) {
    case Pool::kQueryHead:
      return x_NCS[task].t();
    case Pool::kHeadGlobal:
      return x_NCS[task];
    case Pool::kBlock:
      return x_NCS.select(1, task);
    case Pool::kOverall:
      break;
  }
  return x_NCS.transpose(0, 1);
}

int64_t pools_of_task(Pool pool, int64_t tokens) {
  return pool == Pool::kQueryHead ? tokens : 1;
}

// Gates of some pools, one a row, and their order.
struct Pools {
  at::Tensor gate_PM, own_PM;
  at::Tensor weight_M;             // fp64, what each entry counts; undefined: 1
  at::Tensor sorted_PM, order_PM;  // falling gates, own entries last
  int64_t others = 0;              // entries that are not own

  at::Tensor weighted(const at::Tensor& x_PM) const { return weight_M.defined() ? x_PM * weight_M : x_PM; }
  // What the best entries count.
  at::Tensor best_weights_PM() const { return weight_M.expand_as(gate_PM).gather(1, order_PM.slice(1, 0, others)); }
};

// Entries of each pool to take among the best others: up to and including the first whose cumulative share reaches what
// the own blocks leave of tau. A pool with NaN reaches nothing and takes all.
at::Tensor threshold_count_P1(const Pools& pools, double tau) {
  const at::Tensor& gate_PM = pools.gate_PM;
  const at::Tensor g_PM = gate_PM.to(at::kDouble);
  const at::Tensor low_P1 = g_PM.amin(1, true);
  at::Tensor range_P1 = g_PM.amax(1, true) - low_P1;
  range_P1 = range_P1.masked_fill(range_P1 <= kEps, 1.0);
  const at::Tensor x_PM = (g_PM - low_P1) / range_P1;
  const at::Tensor counted_PM = pools.weighted(x_PM);
  const at::Tensor total_P1 = counted_PM.sum(1, true) + kEps;
  const at::Tensor own_P1 = counted_PM.masked_fill(pools.own_PM.logical_not(), 0.0).sum(1, true);
  const at::Tensor rest_P1 = (tau - own_P1 / total_P1).clamp_min(0.0);
  at::Tensor best_PM = (pools.sorted_PM.slice(1, 0, pools.others).to(at::kDouble) - low_P1) / range_P1;
  if (pools.weight_M.defined()) best_PM = best_PM * pools.best_weights_PM();
  const at::Tensor reached_PM = (best_PM.cumsum(1) / total_P1) >= rest_P1;
  return (reached_PM.logical_not().sum(1, true) + 1).clamp_max(pools.others);
}

// Entries until those taken count `wanted` tokens.
at::Tensor weighted_count_P1(const Pools& pools, double wanted) {
  const at::Tensor reached_PM = pools.best_weights_PM().cumsum(1) >= wanted;
  return (reached_PM.logical_not().sum(1, true) + (wanted > 0 ? 1 : 0)).clamp_max(pools.others);
}

// Other blocks of a head's tokens together, of one token for pool query_head (there without the part of one).
int64_t topk_entries(const VmobaRule& rule, int64_t heads, int64_t tokens, int64_t blocks) {
  const double per_row = rule.blocks_per_query(blocks) - 1;
  if (rule.pool == Pool::kQueryHead) return int64_t(per_row);
  return std::llround(per_row * double(rule.pool == Pool::kHeadGlobal ? tokens : heads * tokens));
}

}  // namespace

Choosers choosers(const PartitionTables& tables) {
  return {tables.block_of_S, tables.block_start, {}, tables.tokens};
}

Choosers choosers(const PartitionTables& tables, const TileTables& tiles) {
  return {tiles.block_of_U, tiles.block_start, tiles.tokens_U, tables.tokens};
}

Choosers choosers(const BlockProblem& problem) {
  return problem.tiles == nullptr ? choosers(*problem.tables) : choosers(*problem.tables, *problem.tiles);
}

at::Tensor select_NCS(const PartitionTables& tables, const VmobaRule& rule, const at::Tensor& gate_NCS) {
  return select(choosers(tables), rule, gate_NCS);
}

// U: choosers.
at::Tensor select(const Choosers& who, const VmobaRule& rule, const at::Tensor& gate_NCU,
                  const at::Tensor& one_more_NU) {
  const int64_t heads = gate_NCU.size(0), blocks = gate_NCU.size(1), count = gate_NCU.size(2);
  const at::Tensor block_C1 = at::arange(blocks, who.block_of.options()).unsqueeze(1);
  const at::Tensor own_NCU = (block_C1 == who.block_of.unsqueeze(0)).unsqueeze(0).expand_as(gate_NCU);
  const bool threshold = rule.select == SelectMode::kThreshold;
  if (threshold && rule.tau >= 1) return at::ones_like(own_NCU, at::MemoryFormat::Contiguous);
  at::Tensor weight_NCU;
  if (who.tokens.defined()) weight_NCU = who.tokens.expand_as(gate_NCU);

  at::Tensor mask_NCU = own_NCU.contiguous();
  reference::for_each_task(task_count(rule.pool, heads, blocks), gate_NCU.is_cpu(), [&](int64_t task) {
    const int64_t rows = pools_of_task(rule.pool, count);
    const auto slice_of = [&](const at::Tensor& x) { return pool_slice(x, rule.pool, task).reshape({rows, -1}); };
    Pools pools;
    pools.gate_PM = slice_of(gate_NCU);
    pools.own_PM = slice_of(own_NCU);
    // Entries of one token's or tile's pool count alike, so that only pools of several need weights.
    if (weight_NCU.defined() && rows == 1) pools.weight_M = slice_of(weight_NCU)[0];
    // Own entries per pool follow from the geometry, so that no count is read back from a device.
    int64_t own = 1;
    if (rule.pool == Pool::kHeadGlobal) own = count;
    if (rule.pool == Pool::kOverall) own = heads * count;
    if (rule.pool == Pool::kBlock) own = heads * (who.block_start[size_t(task) + 1] - who.block_start[size_t(task)]);
    pools.others = pools.gate_PM.size(1) - own;
    if (pools.others == 0) return;

    const double lowest = -std::numeric_limits<double>::infinity();
    std::tie(pools.sorted_PM, pools.order_PM) =
        pools.gate_PM.masked_fill(pools.own_PM, lowest).sort(/*stable=*/true, 1, true);
    const at::Tensor rank_M = at::arange(pools.gate_PM.size(1), pools.order_PM.options());
    at::Tensor first_PM;
    if (threshold) {
      first_PM = rank_M < threshold_count_P1(pools, rule.tau);
    } else {
      const int64_t entries = topk_entries(rule, heads, who.all_tokens, blocks);
      if (pools.weight_M.defined())
        first_PM = rank_M < weighted_count_P1(pools, double(entries));
      else if (one_more_NU.defined() && rule.pool == Pool::kQueryHead)
        first_PM = rank_M < one_more_NU[task].unsqueeze(1).to(at::kLong) + entries;
      else
        first_PM = (rank_M < std::min(entries, pools.others)).expand_as(pools.own_PM);
    }
    const at::Tensor taken_PM = at::zeros_like(pools.own_PM).scatter_(1, pools.order_PM, first_PM);
    at::Tensor slice = pool_slice(mask_NCU, rule.pool, task);
    slice.logical_or_(taken_PM.view(slice.sizes()));
  });
  return mask_NCU;
}

}  // namespace vmoba::attention
