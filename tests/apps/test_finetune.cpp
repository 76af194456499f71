// Fine-tuning end to end: diffusers writes a small random "pretrained" transformer, vmoba-train trains it with VMoBA
// (all weights, or a LoRA), diffusers loads the result and samples the same latents as vmoba-sample.
#include <sstream>

#include "support/catch.h"
#include "support/process.h"

using namespace vmoba::test;

namespace {

const std::string kScript = VMOBA_SOURCE_DIR "/tests/apps/finetune.py";

ProcessResult must_run(const std::vector<std::string>& command) {
  ProcessResult result = run_process(command);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return result;
}

struct Comparison {
  double error = 1, learnt = 0;
  bool warned = false;
};

// What diffusers makes of the result, beside `latents`.
Comparison compare(const std::string& transformer, const std::string& folder, const std::string& latents,
                   const std::string& lora = "") {
  std::vector<std::string> command = {VMOBA_PYTHON, kScript, "compare", transformer, folder, latents};
  if (!lora.empty()) command.push_back(lora);
  std::istringstream lines(must_run(command).output);
  Comparison out;
  for (std::string word; lines >> word;) {
    if (word == "error") lines >> out.error;
    if (word == "learnt") lines >> out.learnt;
    if (word == "warning") out.warned = true;
  }
  return out;
}

std::string train(const std::string& folder, const std::string& name, std::vector<std::string> extra) {
  std::vector<std::string> command = {VMOBA_BIN_DIR "/vmoba-train",
                                      "--config",
                                      VMOBA_FIXTURES "/train/tiny.yaml",
                                      "run.dir=" + folder + "/" + name,
                                      "model.weights=" + folder + "/transformer",
                                      "attention.dense_warmup_steps=0",
                                      "train.steps=6",
                                      "train.ema.enabled=false"};
  command.insert(command.end(), extra.begin(), extra.end());
  must_run(command);
  return folder + "/" + name + "/checkpoint-6";
}

std::string sample(const std::string& folder, const std::string& checkpoint) {
  const std::string out = checkpoint + "/sampled.safetensors";
  must_run({VMOBA_BIN_DIR "/vmoba-sample", "--checkpoint", checkpoint, "--embeds", folder + "/inputs.safetensors",
            "--output-latents", out, "sample.steps=4", "sample.guidance=3", "attention.backend=full"});
  return out;
}

// Four steps in fp32 with guidance 3, on both sides in another order of additions.
constexpr double kAllowed = 1e-4;

}  // namespace

TEST_CASE("a fine-tuned transformer samples in diffusers as it does here") {
  const TemporaryFolder folder;
  must_run({VMOBA_PYTHON, kScript, "make", folder.path()});
  const std::string full = train(folder.path(), "full", {});
  const Comparison all = compare(full + "/transformer", folder.path(), sample(folder.path(), full));
  CHECK(all.error < kAllowed);
  CHECK(all.learnt > 1e-3);
  CHECK_FALSE(all.warned);

  const std::string lora = train(folder.path(), "lora",
                                 {"lora.rank=4", "lora.alpha=4", "lora.formats=[comfyui, diffusers, kohya]",
                                  "lora.save_dtype=fp32", "train.optimizer.lr=0.01"});
  const std::string latents = sample(folder.path(), lora);
  for (const char* format : {"comfyui", "diffusers", "kohya"}) {
    INFO(format);
    const Comparison found =
        compare(folder.path() + "/transformer", folder.path(), latents, lora + "/lora/" + format + ".safetensors");
    CHECK(found.error < kAllowed);
    CHECK(found.learnt > 1e-3);
    CHECK_FALSE(found.warned);
  }
}
