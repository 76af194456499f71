#include "attention/vmoba/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "core/check.h"

namespace vmoba::attention {

const Choices<SelectMode>& choices_of(SelectMode) {
  static const Choices<SelectMode> table("attention.select", {{SelectMode::kThreshold, "threshold"},
                                                              {SelectMode::kTopk, "topk"},
                                                              {SelectMode::kRandom, "random"},
                                                              {SelectMode::kOwn, "own"}});
  return table;
}

const Choices<Pool>& choices_of(Pool) {
  static const Choices<Pool> table("attention.pool", {{Pool::kQueryHead, "query_head"},
                                                      {Pool::kBlock, "block"},
                                                      {Pool::kHeadGlobal, "head_global"},
                                                      {Pool::kOverall, "overall"}});
  return table;
}

const Choices<QueryTile>& choices_of(QueryTile) {
  static const Choices<QueryTile> table(
      "attention.query_tile",
      {{QueryTile::kQuery, "1"}, {QueryTile::k64, "64"}, {QueryTile::k128, "128"}, {QueryTile::kBlock, "block"}});
  return table;
}

const Choices<Remainder>& choices_of(Remainder) {
  static const Choices<Remainder> table("attention.remainder",
                                        {{Remainder::kNone, "none"}, {Remainder::kOneSoftmax, "one_softmax"}});
  return table;
}

const Choices<RemainderBeta>& choices_of(RemainderBeta) {
  static const Choices<RemainderBeta> table("attention.remainder_beta",
                                            {{RemainderBeta::kZero, "zero"}, {RemainderBeta::kLearnt, "learnt"}});
  return table;
}

const Choices<Score>& choices_of(Score) {
  static const Choices<Score> table("attention.score", {{Score::kGate, "gate"}, {Score::kShare, "share"}});
  return table;
}

const Choices<Preset>& choices_of(Preset) {
  static const Choices<Preset> table("attention.preset",
                                     {{Preset::kNone, "none"}, {Preset::kPaper, "paper"}, {Preset::kCubes, "cubes"}});
  return table;
}

int64_t tile_tokens(QueryTile tile) {
  switch (tile) {
    case QueryTile::kQuery:
      return 1;
    case QueryTile::k64:
      return 64;
    case QueryTile::k128:
      return 128;
    case QueryTile::kBlock:
      break;
  }
  return 0;
}

void VmobaConfig::apply(Preset preset) {
  if (preset == Preset::kNone) return;
  *this = VmobaConfig();
  if (preset != Preset::kCubes) return;
  partitions = {choice_word(Partition::kSpatiotemporal)};
  spatiotemporal_chunk = {4, 4, 4};
  select = SelectMode::kTopk;
  pool = Pool::kQueryHead;
  density = 0.2;
  query_tile = QueryTile::kBlock;
}

void VmobaConfig::visit(ConfigVisitor& v) {
  Preset preset = Preset::kNone;
  v.field(
      "preset", preset,
      "Values for the keys of VMoBA below that are not set: those of the paper, or cubes (cubes of 64 tokens in "
      "every layer that choose the best fifth of the cubes), which lose least (docs/quality.md). none: the defaults, "
      "which are the paper's.");
  apply(preset);
  v.field("temporal_chunk", temporal_chunk, "Temporal partition: latent frames per block.", at_least(1));
  v.field("spatial_chunk", spatial_chunk, "Spatial partition: patches per block as [height, width].", list_of(2, 1));
  v.field("spatiotemporal_chunk", spatiotemporal_chunk,
          "Spatiotemporal partition: patches per block as [frames, height, width].", list_of(3, 1));
  v.field("temporal_layers", temporal_layers, "Layers with the temporal partition in each cycle over depth.",
          at_least(0));
  v.field("spatial_layers", spatial_layers, "Layers with the spatial partition that follow in each cycle.",
          at_least(0));
  v.field("spatiotemporal_layers", spatiotemporal_layers,
          "Layers with the spatiotemporal partition that close each cycle.", at_least(0));
  std::vector<std::string> words = choice_words<Partition>();
  words.push_back(kFullLayer);
  v.field("partitions", partitions,
          "Partitions of the sparse layers in turn, repeated over depth, `full` for full attention; one for each layer "
          "sets them singly. Empty: the cycle of the three keys above.",
          one_of(words));
  v.field("select", select,
          "How blocks are selected: by a threshold on the summed gate, or a fixed number of the best (topk). Controls: "
          "as many blocks as topk, but random ones, or each query's own block alone.");
  v.field("pool", pool,
          "Gate values that compete with each other: those of a token and head, of a block, of a head, or all.");
  v.field("tau", tau, "Share of a pool's normalised gate sum that the attended blocks reach (threshold); 1 takes all.",
          at_least(0.0));
  v.field(
      "query_tile", query_tile,
      "Queries that choose blocks together, by their mean: every query on its own (1, as in the paper), runs of 64 or "
      "128 queries of a block, or all of a block. Larger tiles make small blocks fast (docs/attention.md).");
  v.field("remainder", remainder,
          "What stands for the keys of blocks that a query does not attend: nothing (none, as in the paper), or their "
          "means in the same softmax (one_softmax, docs/attention.md).");
  v.field("remainder_block", remainder_block,
          "Patches per mean of the remainder inside a block as [frames, height, width]; 0 is the block's whole extent. "
          "Other values than [0, 0, 0] run the remainder without kernels.",
          list_of(3, 0));
  v.field("remainder_beta", remainder_beta,
          "What is added to the logits of the means: nothing (zero), or one number for each head and layer that is "
          "trained and starts at 0 (learnt, docs/attention.md).");
  v.field("mean_heads", mean_heads,
          "Heads, each as \"layer:head\", that attend their own block alone and all others by their means: for heads "
          "that average everything, which vmoba-analyze finds.");
  v.field("score", score,
          "What pools compare: gates (gate, as in the paper), or the share of a query's attention that a block gets by "
          "the means of its keys (share). tau is then the share of the attention to keep.");
  v.field("gate_block", gate_block,
          "Patches per mean of the share inside a block as [frames, height, width]; 0 is the block's whole extent.",
          list_of(3, 0));
  v.field("least_blocks", least_blocks,
          "Blocks that every query or tile attends at least, the own one counted, of pools over several of them "
          "(head_global, overall).",
          at_least(1));
  v.field("temporal_topk", temporal_topk, "Blocks per token in temporal layers, the own one counted (topk).",
          at_least(1));
  v.field("spatial_topk", spatial_topk, "Blocks per token in spatial layers, the own one counted (topk).", at_least(1));
  v.field("spatiotemporal_topk", spatiotemporal_topk,
          "Blocks per token in spatiotemporal layers, the own one counted (topk).", at_least(1));
  v.field("density", density,
          "Share of the blocks that a query attends, the own one counted, in place of the three keys above (topk, "
          "random): 0.1 of 192 blocks are 19.2, which is 19 for most queries and 20 for others. 0: they decide.",
          between(0, 1));
  v.field("densities", densities,
          "Densities of the sparse layers in turn, repeated over depth, in place of `density`; one for each layer sets "
          "them singly. Empty: `density` in all.",
          between(0, 1));
  v.field("density_steps", density_steps,
          "Optimiser steps, after `dense_warmup_steps`, in which the density falls from 1 to the configured one by the "
          "same factor in each step. 0: it is there at once.",
          at_least(0));
}

void VmobaConfig::validate() const {
  const bool counts = select == SelectMode::kTopk || select == SelectMode::kRandom;
  VMOBA_CHECK_INPUT(!counts || pool != Pool::kBlock,
                    "expected attention.pool to be query_head, head_global or overall with attention.select={}, found "
                    "block, which has no top-k; change attention.pool or set attention.select=threshold",
                    choice_word(select));
  VMOBA_CHECK_INPUT((density == 0 && densities.empty()) || counts,
                    "expected attention.select to be topk or random with attention.density, found {}; set "
                    "attention.select=topk, or attention.density=0 and no attention.densities",
                    choice_word(select));
  VMOBA_CHECK_INPUT(density == 0 || densities.empty(),
                    "expected one of attention.density and attention.densities, found both; remove one");
  VMOBA_CHECK_INPUT(std::none_of(densities.begin(), densities.end(), [](double d) { return !(d > 0 && d <= 1); }),
                    "expected each of attention.densities above 0 and at most 1, found {}; 1 attends all blocks",
                    fmt::join(densities, ", "));
  VMOBA_CHECK_INPUT(density_steps == 0 || density > 0 || !densities.empty(),
                    "expected attention.density or attention.densities with attention.density_steps {}, found neither; "
                    "set one, or attention.density_steps=0",
                    density_steps);
  const VmobaConfig published;
  VMOBA_CHECK_INPUT(
      partitions.empty() ||
          (temporal_layers == published.temporal_layers && spatial_layers == published.spatial_layers &&
           spatiotemporal_layers == published.spatiotemporal_layers),
      "expected the cycle of partitions once, found attention.partitions beside attention.temporal_layers "
      "{}, attention.spatial_layers {} and attention.spatiotemporal_layers {}; remove one of the two",
      temporal_layers, spatial_layers, spatiotemporal_layers);
  VMOBA_CHECK_INPUT(partitions.empty() || std::any_of(partitions.begin(), partitions.end(),
                                                      [](const std::string& word) { return word != kFullLayer; }),
                    "expected a sparse layer in attention.partitions, found full alone; set attention.backend=full");
  VMOBA_CHECK_INPUT(
      remainder != Remainder::kNone || remainder_block == std::vector<int64_t>({0, 0, 0}),
      "expected attention.remainder_block to be [0, 0, 0] with attention.remainder=none, which takes no "
      "means, found [{}, {}, {}]; set attention.remainder=one_softmax or remove attention.remainder_block",
      remainder_block[0], remainder_block[1], remainder_block[2]);
  VMOBA_CHECK_INPUT(remainder_beta == RemainderBeta::kZero || remainder != Remainder::kNone,
                    "expected attention.remainder_beta to be zero with attention.remainder=none, which takes no means, "
                    "found learnt; set attention.remainder=one_softmax or remove attention.remainder_beta");
  check_mean_heads();
  check_score();
  VMOBA_CHECK_INPUT(temporal_layers > 0 || spatial_layers > 0 || spatiotemporal_layers > 0,
                    "expected at least one layer in the cycle, found attention.temporal_layers, "
                    "attention.spatial_layers and attention.spatiotemporal_layers all 0; set one of them, or "
                    "attention.backend=full");
}

void VmobaConfig::check_mean_heads() const {
  VMOBA_CHECK_INPUT(
      mean_heads.empty() || remainder != Remainder::kNone,
      "expected no attention.mean_heads with attention.remainder=none, which takes no means, found {}; set "
      "attention.remainder=one_softmax or remove attention.mean_heads",
      fmt::join(mean_heads, ", "));
  for (const std::string& text : mean_heads)
    VMOBA_CHECK_INPUT(head_of_layer(text),
                      "expected a layer and a head in attention.mean_heads, as \"3:0\", found '{}'", text);
}

void VmobaConfig::check_score() const {
  VMOBA_CHECK_INPUT(score == Score::kGate || select == SelectMode::kThreshold || select == SelectMode::kTopk,
                    "expected attention.select to be threshold or topk with attention.score=share, found {}, which "
                    "compares nothing; set attention.select or remove attention.score",
                    choice_word(select));
  VMOBA_CHECK_INPUT(score == Score::kShare || gate_block == std::vector<int64_t>({0, 0, 0}),
                    "expected attention.gate_block to be [0, 0, 0] with attention.score=gate, the product of whole "
                    "blocks' means, found [{}, {}, {}]; set attention.score=share or remove attention.gate_block",
                    gate_block[0], gate_block[1], gate_block[2]);
  const bool shared = pool == Pool::kHeadGlobal || pool == Pool::kOverall;
  VMOBA_CHECK_INPUT(least_blocks == 1 || (shared && select != SelectMode::kOwn),
                    "expected attention.least_blocks to be 1 with attention.select={} and attention.pool={}, found {}; "
                    "set attention.pool to head_global or overall, or remove attention.least_blocks",
                    choice_word(select), choice_word(pool), least_blocks);
}

std::optional<HeadOfLayer> head_of_layer(const std::string& text) {
  HeadOfLayer out{};
  const char* const end = text.data() + text.size();
  const auto layer = std::from_chars(text.data(), end, out.layer);
  if (layer.ec != std::errc() || layer.ptr == end || *layer.ptr != ':') return std::nullopt;
  const auto head = std::from_chars(layer.ptr + 1, end, out.head);
  if (head.ec != std::errc() || head.ptr != end || out.layer < 0 || out.head < 0) return std::nullopt;
  return out;
}

double VmobaRule::blocks_per_query(int64_t blocks) const {
  const double wanted = density > 0 ? std::max(1.0, density * double(blocks)) : double(topk);
  return std::min(wanted, double(blocks));
}

VmobaRule& vmoba_rule(LayerAttention& layer) {
  return std::any_cast<VmobaRule&>(layer.rule);
}

const VmobaRule& vmoba_rule(const LayerAttention& layer) {
  return std::any_cast<const VmobaRule&>(layer.rule);
}

}  // namespace vmoba::attention
