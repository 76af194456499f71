// vmoba-bench step: the trainer's step on a clip in memory, on the CPU, alone and on two ranks, and its keys.
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/messages.h"
#include "support/paths.h"
#include "train/dist/train_job.h"

using namespace vmoba::test;

namespace {

nlohmann::json bench(int ranks, const std::vector<std::string>& keys) {
  const TemporaryFolder folder;
  const std::string file = folder.path() + "/step.json";
  std::vector<std::string> command = ranks > 0 ? mpirun(ranks) : std::vector<std::string>();
  command.insert(command.end(), {bin_dir() + "/vmoba-bench", "step", "run.device=cpu", "model.heads=2",
                                 "model.head_dim=12", "model.ffn_dim=32", "model.text_dim=16", "text.max_tokens=8"});
  command.insert(command.end(), keys.begin(), keys.end());
  command.insert(command.end(), {"--layers", "2", "--grid", "2x4x4", "--repeats", "2", "--warmup", "1", "--backends",
                                 "full", "--json", file});
  const ProcessResult result = run_process(command, kEnvironment);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK(contains(result.output, "limit ms"));
  std::ifstream stream(file);
  return nlohmann::json::parse(stream)["cases"];
}

}  // namespace

TEST_CASE("a step is timed on the CPU, alone and on ranks, with the keys of a configuration") {
  for (const int ranks : {0, 2}) {
    for (const char* keys :
         {"train.optimizer.type=muon", "model.weights_dtype=bf16", "lora.rank=4", "model.offload=activations"}) {
      INFO(ranks << " ranks, " << keys);
      const std::string batch = "train.global_batch=2", shard = "parallel.shard=" + std::to_string(std::max(1, ranks));
      const nlohmann::json cases = bench(ranks, {keys, batch, "train.micro_batch=1", shard});
      REQUIRE(cases.size() == 1);
      CHECK(cases[0]["tokens"] == 2 * 32);
      CHECK(cases[0]["density"] == 1);
      CHECK(cases[0]["step_ms"]["median"] > 0);
      CHECK(cases[0]["tflops"] > 0);
      CHECK(cases[0]["mfu"] == 0);  // of a CPU nobody knows the peak
    }
  }
  const nlohmann::json both = bench(0, {"lora.rank=4", "model.weights_dtype=fp8", "model.offload=both"});
  CHECK(both[0]["offload"] == "both");
  CHECK(bench(0, {"lora.rank=4", "model.offload=auto"})[0]["offload"] == "none");  // a CPU needs none
  const ProcessResult refused =
      run_process({bin_dir() + "/vmoba-bench", "step", "run.device=cpu", "train.optimizer.tipe=muon"});
  CHECK(refused.exit_code == 2);
  CHECK(contains(refused.output, "train.optimizer.type"));
}

TEST_CASE("of several ranks the first writes the profile") {
  const TemporaryFolder folder;
  const std::string file = folder.path() + "/step.trace";
  bench(2, {"train.global_batch=2", "train.micro_batch=1", "parallel.shard=2", "--profile", file});
  std::ifstream stream(file);
  CHECK(nlohmann::json::parse(stream).contains("traceEvents"));
}
