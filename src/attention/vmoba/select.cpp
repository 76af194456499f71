#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "attention/reference/tasks.h"
#include "attention/vmoba/vmoba.h"

namespace vmoba::attention {
namespace {

constexpr double kEps = 1e-6;                   // of the official code: flat pools and empty sums
constexpr int64_t kEntries = int64_t(1) << 24;  // of pools that are sorted at once

// Some of the pools of one kind, one a row: those of queries [begin, end) of a head, of heads [begin, end), or of one
// block or sample.
struct PoolRange {
  Pool pool;
  int64_t head_or_block = 0, begin = 0, end = 1;

  // A view [rows, ...]; a row lists the pool's values in the order that breaks ties: block, head, token.
  at::Tensor of(const at::Tensor& x_NCU) const {
    switch (pool) {
      case Pool::kQueryHead:
        return x_NCU[head_or_block].t().slice(0, begin, end);
      case Pool::kHeadGlobal:
        return x_NCU.slice(0, begin, end);
      case Pool::kBlock:
        return x_NCU.select(1, head_or_block).unsqueeze(0);
      case Pool::kOverall:
        break;
    }
    return x_NCU.transpose(0, 1).unsqueeze(0);
  }
};

// All of them. On a CPU heads are handled by a thread each; on a GPU as many at once as kEntries holds.
std::vector<PoolRange> pool_ranges(Pool pool, const at::Tensor& gate_NCU) {
  const int64_t heads = gate_NCU.size(0), blocks = gate_NCU.size(1), choosers = gate_NCU.size(2);
  std::vector<PoolRange> out;
  const auto cut = [&](int64_t head, int64_t rows, int64_t step) {
    for (int64_t begin = 0; begin < rows; begin += step)
      out.push_back({pool, head, begin, std::min(begin + step, rows)});
  };
  switch (pool) {
    case Pool::kQueryHead:
      for (int64_t n = 0; n < heads; ++n) cut(n, choosers, std::max<int64_t>(1, kEntries / blocks));
      break;
    case Pool::kHeadGlobal:
      cut(0, heads, gate_NCU.is_cpu() ? 1 : std::max<int64_t>(1, kEntries / (blocks * choosers)));
      break;
    case Pool::kBlock:
      for (int64_t c = 0; c < blocks; ++c) out.push_back({pool, c});
      break;
    case Pool::kOverall:
      out.push_back({pool});
  }
  return out;
}

// Gates of some pools, one a row, and their order.
struct Pools {
  at::Tensor gate_PM, own_PM;
  at::Tensor weight_M;             // fp64, what each entry counts; undefined: 1
  at::Tensor sorted_PM, order_PM;  // falling gates, behind those that are taken in any case; own entries last
  int64_t others = 0;              // entries that are not own
  int64_t least = 0;               // entries that are taken in any case
  bool shares = false;             // the gates are logarithms of shares

