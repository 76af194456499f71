// Memory of attention by single queries. Lists of rows and the forward's partial outputs are sized for a selection of
// everything, because the host does not read their lengths. Where that is too much, lists are not kept: the forward
// goes through some rows of one head after the other, the backward through some heads, and each makes its lists again.
// No GPU is asked.
//
// Shape letters as in attention/kernels/kernels.h.
#pragma once
#include <cstdint>

#include "attention/kernels/kernels.h"

namespace vmoba::attention::native {

// Partial outputs held at a time: large enough that few groups of heads are needed, small beside activations.
constexpr int64_t kPartialBudgetBytes = int64_t(1100) << 20;
// The same where rows are parted, whose parts should be few; one head's at most where they are not.
constexpr int64_t kPartedBudgetBytes = int64_t(2) << 30;
constexpr int64_t kPartialLimitBytes = int64_t(3) << 30;
// Lists and workspace of the heads that go through the backward together, where lists are not kept.
constexpr int64_t kBackwardBudgetBytes = int64_t(5) << 28;

// Bytes of partial outputs of `slots`.
int64_t partial_bytes(const kernels::Shape& shape, int64_t slots);

bool keeps_row_lists(const kernels::Shape& shape);

// Words of masks whose rows go through the forward of one head together, where lists are not kept.
int32_t forward_row_words(const kernels::Shape& shape);

// Heads of a sample that go through the backward together, at least one, where lists are not kept.
int32_t backward_heads(const kernels::Shape& shape, bool deterministic);

}  // namespace vmoba::attention::native
