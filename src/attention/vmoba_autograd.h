// Sparse attention as one differentiable operation: the backend's backward stands in for autograd's, with the
// selection held constant. First derivatives only; a second differentiation throws Error(kRuntime).
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/vmoba_op.h"

namespace vmoba::attention {

// q, k, v [B, Z, N, D] -> [B, Z, N, D]. `pairs` receives SparseForward::pairs. `backend` must outlive the graph.
at::Tensor sparse_attention(const SparseBackend& backend, const SparseProblem& problem, const at::Tensor& q_BZND,
                            const at::Tensor& k_BZND, const at::Tensor& v_BZND, at::Tensor* pairs);

}  // namespace vmoba::attention
