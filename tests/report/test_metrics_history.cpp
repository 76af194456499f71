// metrics.jsonl as the page's curves take it.
#include <cmath>
#include <fstream>

#include "report/metrics_history.h"
#include "support/catch.h"
#include "support/process.h"

using namespace vmoba::report;
using vmoba::test::TemporaryFolder;

TEST_CASE("a short history keeps every step; what a line lacks is missing, not shifted") {
  const TemporaryFolder temp;
  const std::string path = temp.path() + "/metrics.jsonl";
  std::ofstream(path) << R"({"step": 1, "samples": 4, "gpu_s": 0.5, "loss": 3.0, "time": 9})"
                      << "\n"
                      << R"({"step": 2, "samples": 8, "gpu_s": 1.0, "loss": null, "mfu": 0.25, "val_loss": 2.5,)"
                      << R"( "val_loss_by_sigma": {"0.35": 2.0, "0.75": 3.0}, "density_by_partition": {"full": 1.0},)"
                      << R"( "density_by_layer": [0.5, 0.25]})"
                      << "\n"
                      << "no JSON\n[1]\n"
                      << R"({"step": 3, "samples": 12, "gpu_s": 1.5, "loss": 1.0})"
                      << "\n"
                      << R"({"step": 4, "lo)";
  const MetricsHistory history = read_history(path);
  CHECK(history.lines == 3);
  CHECK(history.x.samples == std::vector<double>{4, 8, 12});
  CHECK(history.last["step"] == 3);
  const nlohmann::json json = history_json(history);
  CHECK(json["x"]["step"] == nlohmann::json({1, 2, 3}));
  CHECK(json["x"]["gpu_s"] == nlohmann::json({0.5, 1.0, 1.5}));
  CHECK(json["y"]["loss"] == nlohmann::json({3.0, nullptr, 1.0}));
  CHECK(json["y"]["mfu"] == nlohmann::json({nullptr, 0.25, nullptr}));
  CHECK(json["y"]["density/full"] == nlohmann::json({nullptr, 1.0, nullptr}));
  CHECK_FALSE(json["y"].contains("time"));
  CHECK(json["marks"]["val_loss"]["x"]["samples"] == nlohmann::json({8}));
  CHECK(json["marks"]["val_loss"]["y"] == nlohmann::json({2.5}));
  CHECK(json["marks"]["val_loss at 0.75"]["y"] == nlohmann::json({3.0}));
  CHECK(json["layers"]["step"] == nlohmann::json({2}));
  CHECK(json["layers"]["rows"] == nlohmann::json({{0.5}, {0.25}}));
}

TEST_CASE("a long history is thinned to means whose last step is the run's") {
  const TemporaryFolder temp;
  const std::string path = temp.path() + "/metrics.jsonl";
  {
    std::ofstream file(path);
    for (int step = 1; step <= 4500; ++step)
      file << "{\"step\": " << step << ", \"samples\": " << 2 * step << ", \"gpu_s\": " << step
           << ", \"loss\": " << step << ", \"density_by_layer\": [" << step << "]}\n";
  }
  const MetricsHistory history = read_history(path);
  CHECK(history.lines == 4500);
  REQUIRE(history.x.step.size() == 1500);
  CHECK(history.x.step.front() == 3);
  CHECK(history.x.step.back() == 4500);
  CHECK(history.y.at("loss").front() == 2);  // the mean of 1, 2 and 3
  CHECK(history.y.at("loss").back() == 4499);
  CHECK(history.layer_step.size() == 237);  // groups of 19
  CHECK(history.layers.front().size() == history.layer_step.size());
}

TEST_CASE("no file is a run without steps; an axis that was not logged is that of steps") {
  const TemporaryFolder temp;
  CHECK(read_history(temp.path() + "/none").lines == 0);
  const std::string path = temp.path() + "/metrics.jsonl";
  std::ofstream(path) << "{\"step\": 5, \"loss\": 1}\n";
  CHECK(history_json(read_history(path))["x"]["samples"] == nlohmann::json({5}));
}
