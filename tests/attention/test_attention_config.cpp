#include <ATen/ATen.h>

#include "attention/attention.h"
#include "attention/dispatch.h"
#include "attention/method.h"
#include "attention/native/row_memory.h"
#include "attention/native/tile_call.h"
#include "attention/native/tile_memory.h"
#include "attention/vmoba/vmoba.h"
#include "core/check.h"
#include "core/config.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::attention;

namespace {

AttentionConfig parse(const std::string& yaml) {
  AttentionConfig config;
  parse_config(yaml, "test.yaml", {}, [&](ConfigVisitor& v) { config.visit(v); });
  config.validate();
  return config;
}

std::string message_of(const std::string& yaml) {
  try {
    parse(yaml);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::kInput);
    return e.what();
  }
  return "accepted";
}

bool mentions(const std::string& message, const std::string& part) {
  INFO(message);
  return message.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("every attention key is read and survives printing") {
  const std::string yaml =
      "backend: full\nimplementation: reference\nfull_when_faster: false\ntemporal_chunk: 2\nspatial_chunk: [3, 4]\n"
      "spatiotemporal_chunk: [4, 6, 5]\ntemporal_layers: 2\nspatial_layers: 0\nspatiotemporal_layers: 3\n"
      "select: topk\npool: overall\ntau: 0.5\ntemporal_topk: 3\nspatial_topk: 4\nspatiotemporal_topk: 5\ndensity: 0.3\n"
      "remainder: one_softmax\nremainder_block: [1, 2, 0]\nremainder_beta: learnt\n"
      "score: share\ngate_block: [2, 0, 1]\nleast_blocks: 4\n"
      "dense_layers: 1\ndense_steps: 6\ndense_warmup_steps: 7\n";
  AttentionConfig config = parse(yaml);
  CHECK(config.backend == "full");
  CHECK(config.implementation == Implementation::kReference);
  CHECK_FALSE(config.full_when_faster);
  const VmobaConfig& vmoba = config.part<VmobaConfig>();
  CHECK(vmoba.temporal_chunk == 2);
  CHECK(vmoba.spatial_chunk == std::vector<int64_t>{3, 4});
  CHECK(vmoba.spatiotemporal_chunk == std::vector<int64_t>{4, 6, 5});
  CHECK(vmoba.temporal_layers == 2);
  CHECK(vmoba.spatial_layers == 0);
  CHECK(vmoba.spatiotemporal_layers == 3);
  CHECK(vmoba.select == SelectMode::kTopk);
  CHECK(vmoba.pool == Pool::kOverall);
  CHECK(vmoba.tau == 0.5);
  CHECK(vmoba.remainder == Remainder::kOneSoftmax);
  CHECK(vmoba.remainder_block == std::vector<int64_t>{1, 2, 0});
  CHECK(vmoba.remainder_beta == RemainderBeta::kLearnt);
  CHECK(vmoba.score == Score::kShare);
  CHECK(vmoba.gate_block == std::vector<int64_t>{2, 0, 1});
  CHECK(vmoba.least_blocks == 4);
  CHECK(vmoba.temporal_topk == 3);
  CHECK(vmoba.spatial_topk == 4);
  CHECK(vmoba.spatiotemporal_topk == 5);
  CHECK(vmoba.density == 0.3);
  CHECK(config.dense_layers == 1);
  CHECK(config.dense_steps == 6);
  CHECK(config.dense_warmup_steps == 7);
  const auto print = [](AttentionConfig& c) { return config_to_yaml([&](ConfigVisitor& v) { c.visit(v); }); };
  AttentionConfig again = parse(print(config));
  CHECK(print(again) == print(config));
}

TEST_CASE("defaults are the published setting and valid") {
  const AttentionConfig config = parse("{}");
  CHECK(config.backend == "vmoba");
  CHECK(config.part<VmobaConfig>().pool == Pool::kHeadGlobal);
  CHECK(config.part<VmobaConfig>().tau == 0.25);
}

TEST_CASE("configurations that cannot work are refused with the key to change") {
  CHECK(mentions(message_of("select: topk\npool: block\n"), "attention.pool"));
  CHECK(mentions(message_of("temporal_layers: 0\nspatial_layers: 0\nspatiotemporal_layers: 0\n"),
                 "attention.temporal_layers"));
  CHECK(mentions(message_of("backend: sparse\n"), "backend"));
  CHECK(mentions(message_of("pool: heads\n"), "pool"));
  CHECK(mentions(message_of("select: best\n"), "select"));
  CHECK(mentions(message_of("implementation: cuda\n"), "implementation"));
  CHECK(mentions(message_of("tau: -0.1\n"), "tau"));
  CHECK(mentions(message_of("temporal_chunk: 0\n"), "temporal_chunk"));
  CHECK(mentions(message_of("spatial_chunk: [2]\n"), "spatial_chunk"));
  CHECK(mentions(message_of("spatial_chunk: [2, 0]\n"), "spatial_chunk"));
  CHECK(mentions(message_of("spatiotemporal_chunk: [2, 3]\n"), "spatiotemporal_chunk"));
  CHECK(mentions(message_of("temporal_topk: 0\n"), "temporal_topk"));
  CHECK(mentions(message_of("remainder: means\n"), "remainder"));
  CHECK(mentions(message_of("remainder_block: [1, 2, 2]\n"), "attention.remainder=one_softmax"));
  CHECK(mentions(message_of("remainder: one_softmax\nremainder_block: [1, 2]\n"), "remainder_block"));
  CHECK(mentions(message_of("remainder_beta: learnt\n"), "attention.remainder=one_softmax"));
  CHECK(mentions(message_of("mean_heads: [\"0:1\"]\n"), "attention.remainder=one_softmax"));
  for (const std::string text : {"3", "3:", ":1", "3:1:2", "-1:0", "3:-1", "a:b", "3: 1"})
    CHECK(mentions(message_of("remainder: one_softmax\nmean_heads: [\"" + text + "\"]\n"), "\"3:0\""));
  CHECK(mentions(message_of("score: mass\n"), "score"));
  CHECK(mentions(message_of("score: share\nselect: random\n"), "attention.score=share, found random"));
  CHECK(mentions(message_of("gate_block: [0, 2, 2]\n"), "set attention.score=share"));
  CHECK(mentions(message_of("least_blocks: 0\n"), "least_blocks"));
  CHECK(mentions(message_of("least_blocks: 2\npool: query_head\n"), "set attention.pool to head_global or overall"));
  CHECK(mentions(message_of("dense_steps: -1\n"), "dense_steps"));
  CHECK(mentions(message_of("tua: 0.3\n"), "tau"));
}

TEST_CASE("validate also guards structs that no file filled") {
  const auto refused = [](auto change, const char* key) {
    AttentionConfig config;
    change(config);
    try {
      config.validate();
    } catch (const Error& e) {
      INFO(e.what());
      CHECK(e.kind() == ErrorKind::kInput);
      CHECK(std::string(e.what()).find(key) != std::string::npos);
      return true;
    }
    return false;
  };
  CHECK(refused([](AttentionConfig& c) { c.backend = "none"; }, "attention.backend"));
  CHECK(refused([](AttentionConfig& c) { c.implementation = Implementation(9); }, "attention.implementation"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().select = SelectMode(9); }, "attention.select"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().pool = Pool(9); }, "attention.pool"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().tau = std::nan(""); }, "attention.tau"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().temporal_chunk = 0; }, "attention.temporal_chunk"));
  CHECK(refused(
      [](AttentionConfig& c) {
        c.part<VmobaConfig>().spatial_chunk = {1, 2, 3};
      },
      "attention.spatial_chunk"));
  CHECK(refused(
      [](AttentionConfig& c) {
        c.part<VmobaConfig>().spatiotemporal_chunk = {1, 0, 3};
      },
      "attention.spatiotemporal_chunk"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().temporal_layers = -1; }, "attention.temporal_layers"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().spatial_layers = -1; }, "attention.spatial_layers"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().spatiotemporal_layers = -1; },
                "attention.spatiotemporal_layers"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().spatial_topk = 0; }, "attention.spatial_topk"));
  CHECK(refused([](AttentionConfig& c) { c.part<VmobaConfig>().spatiotemporal_topk = 0; },
                "attention.spatiotemporal_topk"));
  CHECK(refused([](AttentionConfig& c) { c.dense_layers = -1; }, "attention.dense_layers"));
  CHECK(refused([](AttentionConfig& c) { c.dense_steps = -1; }, "attention.dense_steps"));
  CHECK(refused([](AttentionConfig& c) { c.dense_warmup_steps = -1; }, "attention.dense_warmup_steps"));
}