  at::Tensor weighted(const at::Tensor& x_PM) const { return weight_M.defined() ? x_PM * weight_M : x_PM; }
  // What the best entries count.
  at::Tensor best_weights_PM() const { return weight_M.expand_as(gate_PM).gather(1, order_PM.slice(1, 0, others)); }
};

// Entries of each pool to take among the best others: up to and including the first whose cumulative share reaches what
// the own blocks leave of tau. A pool with NaN reaches nothing and takes all.
at::Tensor threshold_count_P1(const Pools& pools, double tau) {
  const at::Tensor& gate_PM = pools.gate_PM;
  const at::Tensor g_PM = gate_PM.to(at::kDouble);
  at::Tensor low_P1, range_P1;
  if (!pools.shares) {
    low_P1 = g_PM.amin(1, true);
    range_P1 = g_PM.amax(1, true) - low_P1;
    range_P1 = range_P1.masked_fill(range_P1 <= kEps, 1.0);
  }
  const auto comparable = [&](const at::Tensor& x_PM) {
    return pools.shares ? x_PM.exp() : (x_PM - low_P1) / range_P1;
  };
  const at::Tensor counted_PM = pools.weighted(comparable(g_PM));
  const at::Tensor total_P1 = counted_PM.sum(1, true) + kEps;
  const at::Tensor own_P1 = counted_PM.masked_fill(pools.own_PM.logical_not(), 0.0).sum(1, true);
  const at::Tensor rest_P1 = (tau - own_P1 / total_P1).clamp_min(0.0);
  at::Tensor best_PM = comparable(pools.sorted_PM.slice(1, 0, pools.others).to(at::kDouble));
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

// The best `count` other blocks of each chooser.
at::Tensor best_of_each_NCU(const at::Tensor& gate_NCU, const at::Tensor& own_NCU, int64_t count) {
  const double lowest = -std::numeric_limits<double>::infinity();
  at::Tensor best_NCU = at::zeros_like(own_NCU, at::MemoryFormat::Contiguous);
  const int64_t choosers = gate_NCU.size(2), step = std::max<int64_t>(1, kEntries / (gate_NCU.numel() / choosers));
  for (int64_t begin = 0; begin < choosers; begin += step) {
    const auto part = [&](const at::Tensor& x_NCU) { return x_NCU.slice(2, begin, begin + step); };
    const at::Tensor order_NCU =
        std::get<1>(part(gate_NCU).masked_fill(part(own_NCU), lowest).sort(/*stable=*/true, 1, /*descending=*/true));
    part(best_NCU).scatter_(1, order_NCU.slice(1, 0, count), true);
  }
  return best_NCU;
}

// Sorts the pools; `first_PM`: entries that are taken in any case, or undefined.
void sort_pools(Pools& pools, const at::Tensor& first_PM) {
  const double infinity = std::numeric_limits<double>::infinity();
  at::Tensor key_PM = pools.gate_PM.masked_fill(pools.own_PM, -infinity);
  if (first_PM.defined()) key_PM = key_PM.masked_fill(first_PM, infinity);
  std::tie(pools.sorted_PM, pools.order_PM) = key_PM.sort(/*stable=*/true, 1, true);
  if (first_PM.defined()) pools.sorted_PM = pools.gate_PM.gather(1, pools.order_PM);
}

// Own entries of each of these pools; from the geometry, so that no count is read back from a device.
int64_t own_entries(const PoolRange& range, const Choosers& who, int64_t heads) {
  const int64_t choosers = who.block_of.size(0), block = range.head_or_block;
  switch (range.pool) {
    case Pool::kQueryHead:
      return 1;
    case Pool::kHeadGlobal:
      return choosers;
    case Pool::kOverall:
      return heads * choosers;
    case Pool::kBlock:
      break;
  }
  return heads * (who.block_start[size_t(block) + 1] - who.block_start[size_t(block)]);
}

// Which places of the order are taken. `entries`: topk_entries(); `one_more_P`: pools that take one more, or undefined.
at::Tensor taken_places_PM(const Pools& pools, const VmobaRule& rule, int64_t entries, const at::Tensor& one_more_P) {
  const at::Tensor place_M = at::arange(pools.gate_PM.size(1), pools.order_PM.options());
  if (rule.select == SelectMode::kThreshold)
    return place_M < threshold_count_P1(pools, rule.tau).clamp_min(pools.least);
  if (pools.weight_M.defined()) return place_M < weighted_count_P1(pools, double(entries)).clamp_min(pools.least);
  if (one_more_P.defined()) return place_M < one_more_P.unsqueeze(1).to(at::kLong) + entries;
  return (place_M < std::clamp(entries, pools.least, pools.others)).expand_as(pools.own_PM);
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
  const int64_t heads = gate_NCU.size(0), blocks = gate_NCU.size(1);
  const at::Tensor block_C1 = at::arange(blocks, who.block_of.options()).unsqueeze(1);
  const at::Tensor own_NCU = (block_C1 == who.block_of.unsqueeze(0)).unsqueeze(0).expand_as(gate_NCU);
  if (rule.select == SelectMode::kThreshold && rule.tau >= 1)
    return at::ones_like(own_NCU, at::MemoryFormat::Contiguous);
  at::Tensor weight_NCU, least_NCU;
  if (who.tokens.defined()) weight_NCU = who.tokens.expand_as(gate_NCU);
  const bool shared = rule.pool == Pool::kHeadGlobal || rule.pool == Pool::kOverall;
  const int64_t least = shared ? std::min(rule.least_blocks, blocks) - 1 : 0;
  if (least > 0) least_NCU = best_of_each_NCU(gate_NCU, own_NCU, least);

  at::Tensor mask_NCU = own_NCU.contiguous();
  const std::vector<PoolRange> ranges = pool_ranges(rule.pool, gate_NCU);
  reference::for_each_task(int64_t(ranges.size()), gate_NCU.is_cpu(), [&](int64_t task) {
    const PoolRange& range = ranges[size_t(task)];
    const auto rows_of = [&](const at::Tensor& x) { return range.of(x).flatten(1); };
    Pools pools;
    pools.shares = rule.score == Score::kShare;
    pools.gate_PM = rows_of(gate_NCU);
    pools.own_PM = rows_of(own_NCU);
    // Entries of one token's or tile's pool count alike, so that only pools of several need weights.
    if (weight_NCU.defined() && rule.pool != Pool::kQueryHead) pools.weight_M = rows_of(weight_NCU)[0];
    const int64_t own = own_entries(range, who, heads);
    pools.others = pools.gate_PM.size(1) - own;
    pools.least = least * own;
    if (pools.others == 0) return;

    sort_pools(pools, least > 0 ? rows_of(least_NCU) : at::Tensor());
    at::Tensor one_more_P;
    if (one_more_NU.defined() && rule.pool == Pool::kQueryHead)
      one_more_P = one_more_NU[range.head_or_block].slice(0, range.begin, range.end);
    const int64_t entries = topk_entries(rule, heads, who.all_tokens, blocks);
    const at::Tensor places_PM = taken_places_PM(pools, rule, entries, one_more_P);
    const at::Tensor taken_PM = at::zeros_like(pools.own_PM, at::MemoryFormat::Contiguous)
                                    .scatter_(1, pools.order_PM, places_PM.expand_as(pools.own_PM));
    at::Tensor rows = range.of(mask_NCU);
    rows.logical_or_(taken_PM.view(rows.sizes()));
  });
  return mask_NCU;
}

at::Tensor select_samples(Choosers who, VmobaRule rule, const at::Tensor& gate_BNCU, const at::Tensor& one_more_NU) {
  const int64_t batch = gate_BNCU.size(0), heads = gate_BNCU.size(1), blocks = gate_BNCU.size(2);
  switch (rule.pool) {
    case Pool::kQueryHead: {  // one long row of choosers
      who.block_of = who.block_of.repeat({batch * heads});
      who.tokens = at::Tensor();
      const at::Tensor more_1M = one_more_NU.defined() ? one_more_NU.reshape({1, -1}).repeat({1, batch}) : at::Tensor();
      const at::Tensor gate_1CM = gate_BNCU.permute({2, 0, 1, 3}).reshape({1, blocks, -1});
      return select(who, rule, gate_1CM, more_1M).view({blocks, batch, heads, -1}).permute({1, 2, 0, 3});
    }
    case Pool::kHeadGlobal:
      return select(who, rule, gate_BNCU.flatten(0, 1)).view(gate_BNCU.sizes());
    case Pool::kOverall: {  // a sample is one head whose choosers are those of all heads
      who.block_of = who.block_of.repeat({heads});
      if (who.tokens.defined()) who.tokens = who.tokens.repeat({heads});
      who.all_tokens *= heads;
      rule.pool = Pool::kHeadGlobal;
      const at::Tensor mask_BCM = select(who, rule, gate_BNCU.transpose(1, 2).flatten(2));
      return mask_BCM.view({batch, blocks, heads, -1}).transpose(1, 2);
    }
    case Pool::kBlock:
      break;
  }
  std::vector<at::Tensor> masks;
  for (int64_t b = 0; b < batch; ++b) masks.push_back(select(who, rule, gate_BNCU[b], one_more_NU));
  return at::stack(masks);
}

}  // namespace vmoba::attention
