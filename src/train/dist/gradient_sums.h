// Gradients of an optimiser step summed over the ranks, however these share the parameters.
#pragma once

namespace vmoba::train::dist {

class GradientSums {
 public:
  virtual ~GradientSums() = default;
  // Gradients become zeros.
  virtual void begin_step() = 0;
  // The backward that follows is the step's last: sums may begin.
  virtual void begin_last_pass() = 0;
  // Every .grad is the sum over all ranks when this returns.
  virtual void finish() = 0;
};

}  // namespace vmoba::train::dist
