#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

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

// Entries of each pool to take among the `others` first of `sorted_PM`: up to and including the first whose
// cumulative share reaches what the own blocks leave of tau. A pool with NaN reaches nothing and takes all.
at::Tensor threshold_count_P1(const at::Tensor& gate_PM, const at::Tensor& own_PM, const at::Tensor& sorted_PM,
                              int64_t others, double tau) {
  const at::Tensor g_PM = gate_PM.to(at::kDouble);
  const at::Tensor low_P1 = g_PM.amin(1, true);
  at::Tensor range_P1 = g_PM.amax(1, true) - low_P1;
  range_P1 = range_P1.masked_fill(range_P1 <= kEps, 1.0);
  const at::Tensor x_PM = (g_PM - low_P1) / range_P1;
  const at::Tensor total_P1 = x_PM.sum(1, true) + kEps;
  const at::Tensor own_P1 = x_PM.masked_fill(own_PM.logical_not(), 0.0).sum(1, true);
  const at::Tensor rest_P1 = (tau - own_P1 / total_P1).clamp_min(0.0);
  const at::Tensor best_PM = (sorted_PM.slice(1, 0, others).to(at::kDouble) - low_P1) / range_P1;
  const at::Tensor reached_PM = (best_PM.cumsum(1) / total_P1) >= rest_P1;
  return (reached_PM.logical_not().sum(1, true) + 1).clamp_max(others);
}

int64_t topk_count(Pool pool, int64_t topk, int64_t heads, int64_t tokens, int64_t blocks, int64_t others) {
  const int64_t per_row = std::min(topk, blocks) - 1;  // also keeps the products below from overflowing
  const int64_t rows = pool == Pool::kQueryHead ? 1 : pool == Pool::kHeadGlobal ? tokens : heads * tokens;
  return std::min(per_row * rows, others);
}

}  // namespace

at::Tensor select_NCS(const PartitionTables& tables, const VmobaRule& rule, const at::Tensor& gate_NCS) {
  const int64_t heads = gate_NCS.size(0), blocks = gate_NCS.size(1), tokens = gate_NCS.size(2);
  const at::Tensor block_C1 = at::arange(blocks, tables.block_of_S.options()).unsqueeze(1);
  const at::Tensor own_NCS = (block_C1 == tables.block_of_S.unsqueeze(0)).unsqueeze(0).expand_as(gate_NCS);
  const bool threshold = rule.select == SelectMode::kThreshold;
  if (threshold && rule.tau >= 1) return at::ones_like(own_NCS, at::MemoryFormat::Contiguous);

  at::Tensor mask_NCS = own_NCS.contiguous();
  reference::for_each_task(task_count(rule.pool, heads, blocks), gate_NCS.is_cpu(), [&](int64_t task) {
    const int64_t pools = pools_of_task(rule.pool, tokens);
    const at::Tensor gate_PM = pool_slice(gate_NCS, rule.pool, task).reshape({pools, -1});
    const at::Tensor own_PM = pool_slice(own_NCS, rule.pool, task).reshape({pools, -1});
    // Own entries per pool follow from the geometry, so that no count is read back from a device.
    int64_t own = 1;
    if (rule.pool == Pool::kHeadGlobal) own = tokens;
    if (rule.pool == Pool::kOverall) own = heads * tokens;
    if (rule.pool == Pool::kBlock) own = heads * (tables.block_start[task + 1] - tables.block_start[task]);
    const int64_t others = gate_PM.size(1) - own;
    if (others == 0) return;

    const double lowest = -std::numeric_limits<double>::infinity();
    const auto [sorted_PM, order_PM] = gate_PM.masked_fill(own_PM, lowest).sort(/*stable=*/true, 1, true);
    const at::Tensor rank_M = at::arange(gate_PM.size(1), order_PM.options());
    const at::Tensor first_PM =
        threshold ? rank_M < threshold_count_P1(gate_PM, own_PM, sorted_PM, others, rule.tau)
                  : (rank_M < topk_count(rule.pool, rule.topk, heads, tokens, blocks, others)).expand_as(own_PM);
    const at::Tensor taken_PM = at::zeros_like(own_PM).scatter_(1, order_PM, first_PM);
    at::Tensor slice = pool_slice(mask_NCS, rule.pool, task);
    slice.logical_or_(taken_PM.view(slice.sizes()));
  });
  return mask_NCS;
}

}  // namespace vmoba::attention
