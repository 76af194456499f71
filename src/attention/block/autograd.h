// Block-sparse attention as one differentiable operation: the engine's backward stands in for autograd's, with the
// selection held constant. First derivatives only; a second differentiation throws Error(kRuntime).
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/block/engine.h"

namespace vmoba::attention {

// q, k, v [B, Z, N, D] -> [B, Z, N, D]. `pairs_N` receives BlockForward::pairs_N. `tape` may be null; where it replays,
// `pairs_N` receives an undefined tensor. `engine` must outlive the graph.
at::Tensor block_attention(const BlockEngine& engine, const BlockProblem& problem, const at::Tensor& q_BZND,
                           const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::TensorList learnt,
                           at::Tensor* pairs_N, ResultTape* tape = nullptr);

}  // namespace vmoba::attention