TEST_CASE("layers cycle through the partitions after the dense ones") {
  AttentionConfig config;
  config.part<VmobaConfig>().temporal_layers = 2;
  config.part<VmobaConfig>().spatial_layers = 1;
  config.part<VmobaConfig>().spatiotemporal_layers = 1;
  config.dense_layers = 3;
  const std::vector<std::string> expected = {"full",    "full",           "full",     "temporal", "temporal",
                                             "spatial", "spatiotemporal", "temporal", "temporal", "spatial"};
  for (size_t l = 0; l < expected.size(); ++l) {
    const LayerAttention layer = layer_attention(config, int64_t(l), false);
    CHECK((layer.sparse() ? choice_word(layer.partition) : "full") == expected[l]);
    CHECK_FALSE(layer_attention(config, int64_t(l), true).sparse());
  }
  CHECK(layer_attention(config, 3, false).chunk == std::array<int64_t, 3>{3, 0, 0});
  CHECK(layer_attention(config, 5, false).chunk == std::array<int64_t, 3>{0, 6, 8});
  CHECK(layer_attention(config, 6, false).chunk == std::array<int64_t, 3>{6, 9, 16});
  CHECK(vmoba_rule(layer_attention(config, 3, false)).topk == 2);
  CHECK(vmoba_rule(layer_attention(config, 5, false)).topk == 12);
  CHECK(vmoba_rule(layer_attention(config, 6, false)).topk == 16);
  config.backend = "full";
  CHECK_FALSE(layer_attention(config, 9, false).sparse());
  CHECK_THROWS_AS(layer_attention(config, -1, false), Error);
}

