#include <ATen/ATen.h>

#include "attention/attention.h"
#include "attention/vmoba_op.h"
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
      "select: topk\npool: overall\ntau: 0.5\ntemporal_topk: 3\nspatial_topk: 4\nspatiotemporal_topk: 5\n"
      "dense_layers: 1\ndense_steps: 6\ndense_warmup_steps: 7\n";
  AttentionConfig config = parse(yaml);
  CHECK(config.backend == "full");
  CHECK(config.implementation == "reference");
  CHECK_FALSE(config.full_when_faster);
  CHECK(config.temporal_chunk == 2);
  CHECK(config.spatial_chunk == std::vector<int64_t>{3, 4});
  CHECK(config.spatiotemporal_chunk == std::vector<int64_t>{4, 6, 5});
  CHECK(config.temporal_layers == 2);
  CHECK(config.spatial_layers == 0);
  CHECK(config.spatiotemporal_layers == 3);
  CHECK(config.select == "topk");
  CHECK(config.pool == "overall");
  CHECK(config.tau == 0.5);
  CHECK(config.temporal_topk == 3);
  CHECK(config.spatial_topk == 4);
  CHECK(config.spatiotemporal_topk == 5);
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
  CHECK(config.pool == "head_global");
  CHECK(config.tau == 0.25);
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
  CHECK(refused([](AttentionConfig& c) { c.implementation = "fast"; }, "attention.implementation"));
  CHECK(refused([](AttentionConfig& c) { c.select = ""; }, "attention.select"));
  CHECK(refused([](AttentionConfig& c) { c.pool = ""; }, "attention.pool"));
  CHECK(refused([](AttentionConfig& c) { c.tau = std::nan(""); }, "attention.tau"));
  CHECK(refused([](AttentionConfig& c) { c.temporal_chunk = 0; }, "attention.temporal_chunk"));
  CHECK(refused([](AttentionConfig& c) { c.spatial_chunk = {1, 2, 3}; }, "attention.spatial_chunk"));
  CHECK(refused([](AttentionConfig& c) { c.spatiotemporal_chunk = {1, 0, 3}; }, "attention.spatiotemporal_chunk"));
  CHECK(refused([](AttentionConfig& c) { c.temporal_layers = -1; }, "attention.temporal_layers"));
  CHECK(refused([](AttentionConfig& c) { c.spatial_layers = -1; }, "attention.spatial_layers"));
  CHECK(refused([](AttentionConfig& c) { c.spatiotemporal_layers = -1; }, "attention.spatiotemporal_layers"));
  CHECK(refused([](AttentionConfig& c) { c.spatial_topk = 0; }, "attention.spatial_topk"));
  CHECK(refused([](AttentionConfig& c) { c.spatiotemporal_topk = 0; }, "attention.spatiotemporal_topk"));
  CHECK(refused([](AttentionConfig& c) { c.dense_layers = -1; }, "attention.dense_layers"));
  CHECK(refused([](AttentionConfig& c) { c.dense_steps = -1; }, "attention.dense_steps"));
  CHECK(refused([](AttentionConfig& c) { c.dense_warmup_steps = -1; }, "attention.dense_warmup_steps"));
}

TEST_CASE("layers cycle through the partitions after the dense ones") {
  AttentionConfig config;
  config.temporal_layers = 2;
  config.spatial_layers = 1;
  config.spatiotemporal_layers = 1;
  config.dense_layers = 3;
  const std::vector<std::string> expected = {"full",    "full",           "full",     "temporal", "temporal",
                                             "spatial", "spatiotemporal", "temporal", "temporal", "spatial"};
  for (size_t l = 0; l < expected.size(); ++l) {
    const LayerAttention layer = layer_attention(config, int64_t(l), false);
    CHECK((layer.sparse ? partition_name(layer.partition) : "full") == expected[l]);
    CHECK_FALSE(layer_attention(config, int64_t(l), true).sparse);
  }
  CHECK(layer_attention(config, 3, false).chunk == std::array<int64_t, 3>{3, 0, 0});
  CHECK(layer_attention(config, 5, false).chunk == std::array<int64_t, 3>{0, 6, 8});
  CHECK(layer_attention(config, 6, false).chunk == std::array<int64_t, 3>{6, 9, 16});
  CHECK(layer_attention(config, 3, false).topk == 2);
  CHECK(layer_attention(config, 5, false).topk == 12);
  CHECK(layer_attention(config, 6, false).topk == 16);
  config.backend = "full";
  CHECK_FALSE(layer_attention(config, 9, false).sparse);
  CHECK_THROWS_AS(layer_attention(config, -1, false), Error);
}

TEST_CASE("a layer carries the words of its configuration") {
  AttentionConfig config;
  config.pool = "query_head";
  config.select = "topk";
  config.tau = 0.75;
  config.implementation = "reference";
  const LayerAttention layer = layer_attention(config, 0, false);
  CHECK(layer.pool == Pool::kQueryHead);
  CHECK(layer.select == SelectMode::kTopk);
  CHECK(layer.tau == 0.75);
  CHECK(layer.implementation == "reference");
  config.pool = "block";
  config.select = "threshold";
  CHECK(layer_attention(config, 0, false).pool == Pool::kBlock);
  CHECK(layer_attention(config, 0, false).select == SelectMode::kThreshold);
  config.pool = "overall";
  CHECK(layer_attention(config, 0, false).pool == Pool::kOverall);
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
}

TEST_CASE("density is attended pairs over all pairs, by partition and over all") {
  AttentionStats stats;
  CHECK(stats.densities().empty());
  const auto pairs = [](double value) { return at::scalar_tensor(value, at::TensorOptions().dtype(at::kDouble)); };
  stats.record("temporal", pairs(10), 100);
  stats.record("temporal", pairs(90), 300);
  stats.record("full", pairs(100), 100);
  const auto densities = stats.densities();
  REQUIRE(densities.size() == 3);
  CHECK(densities.at("temporal") == Approx(0.25));
  CHECK(densities.at("full") == Approx(1.0));
  CHECK(densities.at("all") == Approx(0.4));
  stats.clear();
  CHECK(stats.densities().empty());
}

TEST_CASE("full attention is the choice for few tokens and for selections that ask for most blocks") {
  LayerAttention layer;
  layer.sparse = true;
  layer.tau = 0.25;
  CHECK_FALSE(full_is_faster(55296, 64, layer));
  CHECK_FALSE(full_is_faster(13440, 7, layer));
  CHECK(full_is_faster(512, 8, layer));
  layer.tau = 1;
  CHECK(full_is_faster(55296, 64, layer));
  layer.select = SelectMode::kTopk;
  layer.topk = 8;
  CHECK_FALSE(full_is_faster(55296, 64, layer));
  CHECK(full_is_faster(55296, 8, layer));
}
