#include "train/report/run_chart.h"

#include <fstream>

#include "core/check.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::train;

namespace {

std::string write_run(const std::string& folder, const std::string& text) {
  const std::string path = folder + "/metrics.jsonl";
  std::ofstream(path) << text;
  return path;
}

RunCurve rising(int64_t points) {
  RunCurve out{"a", {}};
  for (int64_t i = 0; i < points; ++i) out.points.emplace_back(double(i), 2.0 * double(i));
  return out;
}

}  // namespace

TEST_CASE("a curve is a metric over steps, samples or GPU seconds") {
  const test::TemporaryFolder folder;
  const std::string path = write_run(folder.path(),
                                     "{\"step\":1,\"loss\":0.5,\"samples\":8,\"gpu_s\":0.25}\n"
                                     "{\"step\":2,\"loss\":null,\"samples\":16,\"gpu_s\":0.5}\n"
                                     "{\"step\":3,\"loss\":0.25,\"samples\":24,\"gpu_s\":1,\"val_loss\":0.3}\n"
                                     "{\"step\":4,\"lo");
  using Points = std::vector<std::pair<double, double>>;
  CHECK(read_run_curve(path, "step", "loss").points == Points{{1, 0.5}, {3, 0.25}});
  CHECK(read_run_curve(path, "samples", "loss").points == Points{{8, 0.5}, {24, 0.25}});
  CHECK(read_run_curve(path, "gpu_s", "loss").points == Points{{0.25, 0.5}, {1, 0.25}});
  CHECK(read_run_curve(path, "gpu_s", "val_loss").points == Points{{1, 0.3}});
  try {
    read_run_curve(path, "step", "val_los");
    FAIL("accepted");
  } catch (const Error& e) {
    CHECK(test::contains(e.what(), "val_loss"));
    CHECK(test::contains(e.what(), path));
  }
}

TEST_CASE("runs are named by their folders, as far as it takes") {
  CHECK(run_names({"/x/a/metrics.jsonl", "/x/b/metrics.jsonl"}) == std::vector<std::string>{"a", "b"});
  CHECK(run_names({"/x/a/run/metrics.jsonl", "/x/b/run/metrics.jsonl"}) == std::vector<std::string>{"a/run", "b/run"});
  const std::vector<std::string> twice = {"/x/a/metrics.jsonl", "/x/a/metrics.jsonl"};
  CHECK(run_names(twice) == twice);
}

TEST_CASE("moving means keep a straight line straight, and stop before they are noise") {
  for (const int64_t points : {20, 500}) {
    const Chart chart = run_chart({rising(points)}, "step", "loss");
    REQUIRE(chart.lines.size() == 1);
    REQUIRE(chart.lines[0].points.size() == size_t(points == 20 ? 20 : 496));  // 8 on either side, at least 4
    for (const auto& [x, y] : chart.lines[0].points) CHECK(y == Approx(2 * x).margin(1e-9));
    CHECK(chart.lines[0].markers == (points == 20));
    CHECK(chart.x.low == 0);
    CHECK(chart.x.high == double(points - 1));
    CHECK(chart.y.low < 0);
    CHECK(chart.y.high > 2.0 * double(points - 1));
  }
  RunCurve zigzag{"b", {}};
  for (int64_t i = 0; i < 9; ++i) zigzag.points.emplace_back(double(i), i % 2 == 0 ? 1.0 : 4.0);
  const Chart smooth = run_chart({zigzag, rising(9)}, "samples", "loss", 3);
  CHECK(smooth.lines[0].points[0].second == 1);  // an end has no neighbours on both sides
  CHECK(smooth.lines[0].points[3].second == Approx(2));
  CHECK(smooth.lines[0].points[4].second == Approx(3));
  CHECK(smooth.lines.size() == 2);
  CHECK_FALSE(chart_to_png(smooth).empty());
  CHECK_FALSE(chart_to_svg(run_chart({{"c", {{5, 0.25}}}}, "gpu_s", "val_loss")).empty());  // a single point
}