TEST_CASE("partitions of layers can be named one by one, or in turn") {
  AttentionConfig config = parse("partitions: [spatiotemporal]\nspatiotemporal_chunk: [3, 3, 8]\n");
  for (int64_t l = 0; l < 4; ++l) {
    CHECK(layer_attention(config, l, false).partition == Partition::kSpatiotemporal);
    CHECK(layer_attention(config, l, false).chunk == std::array<int64_t, 3>{3, 3, 8});
    CHECK(layer_attention(config, l, false).index == l);
  }
  config = parse("partitions: [full, temporal, spatial]\ndense_layers: 1\n");
  const std::vector<std::string> expected = {"full", "full", "temporal", "spatial", "full", "temporal"};
  for (size_t l = 0; l < expected.size(); ++l) {
    const LayerAttention layer = layer_attention(config, int64_t(l), false);
    CHECK((layer.sparse() ? choice_word(layer.partition) : "full") == expected[l]);
  }
  CHECK(expected_density(config, {24, 36, 64}, 4) == Approx(0.25));
  CHECK(mentions(message_of("partitions: [cubes]\n"), "partitions[0]"));
  CHECK(mentions(message_of("partitions: [full]\n"), "attention.backend=full"));
  CHECK(mentions(message_of("partitions: [spatial]\nspatial_layers: 2\n"), "attention.spatial_layers 2"));
}

TEST_CASE("a density is asked for in place of a number of blocks") {
  const Grid grid = {24, 36, 64};  // 8, 48 and 64 blocks
  AttentionConfig config = parse("select: topk\npool: query_head\ndensity: 0.2\n");
  CHECK(vmoba_rule(layer_attention(config, 0, false)).blocks_per_query(8) == Approx(1.6));
  CHECK(vmoba_rule(layer_attention(config, 1, false)).blocks_per_query(48) == Approx(9.6));
  CHECK(vmoba_rule(layer_attention(config, 1, false)).blocks_per_query(2) == 1);  // the own block at least
  CHECK(expected_density(config, grid, 3) == Approx(0.2));
  config = parse("select: topk\ndensity: 1\n");
  CHECK(vmoba_rule(layer_attention(config, 0, false)).blocks_per_query(8) == 8);
  config = parse("select: random\nspatial_topk: 6\npartitions: [spatial]\n");
  CHECK(vmoba_rule(layer_attention(config, 0, false)).blocks_per_query(48) == 6);
  CHECK(expected_density(config, grid, 3) == Approx(0.125));
  config = parse("select: own\npool: block\n");
  CHECK(vmoba_rule(layer_attention(config, 2, false)).blocks_per_query(64) == 1);
  CHECK(expected_density(config, grid, 3) == Approx((1.0 / 8 + 1.0 / 48 + 1.0 / 64) / 3));
  CHECK(mentions(message_of("density: 0.2\n"), "attention.select=topk"));
  CHECK(mentions(message_of("select: own\ndensity: 0.2\n"), "attention.density=0"));
  CHECK(mentions(message_of("select: random\npool: block\n"), "attention.pool"));
  CHECK(mentions(message_of("select: topk\ndensity: 1.5\n"), "density"));
}

