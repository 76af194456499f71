#include "train/validation/paired_difference.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/random.h"

namespace vmoba::train {
namespace {

double percent_of(double sum, double base) {
  return 100 * (sum / base - 1);
}

// Linear between the two nearest draws.
double percentile(const std::vector<double>& sorted, double share) {
  const double place = share * double(sorted.size() - 1);
  const auto below = size_t(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - double(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

PairedDifference paired_difference(const std::vector<double>& losses, const std::vector<double>& base, int64_t draws,
                                   uint64_t seed) {
  VMOBA_CHECK_INPUT(losses.size() == base.size() && !losses.empty(),
                    "expected losses of the same clips, found {} and {} of them", losses.size(), base.size());
  const size_t clips = losses.size();
  double sum = 0, base_sum = 0, better = 0;
  for (size_t i = 0; i < clips; ++i) {
    sum += losses[i];
    base_sum += base[i];
    better += losses[i] < base[i] ? 1 : 0;
  }
  std::vector<double> found;
  for (int64_t draw = 0; draw < draws; ++draw) {
    RandomStream random(seed, "bootstrap", uint64_t(draw));
    double drawn = 0, drawn_base = 0;
    for (size_t i = 0; i < clips; ++i) {
      const uint64_t clip = random.below(clips);
      drawn += losses[clip];
      drawn_base += base[clip];
    }
    found.push_back(percent_of(drawn, drawn_base));
  }
  std::sort(found.begin(), found.end());
  return {percent_of(sum, base_sum), percentile(found, 0.025), percentile(found, 0.975), better / double(clips)};
}

}  // namespace vmoba::train
