// VMoBA's part of the `attention:` group, and what it comes to in one layer (docs/attention.md).
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "attention/attention.h"

namespace vmoba::attention {

enum class SelectMode { kThreshold, kTopk };
const Choices<SelectMode>& choices_of(SelectMode);

// Gate values that compete with each other.
enum class Pool { kQueryHead, kBlock, kHeadGlobal, kOverall };
const Choices<Pool>& choices_of(Pool);

// Queries that choose their blocks together: each on its own, runs of 64 or 128 of a block, or all of a block.
enum class QueryTile { kQuery, k64, k128, kBlock };
const Choices<QueryTile>& choices_of(QueryTile);
int64_t tile_tokens(QueryTile tile);  // Method::query_tile

// What stands for the keys of the blocks that a query does not attend: nothing, or their means in the same softmax.
enum class Remainder { kNone, kOneSoftmax };
const Choices<Remainder>& choices_of(Remainder);

struct VmobaConfig {
  int64_t temporal_chunk = 3;
  std::vector<int64_t> spatial_chunk = {6, 8};
  std::vector<int64_t> spatiotemporal_chunk = {6, 9, 16};
  int64_t temporal_layers = 1, spatial_layers = 1, spatiotemporal_layers = 1;
  SelectMode select = SelectMode::kThreshold;
  Pool pool = Pool::kHeadGlobal;
  double tau = 0.25;
  QueryTile query_tile = QueryTile::kQuery;
  Remainder remainder = Remainder::kNone;
  std::vector<int64_t> remainder_block = {0, 0, 0};
  int64_t temporal_topk = 2, spatial_topk = 12, spatiotemporal_topk = 16;

  void visit(ConfigVisitor& v);
  void validate() const;
};

// LayerAttention::rule of a VMoBA layer.
struct VmobaRule {
  SelectMode select = SelectMode::kThreshold;
  Pool pool = Pool::kHeadGlobal;
  double tau = 0.25;
  int64_t topk = 1;        // the own block counts
  int64_t query_tile = 1;  // Method::query_tile
  Remainder remainder = Remainder::kNone;
  std::array<int64_t, 3> remainder_block = {0, 0, 0};  // chunk inside a block; 0: the block's whole extent
  bool learns_beta = false;                            // the remainder's beta is Method::learnt; else it is 0
};
VmobaRule& vmoba_rule(LayerAttention& layer);
const VmobaRule& vmoba_rule(const LayerAttention& layer);

}  // namespace vmoba::attention
