// VMoBA's row of the table of methods and its two selections. Configuration and rule are in vmoba/config.h.
//
// Gate: g[n,c,s] = q[token_of[s],n,:] . mean of k[:,n,:] over block c. Selection: docs/attention.md. Results do not
// depend on the number of threads; sums that decide a selection are fp64. No gradient flows through either.
//
// Shape letters: B samples, S video tokens, Z video and text tokens, N heads, D head size, C blocks, U query tiles.
// Gates and masks hold tokens in block order (block/partition.h).
#pragma once
#include <ATen/core/Tensor.h>

#include "attention/block/engine.h"
#include "attention/method.h"
#include "attention/vmoba/config.h"
#include "attention/vmoba/sub_blocks.h"

namespace vmoba::attention {

const Method& vmoba_method();

// Stage 1. Gates of one sample: q, k [Z, N, D] -> [N, C, S], fp32 (fp64 for fp64 inputs).
at::Tensor gate_NCS(const PartitionTables& tables, const at::Tensor& q_ZND, const at::Tensor& k_ZND);

// The same of tiles' mean queries: [N, C, U].
at::Tensor tile_gate_NCU(const PartitionTables& tables, const TileTables& tiles, const at::Tensor& q_ZND,
                         const at::Tensor& k_ZND);

// What of its attention each chooser of one sample gives to each block, by the means of keys, as a natural logarithm.
// Of scores q . mean / sqrt(D) + log(tokens) [.., M], or of q, k [Z, N, D], type as of gates.
at::Tensor log_shares(const SubBlocks& means, const at::Tensor& scores_RM);
at::Tensor log_shares_NCU(const BlockProblem& problem, const at::Tensor& q_ZND, const at::Tensor& k_ZND);
void log_shares_into(const BlockProblem& problem, const at::Tensor& q_ZND, const at::Tensor& k_ZND,
                     const at::Tensor& out_NCU);

// Who chooses blocks: tokens, or tiles of them. An entry of a pool counts as often as the chooser has tokens.
struct Choosers {
  at::Tensor block_of;               // of each, any integer type
  std::vector<int64_t> block_start;  // [C+1]: first chooser of each block
  at::Tensor tokens;                 // fp64, of each; undefined: one token each
  int64_t all_tokens = 0;
};
Choosers choosers(const PartitionTables& tables);
Choosers choosers(const PartitionTables& tables, const TileTables& tiles);
Choosers choosers(const BlockProblem& problem);

// What a layer leaves to a hash of (layer of the network, head, block, chooser): the same for every sample and step, on
// every device, and for heads that ranks share out.
struct HashedChoices {
  at::Tensor gate_NCU;     // fp32, whole numbers below 2^24 in place of gates; undefined unless select is random
  at::Tensor one_more_NU;  // bool, choosers that take one more block where density asks for a part of one; or undefined
};
HashedChoices hashed_choices(const BlockProblem& problem, const Choosers& who, int64_t heads);

// Stage 2. Which blocks each chooser of one sample attends: gates, or logarithms of shares where the rule says so,
// [N, C, choosers] -> bool of that shape, the own block included. `one_more_NU`: HashedChoices.
at::Tensor select(const Choosers& choosers, const VmobaRule& rule, const at::Tensor& gate,
                  const at::Tensor& one_more_NU = {});
// The same of every sample of a batch at once, [B, N, C, choosers], for choosers that are few.
at::Tensor select_samples(Choosers who, VmobaRule rule, const at::Tensor& gate_BNCU,
                          const at::Tensor& one_more_NU = {});
// The same of tokens.
at::Tensor select_NCS(const PartitionTables& tables, const VmobaRule& rule, const at::Tensor& gate_NCS);

// Takes all but their own blocks from VmobaRule::mean_heads.
void leave_to_means(const BlockProblem& problem, BlockMask& mask);

// The means of the blocks that a query does not attend, in tensor operations; null where the layer has no remainder.
const ExtraBranch* remainder_branch(const LayerAttention& layer);
// How many means there are.
int64_t remainder_means(const Grid& grid, const LayerAttention& layer);

// Both stages for every sample, by the CUDA kernels; bf16 tensors that the native engine takes. Makes K and V in block
// order on the way where the partition permutes tokens, and Q, K and V where tiles choose.
Selection vmoba_select_native(const BlockProblem& problem, const at::Tensor& q_BZND, const at::Tensor& k_BZND,
                              const at::Tensor& v_BZND, at::TensorList learnt);

}  // namespace vmoba::attention
