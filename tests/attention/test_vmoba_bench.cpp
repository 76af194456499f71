// The program as a user starts it: exit codes and the JSON that scripts read.
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "support/catch.h"
#include "support/paths.h"

namespace {

const std::string kGolden = vmoba::test::fixtures() + "/golden";

int bench(const std::string& arguments) {
  const std::string command = vmoba::test::bin_dir() + "/vmoba-bench " + arguments + " > vmoba_bench_test.txt 2>&1";
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::string output() {
  std::ifstream file("vmoba_bench_test.txt");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

TEST_CASE("check passes on the golden vectors and writes JSON") {
  REQUIRE(bench("check " + kGolden + " --backend reference --json vmoba_bench_test.json") == 0);
  CHECK(output().find("49 of 49 files passed") != std::string::npos);
  std::ifstream file("vmoba_bench_test.json");
  const nlohmann::json json = nlohmann::json::parse(file);
  CHECK(json.at("failed") == 0);
  REQUIRE(json.at("files").size() == 49);
  for (const auto& entry : json.at("files")) {
    CHECK(entry.at("passed") == true);
    CHECK(entry.at("mask_differences") == 0);
    for (const char* name : {"out", "lse", "dq", "dk", "dv"}) CHECK(entry.at("error").at(name).get<double>() < 1e-5);
  }
  std::remove("vmoba_bench_test.json");
}

TEST_CASE("check runs cases by name") {
  CHECK(bench("check --case cube-overall-text --case padded-text --backend reference") == 0);
  CHECK(output().find("2 of 2") != std::string::npos);
  CHECK(bench("check --case all --dtype bf16") == 0);
  CHECK(bench("check --case none") == 2);
  CHECK(output().find("cube-overall-text") != std::string::npos);
  CHECK(bench("check --case published-temporal") == 2);
  CHECK(bench("check --case padded-text --kernel-family 80") == 0);
  CHECK(bench("check --case padded-text --kernel-family 70") == 2);
}

TEST_CASE("step times published models, made smaller") {
  const std::string small =
      " --grid 3x4x8 --repeats 1 --warmup 1 run.device=cpu model.layers=2 model.heads=2 model.ffn_dim=64"
      " text.max_tokens=8 attention.preset=cubes attention.spatiotemporal_chunk=[3,2,4] attention.density=0.25"
      " --backends full vmoba --json vmoba_bench_test.json";
  for (const std::string& model :
       {std::string("14b"), std::string("hunyuan_video model.single_layers=2 lora.rank=4 model.weights_dtype=fp8"),
        std::string("hunyuan_video_15 model.weights_dtype=bf16 train.optimizer.type=adamw_8bit")}) {
    INFO(model);
    REQUIRE(bench("step --model " + model + small) == 0);
    std::ifstream file("vmoba_bench_test.json");
    const nlohmann::json cases = nlohmann::json::parse(file).at("cases");
    REQUIRE(cases.size() == 2);
    CHECK(cases[0].at("density") == 1);
    CHECK(cases[1].at("density").get<double>() < 0.5);
    for (const nlohmann::json& one : cases) {
      CHECK(one.at("tokens") == 96);
      CHECK(one.at("step_ms").at("median").get<double>() > 0);
    }
  }
  CHECK(bench("step --model 2b" + small) == 2);
  CHECK(output().find("hunyuan_video_15") != std::string::npos);
  std::remove("vmoba_bench_test.json");
}

TEST_CASE("wrong usage and missing input are exit code 2, a file that cannot be written 1") {
  CHECK(bench("--help") == 0);
  CHECK(bench("") == 2);
  CHECK(bench("check") == 2);
  CHECK(bench("check " + kGolden + " --dtype fp8") == 2);
  CHECK(bench("check " + kGolden + " --backend cuda") == 2);
  CHECK(bench("check " + kGolden + "/missing") == 2);
  CHECK(output().find("expected a folder") != std::string::npos);
  CHECK(bench("check " + vmoba::test::source_dir() + "/src") == 2);
  CHECK(bench("check " + kGolden + " --json missing_folder/out.json") == 1);
  std::remove("vmoba_bench_test.txt");
}
