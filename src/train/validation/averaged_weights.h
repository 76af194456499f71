// The experts compute with their averaged weights, where they have any, while an AveragedWeights lives.
#pragma once
#include <vector>

#include "train/expert.h"

namespace vmoba::train {

class AveragedWeights {
 public:
  explicit AveragedWeights(const std::vector<Expert>& experts) : experts_(experts) { swap(); }
  ~AveragedWeights() { swap(); }
  AveragedWeights(const AveragedWeights&) = delete;
  AveragedWeights& operator=(const AveragedWeights&) = delete;

 private:
  void swap() {
    for (const Expert& expert : experts_)
      if (expert.ema) expert.ema->swap();
  }
  const std::vector<Expert>& experts_;
};

}  // namespace vmoba::train
