// Operations of a recomputed body (common/recompute.h) whose results can be kept from its first run for its second.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "attention/result_tape.h"
#include "model/common/linear.h"
#include "model/common/recompute.h"

namespace vmoba::model {

// linear(x, map), kept as `name`.
at::Tensor kept_linear(const at::Tensor& x, const Linear& map, Kept& kept, const std::string& name);

// attend(tape): attention calls (attention/attention.h), whose results are kept as `name`.
at::Tensor kept_attention(const std::function<at::Tensor(attention::ResultTape*)>& attend, Kept& kept,
                          const std::string& name);

}  // namespace vmoba::model
