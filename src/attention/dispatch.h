// Who computes a call of self_attention(): which engine, and whether full attention in place of a sparse layer.
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/block/engine.h"

namespace vmoba::attention {

// The engine that `implementation` names for inputs like q. Throws Error(kInput) where there is none.
const BlockEngine& block_engine(Implementation implementation, const at::Tensor& q_BZND);

// The engine for a layer: that of `layer.implementation`, and of the native ones that of tiles where tiles choose.
const BlockEngine& block_engine(const LayerAttention& layer, const at::Tensor& q_BZND);

// Checks layer and shapes (Error(kInput)) and looks up the partition of a call of self_attention.
BlockProblem make_block_problem(const at::Tensor& q_BZND, const Grid& grid, int64_t text_tokens,
                                const LayerAttention& layer);

// Whether full attention is expected to take less time than the native kernels, forward and backward together: a rule
// on tokens and on the density that the selection asks for, measured for each family of kernels (docs/attention.md).
bool full_is_faster(int64_t tokens, int64_t blocks, const LayerAttention& layer, int family = 90);

// Whether the layer asks for that choice and q's device has kernels; logs the first for every size and partition. Reads
// no more than q's sizes, type and device, so that a tensor that is only traced will do.
bool choose_full(const at::Tensor& q_BZND, int64_t blocks, const LayerAttention& layer);

// Throw Error(kInput) where a tensor is no [B, tokens, N, D] of a known type, or has not the grid's tokens and text.
void check_tensor(const char* name, const at::Tensor& x_BZND);
void check_tokens(const at::Tensor& q_BZND, const Grid& grid, int64_t text_tokens);
// Throws Error(kInput) where the arguments of self_attention() disagree.
void check_call(const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor& v_BSND, const Grid& grid,
                int64_t text_tokens, const LayerAttention& layer, at::IntArrayRef text_lengths);

// A size of a tensor, which tracing with dynamic shapes fixes to this value.
int64_t fixed_size(const at::Tensor& x, int64_t dim);

}  // namespace vmoba::attention
