// The analysis of attention on tensors whose attention is known.
#include <ATen/ATen.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/analyze/attention_mass.h"
#include "apps/analyze/layer_findings.h"
#include "attention/method.h"
#include "core/random.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/png.h"

using namespace vmoba;
using namespace vmoba::apps;
using attention::Grid;
using attention::Partition;

namespace {

const Grid kGrid = {4, 5, 6};
const attention::Chunk kCube = {2, 3, 2};  // 2 x 2 x 3 ragged blocks

at::Tensor normal(const std::string& name, at::IntArrayRef shape) {
  at::Tensor x = at::empty(shape, at::kFloat);
  fill_normal(3, name, 0, x.mutable_data_ptr<float>(), x.numel());
  return x;
}

HeadMass mass_of(const at::Tensor& q_SD, const at::Tensor& k_SD, int64_t scores = kMassScores) {
  const auto tables = attention::partition_tables(kGrid, kCube, at::kCPU);
  return attention_mass(q_SD, k_SD, {tables.get()}, scores);
}

// Findings of a layer with these tensors [S, N, D], in a configuration with these keys.
AttentionAnalysis analysis_of(const at::Tensor& q_SND, const at::Tensor& k_SND,
                              const attention::VmobaConfig& keys = {}) {
  attention::AttentionConfig config;
  auto& vmoba = config.part<attention::VmobaConfig>();
  vmoba = keys;
  vmoba.temporal_chunk = 1;
  vmoba.spatial_chunk = {3, 2};
  vmoba.spatiotemporal_chunk = {2, 3, 2};
  AttentionAnalysis out(config, 0.25, {});
  attention::LayerAttention layer;
  layer.index = 7;
  out.begin(0.5);
  out.observe(layer, kGrid, 0, q_SND.unsqueeze(0), k_SND.unsqueeze(0), k_SND.unsqueeze(0));
  return out;
}

}  // namespace

TEST_CASE("attention of queries that prefer nothing lies where the tokens are") {
  const HeadMass mass = mass_of(at::zeros({120, 8}), normal("k", {120, 8}));
  const auto tables = attention::partition_tables(kGrid, kCube, at::kCPU);
  const at::Tensor expected_CS = (tables->block_tokens_C / 120).unsqueeze(1).expand({tables->blocks, 120});
  CHECK(at::allclose(mass.mass_CS[0].to(at::kDouble), expected_CS, 1e-6, 1e-7));
  CHECK(at::allclose(mass.entropy_S, at::full({120}, std::log(120.0F)), 1e-5, 1e-5));
  CHECK(mass.keys_R.sub(108).abs().max().item<int64_t>() <= 1);  // 90 % of 120, up to rounding
}

TEST_CASE("attention of queries that see one key lies in its block") {
  // Keys are far apart from each other; query i is key (7 i) mod 120, loud enough to see nothing else.
  const at::Tensor k = at::eye(120), order = at::arange(120) * 7 % 120;
  const HeadMass mass = mass_of(k.index_select(0, order) * 2000, k);
  const auto block = attention::partition_tables(kGrid, kCube, at::kCPU);
  at::Tensor block_of_token = at::empty({120}, at::kLong);
  block_of_token.index_copy_(0, block->token_of_S.to(at::kLong), block->block_of_S.to(at::kLong));
  const at::Tensor expected_CS = at::one_hot(block_of_token.index_select(0, order), block->blocks).t().to(at::kFloat);
  CHECK(at::allclose(mass.mass_CS[0], expected_CS, 0, 1e-6));
  CHECK(mass.entropy_S.abs().max().item<float>() < 1e-3F);
  CHECK(mass.keys_R.eq(1).all().item<bool>());
}

TEST_CASE("the shares of a query sum to one, however the queries are cut into chunks") {
  const at::Tensor q = normal("q", {120, 16}), k = normal("k", {120, 16});
  const HeadMass whole = mass_of(q, k);
  CHECK(at::allclose(whole.mass_CS[0].sum(0), at::ones({120}), 1e-5, 1e-5));
  for (const int64_t scores : {1, 120, 1000, 7 * 120}) {
    const HeadMass parts = mass_of(q, k, scores);
    CHECK(at::allclose(parts.mass_CS[0], whole.mass_CS[0], 1e-5, 1e-7));
    CHECK(at::allclose(parts.entropy_S, whole.entropy_S, 1e-5, 1e-5));
    CHECK(at::equal(parts.keys_R, whole.keys_R));
  }
  // Against softmax over the whole matrix in fp64.
  const at::Tensor p = at::softmax(at::matmul(q.to(at::kDouble), k.to(at::kDouble).t()) / 4, 1);
  CHECK(at::allclose(whole.entropy_S.to(at::kDouble), -(p * p.log()).sum(1), 1e-5, 1e-5));
}

TEST_CASE("attention that prefers nothing: whatever is chosen keeps its density, and distances are those of pairs") {
  const AttentionAnalysis analysis = analysis_of(at::zeros({120, 2, 8}), normal("k", {120, 2, 8}));
  REQUIRE(analysis.layers().size() == 1);
  const LayerFindings& found = analysis.layers().at(7);
  CHECK(found.passes == 2);
  CHECK(found.entropy.value() == Approx(std::log(120.0)).epsilon(1e-5));
  for (int64_t d = 0; d < 4; ++d)  // pairs of 4 frames at a distance of d
    CHECK(found.by_frames[size_t(d)] / 2 == Approx((d == 0 ? 4 : 2 * (4 - d)) / 16.0).epsilon(1e-5));
  double sum = 0;
  for (int64_t y = 0; y < 5; ++y)
    for (int64_t x = 0; x < 6; ++x) {
      const double rows = (y == 0 ? 5 : 2 * (5 - y)) / 25.0, columns = (x == 0 ? 6 : 2 * (6 - x)) / 36.0;
      CHECK(found.by_rows_columns[size_t(y)][size_t(x)] / 2 == Approx(rows * columns).epsilon(1e-5));
      sum += found.by_rows_columns[size_t(y)][size_t(x)] / 2;
    }
  CHECK(sum == Approx(1).epsilon(1e-5));
  REQUIRE(found.importance.size() == 5);
  for (const auto& row : found.importance)
    for (const double outside : row) CHECK((outside / 2 > 0.8 && outside / 2 < 1));
  for (const auto& [partition, one] : found.partitions) {
    CHECK(one.blocks == attention::partition_block_count(kGrid, one.chunk));
    for (const auto& [key, kept] : one.kept) CHECK(kept.mass.value() == Approx(kept.density.value()).epsilon(1e-5));
  }
}

