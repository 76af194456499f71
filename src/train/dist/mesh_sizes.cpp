#include "train/dist/mesh_sizes.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/check.h"

namespace vmoba::train::dist {

MeshSizes mesh_sizes(const ParallelConfig& config, int64_t ranks) {
  const int64_t inner = config.shard * config.sequence;
  if (config.data == 0) {
    VMOBA_CHECK_INPUT(ranks % inner == 0,
                      "expected a number of ranks that parallel.shard x parallel.sequence ({} x {}) divides, found {}; "
                      "start {} or {} ranks, or change these keys",
                      config.shard, config.sequence, ranks, std::max<int64_t>(1, ranks / inner) * inner,
                      (ranks / inner + 1) * inner);
  } else {
    VMOBA_CHECK_INPUT(config.data * inner == ranks,
                      "expected parallel.data x shard x sequence = {} ranks, found {} x {} x {} = {}; start {} ranks, "
                      "or set parallel.data to 0 to fill it in",
                      ranks, config.data, config.shard, config.sequence, config.data * inner, config.data * inner);
  }
  return {int(ranks / inner), int(config.shard), int(config.sequence)};
}

BatchShare batch_share(const TrainConfig& config, const MeshSizes& sizes) {
  const int64_t groups = sizes.batch_ranks(), batch = config.global_batch;
  VMOBA_CHECK_INPUT(batch % groups == 0,
                    "train.global_batch: expected a multiple of {} (parallel.data {} x parallel.shard {} take samples "
                    "of their own), found {}; use {} or {}",
                    groups, sizes.data, sizes.shard, batch, std::max<int64_t>(1, batch / groups) * groups,
                    (std::max<int64_t>(1, batch / groups) + 1) * groups);
  BatchShare out;
  out.samples = batch / groups;
  // Batches of one bucket are made of train.micro_batch consecutive samples, whatever the number of ranks; a divisor
  // keeps every pass inside one.
  out.micro = std::gcd(config.micro_batch, out.samples);
  out.passes = out.samples / out.micro;
  return out;
}

void check_sequence(const RootConfig& config) {
  const int64_t ranks = config.parallel.sequence, heads = config.model.heads;
  if (ranks == 1) return;
  std::vector<int64_t> fitting;
  for (int64_t n = 1; n <= heads; ++n)
    if (heads % n == 0) fitting.push_back(n);
  VMOBA_CHECK_INPUT(heads % ranks == 0,
                    "parallel.sequence: expected a divisor of model.heads ({}), found {}; use one of {}", heads, ranks,
                    fmt::join(fitting, ", "));
  const std::string together = attention::heads_select_together(config.attention, model::layer_count(config.model));
  VMOBA_CHECK_INPUT(together.empty(),
                    "parallel.sequence={}: expected a selection that each head makes on its own, because ranks share "
                    "the heads, found {}, or use parallel.sequence=1",
                    ranks, together);
}

}  // namespace vmoba::train::dist
