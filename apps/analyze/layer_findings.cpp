#include "apps/analyze/layer_findings.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "apps/analyze/attention_mass.h"
#include "attention/dispatch.h"
#include "attention/vmoba/vmoba.h"
#include "core/check.h"

namespace vmoba::apps {
namespace {

using attention::LayerAttention;
using attention::Partition;

constexpr std::array<Partition, 3> kPartitions = {Partition::kTemporal, Partition::kSpatial,
                                                  Partition::kSpatiotemporal};

attention::Chunk chunk_of(const attention::VmobaConfig& config, Partition partition) {
  switch (partition) {
    case Partition::kTemporal:
      return {config.temporal_chunk, 0, 0};
    case Partition::kSpatial:
      return {0, config.spatial_chunk[0], config.spatial_chunk[1]};
    case Partition::kSpatiotemporal:
      break;
  }
  return {config.spatiotemporal_chunk[0], config.spatiotemporal_chunk[1], config.spatiotemporal_chunk[2]};
}

// `cut`: of kFine.
attention::VmobaRule rule_of(Chooser chooser, double density, const attention::Chunk& cut) {
  attention::VmobaRule rule{attention::SelectMode::kTopk, attention::Pool::kQueryHead};
  rule.density = density;
  if (chooser == Chooser::kHeadGlobal) rule.pool = attention::Pool::kHeadGlobal;
  if (chooser == Chooser::kTile) rule.query_tile = 0;
  if (chooser == Chooser::kShare || chooser == Chooser::kFine) rule.score = attention::Score::kShare;
  if (chooser == Chooser::kShare) rule.pool = attention::Pool::kHeadGlobal;
  if (chooser == Chooser::kFine) rule.gate_block = cut;
  if (chooser == Chooser::kRandom) rule.select = attention::SelectMode::kRandom;
  if (chooser == Chooser::kOwn) rule.density = 0;  // topk 1
  return rule;
}

// Which blocks the tokens of one head attend, permuted order: bool [C, S].
at::Tensor chosen_CS(const attention::VmobaConfig& config, Chooser chooser, const LayerAttention& layer,
                     const attention::Grid& grid, double density, const at::Tensor& mass_CS, const at::Tensor& q_SD,
                     const at::Tensor& k_SD) {
  LayerAttention asked = layer;
  asked.method = &attention::vmoba_method();
  attention::Chunk cut = {2, 2, 2};
  if (config.gate_block != std::vector<int64_t>{0, 0, 0}) std::copy_n(config.gate_block.begin(), 3, cut.begin());
  asked.rule = rule_of(chooser, density, cut);
  const at::Tensor q_1S1D = q_SD.unsqueeze(0).unsqueeze(2), k_1S1D = k_SD.unsqueeze(0).unsqueeze(2);
  const attention::BlockProblem problem = attention::make_block_problem(q_1S1D, grid, 0, asked);
  if (chooser != Chooser::kOracle)
    return attends_BNCS(problem, attention::vmoba_method().select(problem, q_1S1D, k_1S1D, k_1S1D, {}))[0][0];
  const attention::Choosers who = attention::choosers(problem);
  const attention::HashedChoices hashed = attention::hashed_choices(problem, who, 1);
  return attention::select(who, attention::vmoba_rule(asked), mass_CS.unsqueeze(0), hashed.one_more_NU)[0];
}

double mean_value(const at::Tensor& x) {
  return x.to(at::kDouble).mean().item<double>();
}

void add_to(std::vector<double>& sums, const at::Tensor& values) {
  const at::Tensor host = values.to(at::kDouble).cpu().contiguous();
  sums.resize(size_t(host.numel()));
  for (int64_t i = 0; i < host.numel(); ++i) sums[size_t(i)] += host.const_data_ptr<double>()[i];
}

void add_to(std::vector<std::vector<double>>& sums, const at::Tensor& values) {
  sums.resize(size_t(values.size(0)));
  for (int64_t i = 0; i < values.size(0); ++i) add_to(sums[size_t(i)], values[i]);
}

// |i - j| of all pairs of [0, length).
at::Tensor distances(int64_t length, const at::TensorOptions& options) {
  const at::Tensor place = at::arange(length, options.dtype(at::kLong));
  return (place.unsqueeze(0) - place.unsqueeze(1)).abs();
}

// Attention at a distance of so many frames: from its sums over key frames [T, S].
at::Tensor by_frames_T(const at::Tensor& mass_TS, const attention::Grid& grid) {
  const at::Tensor keys_TT = mass_TS.view({grid.t, grid.t, -1}).mean(2) / double(grid.t);
  return at::zeros({grid.t}, mass_TS.options())
      .index_add_(0, distances(grid.t, mass_TS.options()).flatten(), keys_TT.flatten());
}

// Attention at a distance of so many rows and columns: from its sums over key columns of time [HW, S].
at::Tensor by_rows_columns_HW(const at::Tensor& mass_PS, const attention::Grid& grid) {
  const int64_t places = grid.h * grid.w;
  const at::Tensor keys_PP = mass_PS.view({places, grid.t, places}).mean(1) / double(places);
  const at::Tensor rows = distances(grid.h, mass_PS.options()), columns = distances(grid.w, mass_PS.options());
  const at::Tensor place_hwhw = rows.view({grid.h, 1, grid.h, 1}) * grid.w + columns.view({1, grid.w, 1, grid.w});
  return at::zeros({places}, mass_PS.options())
      .index_add_(0, place_hwhw.reshape({-1}), keys_PP.flatten())
      .view({grid.h, grid.w});
}

}  // namespace

double Kept::add(const at::Tensor& mass_CS, const at::Tensor& mask_CS, const attention::PartitionTables& tables) {
  const double held = mean_value((mass_CS * mask_CS).sum(0));
  mass.add(held);
  density.add(mean_value((mask_CS * tables.block_tokens_C.unsqueeze(1)).sum(0)) / double(tables.tokens));
  return held;
}

const Choices<Chooser>& choices_of(Chooser) {
  static const Choices<Chooser> table("a selection", {{Chooser::kOracle, "oracle"},
                                                      {Chooser::kQueryHead, "query_head"},
                                                      {Chooser::kHeadGlobal, "head_global"},
                                                      {Chooser::kTile, "tile"},
                                                      {Chooser::kShare, "share"},
                                                      {Chooser::kFine, "fine"},
                                                      {Chooser::kRandom, "random"},
                                                      {Chooser::kOwn, "own"}});
  return table;
}

std::vector<double> compared_densities(double density) {
  const std::set<double> all = {0.05, 0.1, 0.2, 0.4, density};
  return {all.begin(), all.end()};
}

AttentionAnalysis::AttentionAnalysis(const attention::AttentionConfig& config, double density,
                                     std::vector<int64_t> layers)
    : config_(config), vmoba_(config.part<attention::VmobaConfig>()), density_(density), wanted_(std::move(layers)) {}

void AttentionAnalysis::observe(const LayerAttention& layer, const attention::Grid& grid, int64_t text_tokens,
                                const at::Tensor& q_BSND, const at::Tensor& k_BSND, const at::Tensor&) {
  if (!wanted_.empty() && std::count(wanted_.begin(), wanted_.end(), layer.index) == 0) return;
  VMOBA_CHECK_INPUT(text_tokens == 0, "vmoba-analyze: expected attention of video tokens, found {} of text",
                    text_tokens);
  const Configured asked = configured(layer, grid, q_BSND, k_BSND);
  for (int64_t b = 0; b < q_BSND.size(0); ++b)
    for (int64_t n = 0; n < q_BSND.size(2); ++n)
      look_at_head(findings_[layer.index], layer, grid, layer.first_head + n, q_BSND[b].select(1, n),
                   k_BSND[b].select(1, n), asked, asked.mask_BNCS.defined() ? asked.mask_BNCS[b][n] : at::Tensor());
}

AttentionAnalysis::Configured AttentionAnalysis::configured(const LayerAttention& layer, const attention::Grid& grid,
                                                            const at::Tensor& q_BSND, const at::Tensor& k_BSND) const {
  Configured out{attention::layer_attention(config_, layer.index, /*dense=*/false), {}};
  if (!out.layer.sparse()) return out;
  out.layer.first_head = layer.first_head;
  const attention::BlockProblem problem = attention::make_block_problem(q_BSND, grid, 0, out.layer);
  out.mask_BNCS = attends_BNCS(problem, out.layer.method->select(problem, q_BSND, k_BSND, k_BSND, {}));
  return out;
}

void AttentionAnalysis::look_at_head(LayerFindings& out, const LayerAttention& layer, const attention::Grid& grid,
                                     int64_t head, const at::Tensor& q_SD, const at::Tensor& k_SD,
                                     const Configured& asked, const at::Tensor& asked_CS) {
  std::vector<std::shared_ptr<const attention::PartitionTables>> tables;
  for (const Partition partition : kPartitions)
    tables.push_back(attention::partition_tables(grid, chunk_of(vmoba_, partition), q_SD.device()));
  tables.push_back(attention::partition_tables(grid, {1, 0, 0}, q_SD.device()));
  tables.push_back(attention::partition_tables(grid, {0, 1, 1}, q_SD.device()));
  std::vector<const attention::PartitionTables*> borrowed;
  for (const auto& table : tables) borrowed.push_back(table.get());
  const HeadMass head_mass = attention_mass(q_SD, k_SD, borrowed);

  out.entropy.add(mean_value(head_mass.entropy_S));
  out.keys_90.add(mean_value(head_mass.keys_R));
  out.evenness[head].add(mean_value(head_mass.entropy_S.exp()) / double(grid.tokens()));
  add_to(out.by_frames, by_frames_T(head_mass.mass_CS[3], grid));
  add_to(out.by_rows_columns, by_rows_columns_HW(head_mass.mass_CS[4], grid));
  out.passes += 1;
  for (size_t p = 0; p < kPartitions.size(); ++p) {
    const attention::PartitionTables& table = *tables[p];
    const at::Tensor order_S = table.token_of_S.to(at::kLong);
    const at::Tensor mass_CS = head_mass.mass_CS[p].index_select(1, order_S);  // permuted from here on
    const at::Tensor own_S = mass_CS.gather(0, table.block_of_S.to(at::kLong).unsqueeze(0)).squeeze(0);
    if (kPartitions[p] == Partition::kSpatiotemporal) {
      const at::Tensor outside_S = at::empty_like(own_S).index_copy_(0, order_S, 1 - own_S);
      add_to(out.importance, outside_S.view({grid.t, grid.h, grid.w})[grid.t / 2]);
    }
    if (asked_CS.defined() && asked.layer.partition == kPartitions[p]) out.configured.add(mass_CS, asked_CS, table);
    if (table.blocks == 1) continue;
    PartitionFindings& found = out.partitions[kPartitions[p]];
    found.chunk = chunk_of(vmoba_, kPartitions[p]);
    found.blocks = table.blocks;
    found.own.add(mean_value(own_S));
    LayerAttention compared = layer;
    compared.partition = kPartitions[p];
    compared.chunk = found.chunk;
    compare(found, compared, grid, head, mass_CS, q_SD, k_SD);
  }
}

void AttentionAnalysis::compare(PartitionFindings& out, const LayerAttention& layer, const attention::Grid& grid,
                                int64_t head, const at::Tensor& mass_CS, const at::Tensor& q_SD,
                                const at::Tensor& k_SD) {
  LayerAttention here = layer;
  here.first_head = head;
  const auto tables = attention::partition_tables(grid, layer.chunk, q_SD.device());
  const at::Tensor own_CS =
      at::arange(tables->blocks, tables->block_of_S.options()).unsqueeze(1) == tables->block_of_S.unsqueeze(0);
  for (const double density : compared_densities(density_)) {
    const at::Tensor best_CS = chosen_CS(vmoba_, Chooser::kOracle, here, grid, density, mass_CS, q_SD, k_SD);
    const double others = (best_CS.sum() - own_CS.sum()).item<double>();
    for (const std::string& word : choice_words<Chooser>()) {
      const auto chooser = choice_value<Chooser>(word);
      const at::Tensor mask_CS =
          chooser == Chooser::kOracle ? best_CS : chosen_CS(vmoba_, chooser, here, grid, density, mass_CS, q_SD, k_SD);
      Kept& kept = out.kept[{chooser, density}];
      const double mass = kept.add(mass_CS, mask_CS, *tables);
      const double both = (mask_CS.logical_and(best_CS).sum() - own_CS.sum()).item<double>();
      if (others > 0) kept.recall.add(both / others);
      if (chooser == Chooser::kQueryHead && density == density_) out.kept_by_sigma[sigma_].add(mass);
    }
  }
}

std::vector<std::string> AttentionAnalysis::mean_heads() const {
  std::vector<std::string> out;
  for (const auto& [layer, found] : findings_)
    for (const auto& [head, evenness] : found.evenness)
      if (evenness.value() >= kEven) out.push_back(fmt::format("{}:{}", layer, head));
  return out;
}

std::vector<std::string> AttentionAnalysis::best_partitions(double least) const {
  std::vector<std::string> out;
  for (const auto& [layer, found] : findings_) {
    std::string best = attention::kFullLayer;
    double kept = least;
    for (const auto& [partition, one] : found.partitions) {
      const double mass = one.kept.at({Chooser::kQueryHead, density_}).mass.value();
      if (mass < kept || (mass == kept && best != attention::kFullLayer)) continue;
      best = choice_word(partition);
      kept = mass;
    }
    out.push_back(best);
  }
  return out;
}

}  // namespace vmoba::apps
