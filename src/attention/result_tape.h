// Results of attention calls, for a second run over the same values: it has gradients, but does not compute the results
// again (activation checkpointing, model/common/recompute.h). Tensors are shared and must not be changed in place.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <utility>
#include <vector>

namespace vmoba::attention {

class ResultTape {
 public:
  // Records what calls compute, in the order of the calls.
  ResultTape() = default;
  // Replays what another tape recorded, to the same calls in the same order. Outputs, log-sum-exps and masks are
  // replayed; what is cheap to make of them (lists of rows, permuted copies) is made again.
  explicit ResultTape(std::vector<at::Tensor> recorded) : tensors_(std::move(recorded)), replays_(true) {}

  bool replays() const { return replays_; }
  void record(std::vector<at::Tensor> results);
  // The next `count` recorded tensors, without history.
  std::vector<at::Tensor> next(size_t count);
  const std::vector<at::Tensor>& tensors() const { return tensors_; }

 private:
  std::vector<at::Tensor> tensors_;
  bool replays_ = false;
  size_t next_ = 0;
};

}  // namespace vmoba::attention
