// VMoBA's part of the `attention:` group, and what it comes to in one layer (docs/attention.md).
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention.h"

namespace vmoba::attention {

// kRandom and kOwn are controls: what a selection is worth shows against blocks that nobody chose, or none.
enum class SelectMode { kThreshold, kTopk, kRandom, kOwn };
const Choices<SelectMode>& choices_of(SelectMode);

// Gate values that compete with each other.
enum class Pool { kQueryHead, kBlock, kHeadGlobal, kOverall };
const Choices<Pool>& choices_of(Pool);

// Queries that choose their blocks together: each on its own, runs of 64 or 128 of a block, or all of a block.
enum class QueryTile { kQuery, k64, k128, kBlock };
const Choices<QueryTile>& choices_of(QueryTile);
int64_t tile_tokens(QueryTile tile);  // Method::query_tile

// The word of attention.partitions for a layer of full attention.
constexpr const char* kFullLayer = "full";

// What stands for the keys of the blocks that a query does not attend: nothing, or their means in the same softmax.
enum class Remainder { kNone, kOneSoftmax };
const Choices<Remainder>& choices_of(Remainder);

// What is added to the logits of the remainder's means: nothing, or one number of each head and layer that is learnt.
enum class RemainderBeta { kZero, kLearnt };
const Choices<RemainderBeta>& choices_of(RemainderBeta);

// What stands in a pool: gates, or the shares of attention that blocks get by the means of their keys.
enum class Score { kGate, kShare };
const Choices<Score>& choices_of(Score);

// Values for the fields below at once, in place of their defaults; a field that is set as well counts. kPaper: the
// published ones, which are the defaults. kCubes: what lost least in docs/quality.md.
enum class Preset { kNone, kPaper, kCubes };
const Choices<Preset>& choices_of(Preset);

struct VmobaConfig {
  int64_t temporal_chunk = 3;
  std::vector<int64_t> spatial_chunk = {6, 8};
  std::vector<int64_t> spatiotemporal_chunk = {6, 9, 16};
  int64_t temporal_layers = 1, spatial_layers = 1, spatiotemporal_layers = 1;
  std::vector<std::string> partitions;  // of the sparse layers in turn, words of Partition or "full"; empty: the cycle
  SelectMode select = SelectMode::kThreshold;
  Pool pool = Pool::kHeadGlobal;
  double tau = 0.25;
  QueryTile query_tile = QueryTile::kQuery;
  Remainder remainder = Remainder::kNone;
  std::vector<int64_t> remainder_block = {0, 0, 0};
  RemainderBeta remainder_beta = RemainderBeta::kZero;
  std::vector<std::string> mean_heads;  // "layer:head", of the network
  Score score = Score::kGate;
  std::vector<int64_t> gate_block = {0, 0, 0};
  int64_t least_blocks = 1;
  int64_t temporal_topk = 2, spatial_topk = 12, spatiotemporal_topk = 16;
  double density = 0;             // in place of the three; 0: they decide
  std::vector<double> densities;  // of the sparse layers in turn, in place of density
  int64_t density_steps = 0;      // optimiser steps in which the density falls from 1

  // A preset becomes the values that it stands for, so that printing and comparing configurations knows fields alone.
  void visit(ConfigVisitor& v);
  void validate() const;

 private:
  void apply(Preset preset);
  void check_mean_heads() const;
  void check_score() const;
};

// LayerAttention::rule of a VMoBA layer. kOwn is kTopk with one block here.
struct VmobaRule {
  SelectMode select = SelectMode::kThreshold;
  Pool pool = Pool::kHeadGlobal;
  double tau = 0.25;
  int64_t topk = 1;        // the own block counts; of kTopk and kRandom
  int64_t query_tile = 1;  // Method::query_tile
  Remainder remainder = Remainder::kNone;
  std::array<int64_t, 3> remainder_block = {0, 0, 0};  // chunk inside a block; 0: the block's whole extent
  bool learns_beta = false;                            // the remainder's beta is Method::learnt; else it is 0
  std::vector<int64_t> mean_heads = {};                // that attend their own blocks alone, the others by means
  Score score = Score::kGate;
  std::array<int64_t, 3> gate_block = {0, 0, 0};  // of shares; as remainder_block
  int64_t least_blocks = 1;  // that a chooser attends at least, its own counted; of kHeadGlobal and kOverall
  double density = 0;        // share of the blocks in place of topk; 0: topk

  // Blocks that a query attends of `blocks`, its own counted, of kTopk and kRandom: not a whole number where `density`
  // asks for a part of one.
  double blocks_per_query(int64_t blocks) const;
};
// An entry of mean_heads; nothing where the text is none.
struct HeadOfLayer {
  int64_t layer, head;
};
std::optional<HeadOfLayer> head_of_layer(const std::string& text);

VmobaRule& vmoba_rule(LayerAttention& layer);
const VmobaRule& vmoba_rule(const LayerAttention& layer);

}  // namespace vmoba::attention
