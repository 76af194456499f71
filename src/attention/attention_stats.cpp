#include <ATen/ops/stack.h>

#include "attention/attention.h"

namespace vmoba::attention {

void AttentionStats::record(const std::string& name, const at::Tensor& pairs, double total) {
  const std::lock_guard lock(mutex_);
  entries_.push_back({name, pairs.detach(), total});
}

std::map<std::string, std::pair<double, double>> AttentionStats::pairs() const {
  const std::lock_guard lock(mutex_);
  // One copy per device, however many layers were recorded.
  std::map<std::string, std::vector<at::Tensor>> by_device;
  for (const Entry& entry : entries_) by_device[entry.pairs.device().str()].push_back(entry.pairs.to(at::kDouble));
  std::map<std::string, at::Tensor> read;
  for (const auto& [device, pairs] : by_device) read[device] = at::stack(pairs).cpu();

  std::map<std::string, std::pair<double, double>> sums;
  std::map<std::string, int64_t> next;
  for (const Entry& entry : entries_) {
    const std::string device = entry.pairs.device().str();
    const double pairs = read[device].const_data_ptr<double>()[next[device]++];
    sums[entry.name].first += pairs;
    sums[entry.name].second += entry.total;
  }
  return sums;
}

std::map<std::string, double> AttentionStats::densities() const {
  std::map<std::string, double> densities;
  std::pair<double, double> all;
  for (const auto& [name, sum] : pairs()) {
    densities[name] = sum.second > 0 ? sum.first / sum.second : 0.0;
    all.first += sum.first;
    all.second += sum.second;
  }
  if (!densities.empty()) densities["all"] = all.second > 0 ? all.first / all.second : 0.0;
  return densities;
}

void AttentionStats::clear() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
}

}  // namespace vmoba::attention
