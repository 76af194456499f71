// What two attentions, or two checkpoints, differ by on the same clips with the same noise.
#pragma once
#include <cstdint>
#include <vector>

namespace vmoba::train {

// Change of the mean of `losses` against that of `base`, in percent of the latter.
struct PairedDifference {
  double percent = 0;
  double low = 0, high = 0;  // 95 % percentile interval of a bootstrap over clips
  double better = 0;         // share of the clips whose loss is lower
};

// One number a clip, in the same order. Throws Error(kInput) for different numbers of clips, or none.
PairedDifference paired_difference(const std::vector<double>& losses, const std::vector<double>& base,
                                   int64_t draws = 4000, uint64_t seed = 0);

}  // namespace vmoba::train
