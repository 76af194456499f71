#include "train/dist/step_exchange.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/check.h"

namespace vmoba::train::dist {
namespace {

// Names that attention::AttentionStats knows.
constexpr std::array<const char*, 4> kLayerKinds = {"temporal", "spatial", "spatiotemporal", "full"};
constexpr size_t kFixed = 10;

std::vector<double> pack(const StepResult& result) {
  std::vector<double> out = {
      double(result.signal),   double(result.tokens), double(result.failed_clips), double(result.memory_bytes),
      result.data_wait_s,      result.own_s,          double(result.writing),      double(result.write_failed),
      double(result.given_up), result.flops};
  for (const char* kind : kLayerKinds) {
    const auto found = result.pairs.find(kind);
    out.push_back(found == result.pairs.end() ? 0 : found->second.first);
    out.push_back(found == result.pairs.end() ? 0 : found->second.second);
  }
  out.insert(out.end(), result.losses.begin(), result.losses.end());
  return out;
}

std::map<std::string, double> densities(const std::array<double, 2 * kLayerKinds.size()>& sums) {
  std::map<std::string, double> out;
  double attended = 0, all = 0;
  for (size_t k = 0; k < kLayerKinds.size(); ++k) {
    if (sums[2 * k + 1] > 0) out[kLayerKinds[k]] = sums[2 * k] / sums[2 * k + 1];
    attended += sums[2 * k];
    all += sums[2 * k + 1];
  }
  if (all > 0) out["all"] = attended / all;
  return out;
}

// Sums over ranks: whole numbers, the same in any order.
at::Tensor pairs_over_ranks_LN2(World& world, const StepResult& result) {
  std::vector<double> values;
  for (const auto& [attended, all] : result.pairs_by_head) values.insert(values.end(), {attended, all});
  at::Tensor sums = at::tensor(values, at::kDouble);
  if (world.size() > 1) world.control().all_reduce(sums)->wait();
  return sums.view({-1, result.heads, 2});
}

std::vector<LayerDensity> layer_densities(const at::Tensor& pairs_LN2) {
  const at::Tensor heads_LN = pairs_LN2.select(2, 0) / pairs_LN2.select(2, 1);
  const at::Tensor sums_L2 = pairs_LN2.sum(1), mean_L = sums_L2.select(1, 0) / sums_L2.select(1, 1);
  std::vector<LayerDensity> out;
  for (int64_t l = 0; l < heads_LN.size(0); ++l)
    out.push_back({mean_L[l].item<double>(), heads_LN[l].min().item<double>(), heads_LN[l].max().item<double>()});
  return out;
}

}  // namespace

StepTotals exchange_step(World& world, const MeshSizes& sizes, const StepResult& result) {
  const std::vector<double> mine = pack(result);
  const std::vector<double> all = all_gather_numbers(world.control(), mine);
  const size_t passes = result.losses.size();
  const auto row = [&](int rank) { return all.data() + size_t(rank) * mine.size(); };
  StepTotals totals;
  std::array<double, 2 * kLayerKinds.size()> pairs{};
  for (int rank = 0; rank < world.size(); ++rank) {
    const double* values = row(rank);
    totals.signal = std::max(totals.signal, int(values[0]));
    totals.memory_bytes = std::max(totals.memory_bytes, int64_t(values[3]));
    totals.data_wait_s = std::max(totals.data_wait_s, values[4]);
    totals.data_wait_s_by_rank.push_back(values[4]);
    totals.own_s.push_back(values[5]);
    totals.writing |= values[6] != 0;
    totals.write_failed |= values[7] != 0;
    totals.given_up |= values[8] != 0;
    for (size_t i = 0; i < pairs.size(); ++i) pairs[i] += values[kFixed + i];
    if (rank % sizes.sequence != 0) continue;  // shares its samples with the rank before it
    totals.tokens += int64_t(values[1]);
    totals.failed_clips += int64_t(values[2]);
    totals.flops += values[9];
  }
  totals.density = densities(pairs);
  if (result.heads > 0) totals.density_by_layer = layer_densities(pairs_over_ranks_LN2(world, result));
  // Pass p of batch rank b holds chunk p * batch_ranks + b of the step's samples: the order of a single process.
  const double chunks = double(passes) * sizes.batch_ranks();
  for (size_t p = 0; p < passes; ++p) {
    for (int b = 0; b < sizes.batch_ranks(); ++b) {
      const double loss = row(b * sizes.sequence)[kFixed + pairs.size() + p];
      if (!std::isfinite(loss) && totals.bad_loss_rank < 0) totals.bad_loss_rank = b * sizes.sequence;
      totals.loss += loss / chunks;
    }
  }
  return totals;
}

Vote::Vote(Communicator& ranks, bool own)
    : mine_(at::full({1}, own ? 1 : 0, at::kLong)), all_(at::empty({ranks.size()}, at::kLong)) {
  work_ = ranks.all_gather(mine_, all_);
}

bool Vote::any() {
  work_->wait();
  return at::any(all_).item<bool>();
}

std::string StragglerReport::add(const StepTotals& totals) {
  if (every_ == 0 || totals.own_s.size() < 2) return "";
  own_s_.resize(totals.own_s.size());
  wait_s_.resize(totals.own_s.size());
  for (size_t r = 0; r < own_s_.size(); ++r) {
    own_s_[r] += totals.own_s[r];
    wait_s_[r] += totals.data_wait_s_by_rank[r];
  }
  if (++steps_ < every_) return "";
  const auto steps = double(steps_);
  std::vector<double> sorted = own_s_;
  std::sort(sorted.begin(), sorted.end());
  const auto slowest = size_t(std::max_element(own_s_.begin(), own_s_.end()) - own_s_.begin());
  const auto starved = size_t(std::max_element(wait_s_.begin(), wait_s_.end()) - wait_s_.begin());
  std::string text = fmt::format(
      "last {} steps: slowest rank {} on {}, {:.3f} s of its own work per step (median {:.3f} s); longest wait for "
      "data rank {} on {}, {:.3f} s per step",
      steps_, slowest, hosts_[slowest], own_s_[slowest] / steps, sorted[sorted.size() / 2] / steps, starved,
      hosts_[starved], wait_s_[starved] / steps);
  steps_ = 0;
  own_s_.clear();
  wait_s_.clear();
  return text;
}

}  // namespace vmoba::train::dist