TEST_CASE("a preset stands for values, and what is set beside it counts") {
  AttentionConfig config = parse("preset: cubes\ndensity: 0.1\n");
  const VmobaConfig& cubes = config.part<VmobaConfig>();
  CHECK(cubes.partitions == std::vector<std::string>{"spatiotemporal"});
  CHECK(cubes.spatiotemporal_chunk == std::vector<int64_t>{4, 4, 4});
  CHECK(cubes.select == SelectMode::kTopk);
  CHECK(cubes.pool == Pool::kQueryHead);
  CHECK(cubes.query_tile == QueryTile::kBlock);
  CHECK(cubes.density == 0.1);
  CHECK(parse("preset: cubes\n").part<VmobaConfig>().density == 0.2);
  // The printed configuration says what it stands for, so that a later preset does not change a run.
  const auto printed = [](AttentionConfig c) { return config_to_yaml([&](ConfigVisitor& v) { c.visit(v); }); };
  const std::string yaml = printed(config);
  CHECK(mentions(yaml, "preset: \"none\""));
  CHECK(mentions(yaml, "density: 0.1"));
  CHECK(printed(parse(yaml)) == yaml);
  CHECK(printed(parse("preset: paper\n")) == printed(AttentionConfig()));
  CHECK(mentions(message_of("preset: best\n"), "cubes"));
}

TEST_CASE("densities of single layers") {
  const AttentionConfig config =
      parse("select: topk\npool: query_head\npartitions: [spatiotemporal]\ndensities: [0.5, 0.25]\ndense_layers: 1\n");
  CHECK_FALSE(layer_attention(config, 0, false).sparse());
  for (const auto& [layer, density] : {std::pair{1, 0.5}, {2, 0.25}, {3, 0.5}})
    CHECK(vmoba_rule(layer_attention(config, layer, false)).density == density);
  CHECK(mentions(message_of("select: topk\ndensity: 0.2\ndensities: [0.1]\n"), "remove one"));
  CHECK(mentions(message_of("select: topk\ndensities: [0.1, 0]\n"), "0.1, 0"));
  CHECK(mentions(message_of("select: topk\ndensities: [1.5]\n"), "1.5"));
  CHECK(mentions(message_of("densities: [0.1]\n"), "attention.select=topk"));
}

TEST_CASE("in training the density falls from full attention to the configured one") {
  AttentionConfig config =
      parse("select: topk\npool: query_head\ndensity: 0.04\ndense_warmup_steps: 2\ndensity_steps: 3\n");
  CHECK(training_stage(config, 0).dense);
  CHECK(training_stage(config, 1).dense);
  // A quarter of the way in logarithms, a half, three quarters, all: 0.04 = 0.2^2.
  const double expected[] = {std::sqrt(0.2), 0.2, 0.2 * std::sqrt(0.2), 0.04, 0.04};
  for (int64_t i = 0; i < 5; ++i) {
    const Stage stage = training_stage(config, 2 + i);
    CHECK_FALSE(stage.dense);
    CHECK(vmoba_rule(layer_attention(config, 0, stage.dense, stage.sparsity)).density == Approx(expected[i]));
  }
  CHECK(vmoba_rule(layer_attention(config, 0, false)).density == 0.04);  // sampling knows no steps
  config = parse("dense_warmup_steps: 2\n");
  CHECK(training_stage(config, 1).dense);
  CHECK(training_stage(config, 2).sparsity == 1);
  CHECK(mentions(message_of("select: topk\ndensity_steps: 3\n"), "attention.density_steps=0"));
}

TEST_CASE("a layer carries the choices of its configuration") {
  AttentionConfig config;
  VmobaConfig& vmoba = config.part<VmobaConfig>();
  vmoba.pool = Pool::kQueryHead;
  vmoba.select = SelectMode::kTopk;
  vmoba.tau = 0.75;
  config.implementation = Implementation::kReference;
  const LayerAttention layer = layer_attention(config, 0, false);
  CHECK(layer.method == &vmoba_method());
  CHECK(vmoba_rule(layer).pool == Pool::kQueryHead);
  CHECK(vmoba_rule(layer).select == SelectMode::kTopk);
  CHECK(vmoba_rule(layer).tau == 0.75);
  CHECK(layer.implementation == Implementation::kReference);
  vmoba.pool = Pool::kBlock;
  vmoba.select = SelectMode::kThreshold;
  CHECK(vmoba_rule(layer_attention(config, 0, false)).pool == Pool::kBlock);
  CHECK(vmoba_rule(layer_attention(config, 0, false)).select == SelectMode::kThreshold);
}

