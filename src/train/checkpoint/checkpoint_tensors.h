// What a checkpoint keeps of an expert, tensor by tensor, and which of its values are whose: those that a rank holds,
// and those of them that it writes. Ranks that hold the same values share the writing.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "train/expert.h"

namespace vmoba::train {

// Shares the tensor that is trained, averaged or kept by the optimiser.
struct HeldTensor {
  std::string name;
  std::vector<int64_t> shape;  // of the whole
  at::Tensor held;             // the whole, or this rank's part (model/weight_store.h)
};

std::vector<HeldTensor> held_weights(const Expert& expert);
std::vector<HeldTensor> held_average(const Expert& expert);  // expert.ema is there
std::vector<HeldTensor> held_state(const Expert& expert);    // of the optimiser

// Values [begin, begin + count) of a flattened whole.
struct ValueRun {
  int64_t begin = 0, count = 0;
};
// Those that this rank holds: the first `count` values of `held`.
ValueRun held_run(const Expert& expert, const HeldTensor& tensor);
// Those of them that this rank writes.
ValueRun written_run(const Expert& expert, const HeldTensor& tensor);

}  // namespace vmoba::train
