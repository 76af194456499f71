// Who computes sparse attention: the interface behind which the reference and the native kernels stand.
//
// Both run the same four stages (docs/attention.md): gate -> select -> index -> attend, and keep what backward needs
// of the selection as tensors of their own choice. Backends own no memory between calls and launch on the current
// stream. Shape letters: B samples, S video tokens, X text tokens, Z = S + X, N heads, D head size, C blocks.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/vmoba_partition.h"

namespace vmoba::attention {

// One call's geometry and selection rule; `layer.sparse` is true.
struct SparseProblem {
  Grid grid;
  int64_t text_tokens = 0;
  LayerAttention layer;
  std::shared_ptr<const PartitionTables> tables;
};

struct SparseForward {
  at::Tensor out_BZND;                // dtype of q, original token order
  at::Tensor lse_BNZ;                 // fp32 (fp64 for fp64 inputs), natural log, original token order
  at::Tensor pairs;                   // fp64 scalar on q's device: attended (query, key) pairs over B and N
  std::vector<at::Tensor> selection;  // for backward(), mask_BNCS() and attend() of the same backend
};

// What select() chose: tensors whose meaning is the backend's own.
using Selection = std::vector<at::Tensor>;

struct SparseGradients {
  at::Tensor dq_BZND, dk_BZND, dv_BZND;
};

class SparseBackend {
 public:
  virtual ~SparseBackend() = default;
  // Stages gate, select and index.
  virtual Selection select(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                           const at::Tensor& v_BZND) const = 0;
  // Stage attend, with a selection of this backend and these tensors.
  virtual SparseForward attend(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                               const at::Tensor& v_BZND, const Selection& selection) const = 0;
  // All stages.
  SparseForward forward(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                        const at::Tensor& v_BZND) const {
    return attend(problem, q_BZND, k_BZND, v_BZND, select(problem, q_BZND, k_BZND, v_BZND));
  }
  // Gradients with the selection held constant; out, lse and selection are those of forward().
  virtual SparseGradients backward(const SparseProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                                   const at::Tensor& v_BZND, const SparseForward& saved,
                                   const at::Tensor& dout_BZND) const = 0;
  // Bool, true where the token at a permuted position attends the block, own block included.
  virtual at::Tensor mask_BNCS(const SparseProblem& problem, const std::vector<at::Tensor>& selection) const = 0;
};

// The backend that `implementation` (auto | reference | native) names for inputs like q. Throws Error(kInput) where
// there is none.
const SparseBackend& sparse_backend(const std::string& implementation, const at::Tensor& q_BZND);

// Whether full attention is expected to take less time than the native kernels, forward and backward together: a rule
// on tokens and on the density that the selection asks for, measured on an H200 (docs/benchmarks.md).
bool full_is_faster(int64_t tokens, int64_t blocks, const LayerAttention& layer);

// Checks layer and shapes (Error(kInput)) and looks up the partition of a call of self_attention.
SparseProblem make_sparse_problem(const at::Tensor& q_BZND, const Grid& grid, int64_t text_tokens,
                                  const LayerAttention& layer);

}  // namespace vmoba::attention
