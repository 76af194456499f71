// VMoBA written a second time, the slow and obvious way, from docs/attention.md: loops over tokens, one sort per pool,
// attention as a masked softmax over the whole score matrix in fp64. Shares no code with src/attention.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/vmoba/config.h"

namespace vmoba::test {

// Block of every token, original order.
std::vector<int64_t> oracle_block_of_token(const attention::Grid& grid, const std::array<int64_t, 3>& chunk);

// Original token of every permuted position.
std::vector<int64_t> oracle_token_order(const std::vector<int64_t>& block_of_token);

// Gates of one sample from q, k [S, N, D] in fp64, tokens in permuted order: [N, C, S].
at::Tensor oracle_gate(const at::Tensor& q_SND, const at::Tensor& k_SND, const std::vector<int64_t>& block_of_token);

// Attended (head, block, permuted position) of one sample from its gates, as bool [N, C, S].
at::Tensor oracle_select(const at::Tensor& gate_NCS, const std::vector<int64_t>& block_of_token,
                         const attention::VmobaRule& rule);

// Masked softmax attention, differentiable by autograd: q, k, v [B, Z, N, D], mask [B, N, C, S] permuted. Text beyond
// a sample's length (`text_lengths`; empty: all of it counts) is seen by nobody, and its rows are zeros.
at::Tensor oracle_attention(const at::Tensor& q_BZND, const at::Tensor& k_BZND, const at::Tensor& v_BZND,
                            const at::Tensor& mask_BNCS, const std::vector<int64_t>& block_of_token,
                            const std::vector<int64_t>& text_lengths = {});

// Which (query, key) pairs attend each other, original order: bool [B, N, Z, Z].
at::Tensor oracle_allowed(const at::Tensor& mask_BNCS, const std::vector<int64_t>& block_of_token, int64_t tokens);

}  // namespace vmoba::test
