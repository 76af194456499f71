// Activation checkpointing: run a function without keeping its activations and run it again in backward.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace vmoba::model {

// `body(inputs, again)`: a function of `inputs` and of nothing else that takes part in gradients; `again` is true in
// the run inside backward. It must give the same values both times. Whatever it refers to must outlive the graph.
using RecomputedFunction = std::function<at::Tensor(const std::vector<at::Tensor>& inputs, bool again)>;

// body(inputs, false), keeping only `inputs` for backward. Values and first-order gradients are bit-identical to
// calling body directly; second-order gradients are not supported.
at::Tensor recompute_in_backward(const RecomputedFunction& body, const std::vector<at::Tensor>& inputs);

}  // namespace vmoba::model
