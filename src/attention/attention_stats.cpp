#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include "attention/attention.h"

namespace vmoba::attention {
namespace {

void add(AttentionStats::Pairs& sum, double pairs, double total) {
  sum.first += pairs;
  sum.second += total;
}

}  // namespace

void AttentionStats::record(const std::string& name, const LayerAttention& layer, const at::Tensor& pairs_N,
                            double total) {
  const std::lock_guard lock(mutex_);
  entries_.push_back({name, layer.index, layer.first_head, pairs_N.detach(), total});
}

at::Tensor AttentionStats::recorded() const {
  const std::lock_guard lock(mutex_);
  if (entries_.empty()) return at::empty({0}, at::kDouble);
  std::vector<at::Tensor> pairs;
  for (const Entry& entry : entries_)
    pairs.push_back(entry.pairs_N.to(entries_.front().pairs_N.device(), at::kDouble).reshape({-1}));
  return at::cat(pairs);
}

AttentionStats::Sums AttentionStats::sums(const double* recorded) const {
  const std::lock_guard lock(mutex_);
  Sums sums;
  for (const Entry& entry : entries_) {
    for (int64_t n = 0; n < entry.pairs_N.numel(); ++n) {
      const double pairs = *recorded++;
      add(sums.by_partition[entry.name], pairs, entry.total);
      add(sums.by_head[{entry.layer, entry.first_head + n}], pairs, entry.total);
    }
  }
  return sums;
}

AttentionStats::Sums AttentionStats::sums() const {
  return sums(recorded().cpu().const_data_ptr<double>());
}

std::map<std::string, double> AttentionStats::densities() const {
  std::map<std::string, double> densities;
  Pairs all;
  for (const auto& [name, sum] : sums().by_partition) {
    densities[name] = sum.second > 0 ? sum.first / sum.second : 0.0;
    add(all, sum.first, sum.second);
  }
  if (!densities.empty()) densities["all"] = all.second > 0 ? all.first / all.second : 0.0;
  return densities;
}

void AttentionStats::clear() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
}

}  // namespace vmoba::attention
