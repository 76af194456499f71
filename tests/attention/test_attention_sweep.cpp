// What a sweep varies, and its CSV and chart, without a GPU.
#include <algorithm>
#include <set>

#include "apps/bench/attention_sweep.h"
#include "core/check.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::bench;

namespace {

BenchCase measured(const std::string& partition, int64_t tokens, double total_ms, double full_ms) {
  BenchCase c;
  c.partition = partition;
  c.inputs = "random";
  c.tokens = tokens;
  c.blocks = 8;
  c.density = 0.2;
  c.total_ms.median = total_ms;
  c.full_total_ms.median = full_ms;
  return c;
}

int64_t count(const std::string& text, const std::string& part) {
  int64_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace

TEST_CASE("a sweep over tokens reaches from 13k to 200k and changes nothing else") {
  const BenchOptions options;
  const auto points = sweep_points(options, "tokens");
  CHECK(points.front().grid.tokens() == 13824);
  CHECK(points.back().grid.tokens() == 200448);
  for (const BenchOptions& p : points) {
    CHECK(p.density == 0);
    CHECK(p.attention.part<attention::VmobaConfig>().tau == options.attention.part<attention::VmobaConfig>().tau);
    CHECK(p.partitions == options.partitions);
  }
}

TEST_CASE("a sweep over density ends with everything attended") {
  const auto points = sweep_points(BenchOptions(), "density");
  CHECK(points.front().density == 0.05);
  CHECK(points.back().density == 0);
  CHECK(points.back().attention.part<attention::VmobaConfig>().tau == 1);
}

TEST_CASE("a sweep over blocks gives each point one partition and a number of blocks of its own") {
  BenchOptions options;
  options.partitions = {"temporal", "spatial"};
  std::set<std::pair<std::string, int64_t>> seen;
  for (const BenchOptions& p : sweep_points(options, "blocks")) {
    REQUIRE(p.partitions.size() == 1);
    attention::AttentionConfig config = p.attention;
    attention::VmobaConfig& vmoba = config.part<attention::VmobaConfig>();
    vmoba.temporal_layers = p.partitions[0] == "temporal";
    vmoba.spatial_layers = p.partitions[0] == "spatial";
    vmoba.spatiotemporal_layers = 0;
    const int64_t blocks = attention::block_count(p.grid, attention::layer_attention(config, 0, false));
    CHECK(blocks > 1);
    CHECK(seen.emplace(p.partitions[0], blocks).second);
  }
  CHECK(seen.size() == 8);
}

TEST_CASE("an unknown axis is refused") {
  CHECK_THROWS_AS(sweep_points(BenchOptions(), "heads"), Error);
}

TEST_CASE("CSV and chart hold every case") {
  const std::vector<BenchCase> cases = {measured("temporal", 1000, 2, 4), measured("temporal", 4000, 8, 64),
                                        measured("spatial", 4000, 9, 64.5), measured("spatial", 1000, 3, 4.5)};
  const std::string csv = cases_to_csv(cases);
  CHECK(count(csv, "\n") == 5);
  const std::string header = csv.substr(0, csv.find('\n')), row = csv.substr(csv.rfind('\n', csv.size() - 2) + 1);
  CHECK(count(header, ",") == count(row, ","));
  CHECK(row.substr(0, row.find(',')) == "spatial");
  CHECK(count(row, ",4.5000,") == 1);
  const Chart chart = sweep_chart(cases, "tokens");
  CHECK(chart.x.label == "tokens");
  CHECK((chart.x.low < 1000 && chart.x.high > 4000 && chart.y.low < 2 && chart.y.high > 64.5));
  using Points = std::vector<std::pair<double, double>>;
  REQUIRE(chart.lines.size() == 3);  // full attention and two partitions
  CHECK(chart.lines[0].name == "full");
  CHECK(chart.lines[0].points == Points{{1000, 4}, {1000, 4.5}, {4000, 64}, {4000, 64.5}});
  CHECK(chart.lines[1].name == "spatial");
  CHECK(chart.lines[1].points == Points{{1000, 3}, {4000, 9}});
  CHECK(chart.lines[2].points == Points{{1000, 2}, {4000, 8}});
  CHECK(count(chart_to_svg(sweep_chart({cases[0]}, "tokens")), "nan") == 0);
  CHECK_THROWS_AS(sweep_chart({}, "tokens"), Error);
}