TEST_CASE("a copy of a configuration has its own parts") {
  AttentionConfig config;
  AttentionConfig copy = config;
  copy.part<VmobaConfig>().tau = 0.5;
  CHECK(config.part<VmobaConfig>().tau == 0.25);
  struct Unknown {};
  CHECK_THROWS_AS(config.part<Unknown>(), Error);
}

TEST_CASE("the keys of all methods are different ones") {
  AttentionConfig config;
  const std::string yaml = config_to_yaml([&](ConfigVisitor& v) { config.visit(v); });
  CHECK_NOTHROW(parse(yaml));  // a key that stands twice is refused
  for (const Method* method : methods()) CHECK(&find_method(method->name) == method);
  CHECK_THROWS_AS(find_method("none"), Error);
}

TEST_CASE("the density that is expected, over the sparse layers") {
  const Grid grid = {24, 36, 64};
  AttentionConfig config;
  config.part<VmobaConfig>().tau = 0.3;
  CHECK(expected_density(config, grid, 30) == Approx(0.3));
  config.part<VmobaConfig>().tau = 7;
  CHECK(expected_density(config, grid, 30) == 1);
  config.part<VmobaConfig>().select = SelectMode::kTopk;  // 2 of 8, 12 of 48, 16 of 64
  config.part<VmobaConfig>().spatiotemporal_topk = 32;
  CHECK(expected_density(config, grid, 3) == Approx((0.25 + 0.25 + 0.5) / 3));
  CHECK(expected_density(config, {1, 1, 1}, 3) == 1);
  config.dense_layers = 2;
  CHECK(expected_density(config, grid, 3) == Approx(0.25));
  CHECK(expected_density(config, grid, 2) == 1);
  config.backend = "full";
  CHECK(expected_density(config, grid, 3) == 1);
}

TEST_CASE("heads select alone but for two pools") {
  AttentionConfig config;
  const auto reason = [&](Pool pool) {
    config.part<VmobaConfig>().pool = pool;
    return heads_select_together(config, 3);
  };
  CHECK(reason(Pool::kHeadGlobal).empty());
  CHECK(reason(Pool::kQueryHead).empty());
  CHECK(mentions(reason(Pool::kBlock), "attention.pool=block"));
  CHECK(mentions(reason(Pool::kOverall), "head_global"));
  config.part<VmobaConfig>().partitions = {"full", "temporal"};  // the first layer is not the one that tells
  CHECK(mentions(reason(Pool::kOverall), "attention.pool=overall"));
  config.part<VmobaConfig>().select = SelectMode::kOwn;  // no pool decides
  CHECK(reason(Pool::kOverall).empty());
  config.backend = "full";
  CHECK(heads_select_together(config, 3).empty());
}

TEST_CASE("blocks and FLOPs, by hand") {
  AttentionConfig config;
  CHECK(block_count({24, 36, 64}, layer_attention(config, 0, false)) == 8);
  CHECK(block_count({24, 36, 64}, layer_attention(config, 1, false)) == 48);
  CHECK(block_count({24, 36, 64}, layer_attention(config, 2, false)) == 64);
  CHECK(block_count({24, 36, 64}, layer_attention(config, 0, true)) == 1);
  // 4 S^2 D N for full attention; sparse: its density of that and 2 S C D N of gate.
  CHECK(attention_flops(1000, 12, 128, 1.0, 0) == Approx(6.144e9));
  CHECK(attention_flops(1000, 12, 128, 0.25, 64) == Approx(1.536e9 + 196608000.0));
  CHECK(attention_flops(200000, 12, 128, 1.0, 0) == Approx(4.0 * 4e10 * 1536));
  const Grid grid = {10, 10, 10};
  CHECK(layer_flops(layer_attention(config, 0, true), grid, 12, 128, 0.25) == Approx(6.144e9));
  CHECK(layer_flops(layer_attention(config, 0, false), grid, 12, 128, 0.25) ==  // 4 blocks
        Approx(1.536e9 + 12288000.0));
  // 4 S M D N more for M means: those of 4 blocks, then of 2 x 3 parts of each (10 in steps of 5 and of 4).
  VmobaConfig& vmoba = config.part<VmobaConfig>();
  vmoba.remainder = Remainder::kOneSoftmax;
  CHECK(layer_flops(layer_attention(config, 0, false), grid, 12, 128, 0.25) ==
        Approx(1.536e9 + 12288000.0 + 24576000.0));
  vmoba.remainder_block = {0, 5, 4};
  CHECK(layer_flops(layer_attention(config, 0, false), grid, 12, 128, 0.25) ==
        Approx(1.536e9 + 12288000.0 + 6 * 24576000.0));
  // A gate of 2 x 3 means a block in place of one.
  vmoba.score = Score::kShare;
  vmoba.gate_block = {0, 5, 4};
  CHECK(layer_flops(layer_attention(config, 0, false), grid, 12, 128, 0.25) ==
        Approx(1.536e9 + 6 * 12288000.0 + 6 * 24576000.0));
}

