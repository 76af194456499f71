// Which losses are far above those before them. Of one run; the same on all ranks, which see the same losses.
#pragma once
#include <cstddef>
#include <deque>

namespace vmoba::train {

class LossWatch {
 public:
  // A loss above `factor` times the median of the last ones is a spike.
  explicit LossWatch(double factor) : factor_(factor) {}

  // Values that are not finite always are; before kLeast losses no others.
  bool is_spike(double loss, double gradient_norm) const;
  void add(double loss);

  static constexpr size_t kLeast = 16, kWindow = 64;

 private:
  double factor_;
  std::deque<double> last_;
};

}  // namespace vmoba::train