TEST_CASE("the oracle keeps most, whole density keeps all, and the best partition is the one that keeps most") {
  // Every token attends its own frame: queries and keys carry their frame's number.
  const at::Tensor frame_S = at::arange(120) / 30;
  const at::Tensor q = 30 * at::one_hot(frame_S.to(at::kLong), 8).to(at::kFloat).unsqueeze(1).expand({120, 2, 8});
  const AttentionAnalysis analysis = analysis_of(q, q);
  const LayerFindings& found = analysis.layers().at(7);
  // Scores are 900 / sqrt(8) = 318 in fp32: a unit in their last place is 3e-5.
  CHECK(found.by_frames[0] / 2 == Approx(1).epsilon(3.1e-5));
  CHECK(found.partitions.at(Partition::kTemporal).own.value() == Approx(1).epsilon(3.1e-5));
  CHECK(found.partitions.at(Partition::kTemporal).kept.at({Chooser::kOwn, 0.25}).mass.value() ==
        Approx(1).epsilon(3.1e-5));
  CHECK(found.partitions.at(Partition::kSpatial).own.value() == Approx(1.0 / 6).epsilon(0.2));
  for (const auto& [partition, one] : found.partitions)
    for (const double density : compared_densities(0.25)) {
      const double best = one.kept.at({Chooser::kOracle, density}).mass.value();
      // Cubes meet a part of a block on average over the cubes, queries over the queries: only equal counts compare.
      for (const Chooser chooser : {Chooser::kQueryHead, Chooser::kRandom, Chooser::kOwn})
        CHECK(one.kept.at({chooser, density}).mass.value() <= best + 1e-6);
      CHECK(one.kept.at({Chooser::kOracle, density}).recall.value() ==
            (one.kept.at({Chooser::kOracle, density}).recall.weight > 0 ? 1 : 0));
    }
  CHECK(analysis.best_partitions(0) == std::vector<std::string>{"temporal"});
  CHECK(analysis.best_partitions(1.1) == std::vector<std::string>{"full"});
  CHECK(test::contains(analysis.to_yaml(0), "partitions: [temporal]"));
  CHECK(test::contains(analysis.to_json(0), "\"best\": \"temporal\""));
}

TEST_CASE("means of single tokens give the attention itself, and a share to keep is kept") {
  attention::VmobaConfig keys;
  keys.partitions = {"spatiotemporal"};
  keys.pool = attention::Pool::kQueryHead;
  keys.score = attention::Score::kShare;
  keys.gate_block = {1, 1, 1};
  keys.tau = 0.6;
  const at::Tensor q = 3 * normal("q", {120, 2, 8}), k = normal("k", {120, 2, 8});
  const AttentionAnalysis analysis = analysis_of(q, k, keys);
  const LayerFindings& found = analysis.layers().at(7);
  const PartitionFindings& cubes = found.partitions.at(Partition::kSpatiotemporal);
  for (const double density : compared_densities(0.25)) {
    CHECK(cubes.kept.at({Chooser::kFine, density}).mass.value() ==
          Approx(cubes.kept.at({Chooser::kOracle, density}).mass.value()).epsilon(1e-5));
    CHECK(cubes.kept.at({Chooser::kFine, density}).recall.value() ==
          Approx(cubes.kept.at({Chooser::kOracle, density}).recall.value()));
  }
  CHECK(found.configured.mass.value() > 0.6);
  CHECK(found.configured.mass.value() < 0.85);  // a block more than needed at most
  CHECK(found.configured.density.value() < 0.6);
  const auto report = nlohmann::json::parse(analysis.to_json(0));
  CHECK(report["layers"][0]["configured"]["mass"].get<double>() == Approx(found.configured.mass.value()));
  // Largest shares of a head hold more of it than as many of the gate's choice.
  CHECK(cubes.kept.at({Chooser::kShare, 0.25}).mass.value() > cubes.kept.at({Chooser::kHeadGlobal, 0.25}).mass.value());
}

TEST_CASE("heads that average everything are found") {
  at::Tensor q = 3 * normal("q", {120, 3, 8});
  q.select(1, 1).zero_();
  const AttentionAnalysis analysis = analysis_of(q, normal("k", {120, 3, 8}));
  CHECK(analysis.mean_heads() == std::vector<std::string>{"7:1"});
  const auto report = nlohmann::json::parse(analysis.to_json(0));
  CHECK(report["mean_heads"] == std::vector<std::string>{"7:1"});
  CHECK(report["layers"][0]["evenness"][1].get<double>() == Approx(1).epsilon(1e-5));
}

TEST_CASE("a layer's findings are one picture") {
  const AttentionAnalysis analysis = analysis_of(normal("q", {120, 2, 8}), normal("k", {120, 2, 8}));
  const test::Picture picture(findings_to_png(7, analysis.layers().at(7)));
  CHECK(picture.width() == 3 * 800);
  CHECK(picture.height() == 2 * 560);
}
