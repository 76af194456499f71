#include "attention/native/row_memory.h"

#include <algorithm>

namespace vmoba::attention::native {

int64_t partial_bytes(const kernels::Shape& shape, int64_t slots) {
  return slots * (2 * shape.head_dim + int64_t(sizeof(float)));
}

bool keeps_row_lists(const kernels::Shape& shape) {
  return partial_bytes(shape, kernels::slots_per_head_capacity(shape)) <= kPartialLimitBytes;
}

int32_t forward_row_words(const kernels::Shape& shape) {
  constexpr int32_t kStep = kernels::kSlotAlign / 32;
  kernels::Shape part = shape;
  part.row_words = kStep;
  const int64_t of_step = partial_bytes(shape, kernels::slots_per_head_capacity(part));
  const int64_t steps = std::max<int64_t>(1, kPartedBudgetBytes / of_step), words = shape.mask_words();
  const int64_t parts = (words + steps * kStep - 1) / (steps * kStep);
  const int64_t even = ((words + parts - 1) / parts + kStep - 1) / kStep * kStep;
  return int32_t(std::min(words, even));
}

int32_t backward_heads(const kernels::Shape& shape, bool deterministic) {
  kernels::Shape head = shape;
  head.batch = head.heads = 1;
  const int64_t bytes = kernels::slots_per_head_capacity(head) * int64_t(sizeof(int32_t)) +
                        kernels::backward_workspace_bytes(head, deterministic);
  const int64_t most = std::clamp<int64_t>(kBackwardBudgetBytes / bytes, 1, shape.heads);
  const int64_t waves = (shape.heads + most - 1) / most;
  return int32_t((shape.heads + waves - 1) / waves);
}

}  // namespace vmoba::attention::native
