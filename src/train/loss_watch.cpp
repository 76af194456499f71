#include "train/loss_watch.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace vmoba::train {

bool LossWatch::is_spike(double loss, double gradient_norm) const {
  if (!std::isfinite(loss) || !std::isfinite(gradient_norm)) return true;
  if (last_.size() < kLeast) return false;
  std::vector<double> sorted(last_.begin(), last_.end());
  const auto middle = sorted.begin() + std::ptrdiff_t(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return loss > factor_ * *middle;
}

void LossWatch::add(double loss) {
  last_.push_back(loss);
  if (last_.size() > kWindow) last_.pop_front();
}

}  // namespace vmoba::train
