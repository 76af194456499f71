#include <ATen/ops/cat.h>

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

AttentionStats::Sums AttentionStats::sums() const {
  const std::lock_guard lock(mutex_);
  // One copy per device, however many layers were recorded.
  std::map<std::string, std::vector<at::Tensor>> by_device;
  for (const Entry& entry : entries_) by_device[entry.pairs_N.device().str()].push_back(entry.pairs_N.to(at::kDouble));
  std::map<std::string, at::Tensor> read;
  for (const auto& [device, pairs] : by_device) read[device] = at::cat(pairs).cpu();

  Sums sums;
  std::map<std::string, int64_t> next;
  for (const Entry& entry : entries_) {
    const std::string device = entry.pairs_N.device().str();
    for (int64_t n = 0; n < entry.pairs_N.numel(); ++n) {
      const double pairs = read[device].const_data_ptr<double>()[next[device]++];
      add(sums.by_partition[entry.name], pairs, entry.total);
      add(sums.by_head[{entry.layer, entry.first_head + n}], pairs, entry.total);
    }
  }
  return sums;
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