TEST_CASE("heads that are left to their means are those of their layers") {
  const AttentionConfig config =
      parse("remainder: one_softmax\nmean_heads: [\"0:1\", \"4:2\", \"4:0\"]\ndense_layers: 1\n");
  CHECK(vmoba_rule(layer_attention(config, 4, false)).mean_heads == std::vector<int64_t>{2, 0});
  CHECK(vmoba_rule(layer_attention(config, 3, false)).mean_heads.empty());
}

TEST_CASE("a share of the attention needs fewer pairs than a share of gates, and all of it all") {
  AttentionConfig config;
  const Grid grid = {4, 10, 10};
  VmobaConfig& vmoba = config.part<VmobaConfig>();
  vmoba.score = Score::kShare;
  vmoba.tau = 0.9;
  CHECK(expected_density(config, grid, 3) < 0.8);  // full_when_faster
  CHECK(expected_density(config, grid, 3) > 0.5);
  vmoba.tau = 1.5;
  CHECK(expected_density(config, grid, 3) == 1);
}

TEST_CASE("density is attended pairs over all pairs, by partition and over all") {
  AttentionStats stats;
  CHECK(stats.densities().empty());
  LayerAttention layer;
  layer.index = 2;
  stats.record("temporal", layer, at::tensor({10.0, 90.0}, at::kDouble), 200);
  layer.index = 3;
  stats.record("full", layer, at::tensor({100.0}, at::kDouble), 100);
  const auto densities = stats.densities();
  REQUIRE(densities.size() == 3);
  CHECK(densities.at("temporal") == Approx(0.25));
  CHECK(densities.at("full") == Approx(1.0));
  CHECK(densities.at("all") == Approx(0.4));
  layer.first_head = 1;
  stats.record("full", layer, at::tensor({50.0}, at::kDouble), 100);
  stats.record("full", layer, at::tensor({10.0}, at::kDouble), 100);
  const auto by_head = stats.sums().by_head;
  REQUIRE(by_head.size() == 4);
  CHECK(by_head.at({2, 0}) == AttentionStats::Pairs{10, 200});
  CHECK(by_head.at({2, 1}) == AttentionStats::Pairs{90, 200});
  CHECK(by_head.at({3, 0}) == AttentionStats::Pairs{100, 100});
  CHECK(by_head.at({3, 1}) == AttentionStats::Pairs{60, 200});
  stats.clear();
  CHECK(stats.densities().empty());
}

TEST_CASE("full attention is the choice for few tokens and for selections that ask for most blocks") {
  AttentionConfig config;
  LayerAttention layer = layer_attention(config, 0, false);
  VmobaRule& rule = vmoba_rule(layer);
  rule.tau = 0.25;
  CHECK_FALSE(full_is_faster(55296, 64, layer));
  CHECK_FALSE(full_is_faster(13440, 7, layer));
  CHECK(full_is_faster(512, 8, layer));
  rule.tau = 1;
  CHECK(full_is_faster(55296, 64, layer));
  rule.select = SelectMode::kTopk;
  rule.topk = 8;
  CHECK_FALSE(full_is_faster(55296, 64, layer));
  CHECK(full_is_faster(55296, 8, layer));
  // 40 of 64 blocks: less than full attention takes on sm_90, more than it takes with the kernels of sm_80.
  rule.topk = 40;
  CHECK_FALSE(full_is_faster(55296, 64, layer, 90));
  CHECK(full_is_faster(55296, 64, layer, 80));
  rule.query_tile = 64;
  CHECK(full_is_faster(55296, 64, layer, 80));
  rule.topk = 30;  // lists of single queries are slower there than tiles
  CHECK_FALSE(full_is_faster(55296, 64, layer, 80));
  rule.query_tile = 1;
  CHECK(full_is_faster(55296, 64, layer, 80));
}

