// VMoBA's row of the table of methods and its two selections. Configuration and rule are in vmoba/config.h.
//
// Gate: g[n,c,s] = q[token_of[s],n,:] . mean of k[:,n,:] over block c. Selection: docs/attention.md. Results do not
// depend on the number of threads; sums that decide a selection are fp64. No gradient flows through either.
//
// Shape letters: B samples, S video tokens, Z video and text tokens, N heads, D head size, C blocks. Gates and masks
// hold tokens in block order (block/partition.h).
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/block/engine.h"
#include "attention/method.h"
#include "attention/vmoba/config.h"

namespace vmoba::attention {

const Method& vmoba_method();

// Stage 1. Gates of one sample: q, k [Z, N, D] -> [N, C, S], fp32 (fp64 for fp64 inputs).
at::Tensor gate_NCS(const PartitionTables& tables, const at::Tensor& q_ZND, const at::Tensor& k_ZND);

// Stage 2. Which blocks each token of one sample attends (bool), own block included.
at::Tensor select_NCS(const PartitionTables& tables, const VmobaRule& rule, const at::Tensor& gate_NCS);

// Both stages for every sample, by the CUDA kernels; bf16 tensors that the native engine takes. Makes K and V in block
// order on the way where the partition permutes tokens.
Selection vmoba_select_native(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                              const at::Tensor& v_BZND, at::TensorList learnt);

}  // namespace vmoba::attention
