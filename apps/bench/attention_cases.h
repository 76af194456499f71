// The case table of attention: one list of calls of self_attention() that drives the tests of outputs and gradients,
// `vmoba-bench check --case NAME` and `vmoba-bench attention --case NAME`.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/vmoba/config.h"

namespace vmoba::bench {

struct AttentionCase {
  std::string name;
  attention::Grid grid;
  attention::LayerAttention layer;
  int64_t text_tokens, batch, heads, head_dim;
  std::vector<int64_t> text_lengths = {};  // of each sample; empty: text_tokens each

  int64_t tokens() const { return grid.tokens() + text_tokens; }
};

// VMoBA layers; which partition they have follows from the zeros of `chunk`.
attention::LayerAttention threshold_layer(std::array<int64_t, 3> chunk, attention::Pool pool, double tau);
attention::LayerAttention topk_layer(std::array<int64_t, 3> chunk, attention::Pool pool, int64_t topk);

// The layer with tiles of so many queries that choose together; 0: whole blocks.
attention::LayerAttention tiled(attention::LayerAttention layer, int64_t query_tile);

// The layer with the remainder, its means of chunks `block` inside each block; zeros: the whole block.
attention::LayerAttention with_remainder(attention::LayerAttention layer, std::array<int64_t, 3> block = {0, 0, 0});

// The layer that compares shares in place of gates, by means of chunks `block` inside each block, with so many blocks
// for each chooser at least.
attention::LayerAttention by_shares(attention::LayerAttention layer, std::array<int64_t, 3> block = {0, 0, 0},
                                    int64_t least_blocks = 1);

// Small calls of odd shapes, for the comparison with plain attention.
const std::vector<AttentionCase>& small_cases();
// The same of tiles of queries that choose together; their masks are held to golden vectors.
const std::vector<AttentionCase>& tile_cases();
// The same with the means of what a query does not attend.
const std::vector<AttentionCase>& remainder_cases();
// The same with selections on shares.
const std::vector<AttentionCase>& share_cases();
// Calls of the published sizes, for timing.
const std::vector<AttentionCase>& published_cases();

// The case of any list with this name; throws Error(kInput) listing the names.
const AttentionCase& find_case(const std::string& name);

// A standard normal tensor that depends on `name` only.
at::Tensor normal_tensor(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype = at::kDouble);
// The same of the case's shape [B, tokens, N, D], from its name and `name`.
at::Tensor case_tensor(const AttentionCase& c, const std::string& name, at::ScalarType dtype = at::kDouble);

}  // namespace vmoba::bench