TEST_CASE("attention by tiles keeps its memory within a budget") {
  // 200,448 tokens in 2,784 cubes of 72: pieces of 64 and 8 rows, pieces of 72 keys.
  kernels::TileShape shape;
  shape.heads = 12;
  shape.video_tokens = 200448;
  shape.blocks = shape.tiles = shape.row_pairs = shape.key_pairs = shape.video_key_pieces = 2784;
  shape.video_pieces = 5568;
  shape.key_rows = 72;
  shape.packed = 1;
  const int64_t lists = 12 * (2 * (2784 * 2784 + 2784 * 5568) + 4 * 3 * 2784 + 2784 * 2784);
  CHECK(native::tile_list_bytes(shape) == lists);
  CHECK(native::tile_copy_bytes(shape) == int64_t(12) * 200448 * 3 * 128 * 2);
  CHECK(native::tile_wave_heads(shape) == 4);

  // dout in bf16, dq, log-sum-exps and deltas in fp32, a counter.
  kernels::TileShape wave = shape;
  wave.heads = 4;
  const int64_t rows = int64_t(4) * 200448;
  const int64_t workspace = rows * 128 * 2 + rows * 128 * 4 + rows * 4 + rows * 4 + 256;
  CHECK(kernels::tile_backward_workspace_bytes(wave, false) == workspace);
  // Sums of the gradients of means are no more than 128 MiB of keys and values, and what belongs to them.
  const int64_t with_means = kernels::tile_backward_workspace_bytes(wave, true);
  CHECK(with_means > workspace);
  CHECK(with_means <= workspace + (int64_t(130) << 20));
  CHECK(lists + native::tile_copy_bytes(wave) + with_means <= native::kTileBudgetBytes);
  CHECK(native::kTileBudgetBytes <= int64_t(5) << 29);  // 2.5 GiB

  // In strips of 72 the lists have pieces of 64 and 8 keys and one more count for each tile, and no sums of dq.
  kernels::TileShape strips = shape;
  strips.key_rows = 64, strips.video_key_pieces = 5568;
  strips.strip_rows = 72, strips.video_strips = 2784;
  CHECK(native::tile_list_bytes(strips) == 12 * (2 * 2 * 2784 * 5568 + 4 * 4 * 2784 + 2784 * 2784));
  CHECK(native::tile_wave_heads(strips) == 6);
  strips.heads = 4;
  CHECK(kernels::tile_backward_workspace_bytes(strips, false) == workspace - rows * 128 * 4);

  // Small calls keep their copies; so does one head whatever it needs.
  shape.video_tokens = 55296;
  shape.blocks = shape.tiles = shape.row_pairs = shape.key_pairs = shape.video_key_pieces = 768;
  shape.video_pieces = 1536;
  CHECK(native::tile_wave_heads(shape) == 12);
  shape.heads = 1;
  shape.video_tokens = 72 * 20000;
  shape.blocks = shape.tiles = shape.row_pairs = shape.key_pairs = shape.video_key_pieces = 20000;
  shape.video_pieces = 40000;
  CHECK(native::tile_wave_heads(shape) == 1);
}

