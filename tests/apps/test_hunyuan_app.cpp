// HunyuanVideo end to end: diffusers writes a small random transformer; vmoba-train trains a LoRA or all weights with
// VMoBA, alone and on two ranks of one sample; diffusers loads the results and samples the same latents as
// vmoba-sample.
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/catch.h"
#include "support/messages.h"
#include "support/must_run.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;

namespace {

const std::string kScript = source_dir() + "/tests/apps/hunyuan.py";

Strings settings(const std::string& folder) {
  return {"--config", fixtures() + "/train/tiny_hunyuan.yaml", "model.weights=" + folder + "/transformer",
          "train.steps=3"};
}

// Trains; the checkpoint's folder.
std::string train(const std::string& folder, const std::string& name, const Strings& more) {
  must_run(Strings{bin_dir() + "/vmoba-train"} + settings(folder) + more + Strings{"run.dir=" + folder + "/" + name});
  return folder + "/" + name + "/checkpoint-3";
}

// Final latents of a checkpoint, in a file.
std::string sample(const std::string& folder, const std::string& checkpoint) {
  const std::string out = checkpoint + "/sampled.safetensors";
  must_run({bin_dir() + "/vmoba-sample", "--checkpoint", checkpoint, "--embeds", folder + "/given.safetensors",
            "--output-latents", out, "sample.steps=4", "attention.backend=full"});
  return out;
}

}  // namespace

TEST_CASE("HunyuanVideo trained with VMoBA samples in diffusers as it does here") {
  const TemporaryFolder folder;
  must_run({python(), kScript, "make", folder.path()});
  const Strings lora = {"lora.rank=4", "lora.alpha=6", "lora.save_dtype=fp32", "train.optimizer.lr=0.02",
                        "lora.formats=[comfyui, diffusers, kohya]"};
  nlohmann::json jobs;
  const std::string all = train(folder.path(), "full", {});
  jobs.push_back(
      {{"name", "all weights"}, {"transformer", all + "/transformer"}, {"latents", sample(folder.path(), all)}});
  const std::string adapters = train(folder.path(), "lora", lora);
  const std::string latents = sample(folder.path(), adapters);
  for (const char* format : {"comfyui", "diffusers"})
    jobs.push_back({{"name", format}, {"lora", adapters + "/lora/" + format + ".safetensors"}, {"latents", latents}});
  std::ofstream(folder.path() + "/jobs.json") << jobs.dump();
  std::istringstream lines(must_run({python(), kScript, "compare", folder.path(), folder.path() + "/jobs.json"}));
  size_t found = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("result ")) continue;
    INFO(line);
    const nlohmann::json result = nlohmann::json::parse(line.substr(7));
    CHECK(double(result["error"]) < 1e-4);
    CHECK(double(result["learnt"]) > 1e-3);
    ++found;
  }
  CHECK(found == jobs.size());
}

TEST_CASE("HunyuanVideo: a LoRA that diffusers would not know in ComfyUI's names is warned of") {
  const TemporaryFolder folder;
  must_run({python(), kScript, "make", folder.path()});
  const auto log = [&](const std::string& targets) {
    return must_run(Strings{bin_dir() + "/vmoba-train"} + settings(folder.path()) +
                    Strings{"train.steps=1", "lora.rank=2", "lora.targets=" + targets,
                            "run.dir=" + folder.path() + "/" + std::to_string(targets.size())});
  };
  const std::string warning = "diffusers reads such files where a name has 'img_attn_qkv'";
  CHECK(contains(log("[attn.to_out.0]"), warning));
  CHECK_FALSE(contains(log("[attn.to_out.0, transformer_blocks.*.attn.to_v]"), warning));
}

TEST_CASE("HunyuanVideo: --dry-run counts it, and a scale is refused where a model takes none") {
  const TemporaryFolder folder;
  must_run({python(), kScript, "make", folder.path()});
  const Strings command = Strings{bin_dir() + "/vmoba-train"} + settings(folder.path()) + Strings{"--dry-run"};
  CHECK(contains(must_run(command), "memory"));
  const ProcessResult refused = run_process({bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml",
                                             "--dry-run", "train.flow.embedded_guidance=6"});
  CHECK(refused.exit_code == 2);
  CHECK(contains(refused.output, "train.flow.embedded_guidance"));
}