TEST_CASE("attention by single queries keeps its memory within a budget") {
  // 200,448 tokens in 240 blocks; 128 divides the tokens.
  kernels::Shape shape;
  shape.heads = 12;
  shape.video_tokens = 200448;
  shape.blocks = 240;
  const int64_t slot = 128 * 2 + 4, gib = int64_t(1) << 30;
  CHECK(native::partial_bytes(shape, 10) == 10 * slot);
  CHECK_FALSE(native::keeps_row_lists(shape));

  // The forward: partial outputs of one head's part, its rows and their ranks; parts differ by less than 128 rows.
  const int32_t words = native::forward_row_words(shape);
  CHECK(words == 1044);  // 6,264 in six parts
  kernels::Shape part = shape;
  part.batch = part.heads = 1;
  part.row_words = words;
  const int64_t slots = int64_t(240) * 1044 * 32;
  CHECK(kernels::slots_per_head_capacity(part) == slots);
  CHECK(kernels::forward_workspace_bytes(part, slots) <= 2 * gib);

  // The backward: rows of three heads, their sums of dq, statistics of rows, parts of dk and dv.
  CHECK(native::backward_heads(shape, false) == 3);
  kernels::Shape heads = shape;
  heads.heads = 3;
  const int64_t rows = 3 * slots * 6, workspace = kernels::backward_workspace_bytes(heads, false);
  const int64_t sums = int64_t(3) * 200448 * 128 * 4, statistics = int64_t(3) * 200449 * 8;
  const int64_t split = int64_t(132) * 4 * 128 * 2 * 128 * 4;
  CHECK(workspace >= sums + statistics + split);
  CHECK(workspace <= sums + statistics + split + (int64_t(1) << 20));

  // Beside copies of K and V, masks of bits and their ranks, and gates before there are lists: within 4 GiB.
  const int64_t copies = int64_t(12) * 200448 * 128 * 2 * 2, masks = int64_t(12) * 240 * 6264 * 4;
  const int64_t gates = int64_t(12) * 240 * 200448 * 4;
  CHECK(copies + masks + gates + (int64_t(64) << 20) <= 4 * gib);
  CHECK(copies + masks + kernels::forward_workspace_bytes(part, slots) + slots * 4 + masks / 12 <= 4 * gib);
  CHECK(copies + masks + rows * 4 + masks / 4 + workspace <= 4 * gib);

  // At 55,296 tokens lists are kept.
  shape.video_tokens = 55296;
  for (const int32_t blocks : {8, 64, 216}) {
    shape.blocks = blocks;
    CHECK(native::keeps_row_lists(shape));
  }
}

TEST_CASE("tiles add up nothing atomically in deterministic mode, and share their tables else") {
  AttentionConfig config = parse(
      "partitions: [spatiotemporal]\nspatiotemporal_chunk: [3, 3, 8]\nselect: topk\npool: query_head\n"
      "density: 0.2\nquery_tile: block\n");
  const Grid grid{6, 9, 16};
  const at::Tensor x_BZND = at::zeros({1, grid.tokens() + 13, 2, 128});
  const BlockProblem problem = make_block_problem(x_BZND, grid, 13, layer_attention(config, 0, false));
  const native::TileCall strips(problem, x_BZND);
  CHECK(strips.shape.key_pairs == 13);  // 12 cubes of 64 and 8 tokens, and the text
  CHECK(strips.shape.key_rows == 64);
  CHECK(strips.shape.packed == 1);  // whatever the text's length
  CHECK(strips.shape.strip_rows == 72);
  CHECK(strips.shape.video_strips == 12);
  CHECK(strips.shape.strips() == 13);
  CHECK(strips.keeps_copies());
  at::globalContext().setDeterministicAlgorithms(true, true);
  const native::TileCall deterministic(problem, x_BZND);
  at::globalContext().setDeterministicAlgorithms(false, true);
  CHECK(deterministic.shape.key_pairs == 0);
  CHECK(deterministic.shape.packed == 1);
  CHECK(deterministic.shape.strip_rows == 72);

  // Heads of 64 have no strips; nor have cubes of 70 tokens, which still have long pieces of keys.
  const at::Tensor small_BZND = at::zeros({1, grid.tokens() + 13, 2, 64});
  const native::TileCall small(problem, small_BZND);
  CHECK(small.shape.strip_rows == 0);
  CHECK(small.shape.packed == 0);
  config = parse(
      "partitions: [spatiotemporal]\nspatiotemporal_chunk: [2, 5, 7]\nselect: topk\npool: query_head\n"
      "density: 0.2\nquery_tile: block\n");
  const Grid odd{6, 10, 14};
  const at::Tensor odd_BZND = at::zeros({1, odd.tokens() + 13, 2, 128});
  const BlockProblem odd_problem = make_block_problem(odd_BZND, odd, 13, layer_attention(config, 0, false));
  const native::TileCall pairs(odd_problem, odd_BZND);
  CHECK(pairs.shape.strip_rows == 0);
  CHECK(pairs.shape.key_pairs > 0);
  CHECK(pairs.shape.key_rows == 72);
  at::globalContext().setDeterministicAlgorithms(true, true);
  const native::TileCall pieces(odd_problem, odd_BZND);
  at::globalContext().setDeterministicAlgorithms(false, true);
  CHECK(pieces.shape.key_pairs == 0);
  CHECK(pieces.shape.key_rows == 64);
  CHECK(pieces.shape.packed == 0);
}
