// vmoba-sample: text -> video from a checkpoint of vmoba-train (docs/running.md).
#include <filesystem>
#include <iostream>

#include "apps/main_guard.h"
#include "core/file.h"
#include "core/log.h"
#include "data/video_writer.h"
#include "model/weights/lora_file.h"
#include "sample/pipeline.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/trainer.h"

namespace {

using namespace vmoba;
namespace fs = std::filesystem;

struct Arguments {
  std::string checkpoint, prompt, out = "sample.mp4", negative;
  std::vector<std::string> overrides;
  int64_t seed = -1;
  bool use_ema = true;
  std::vector<std::string> loras;
  double lora_strength = 1;
};

// The adapters of a LoRA checkpoint and of --lora.
std::vector<model::Adapter> adapters_of(const Arguments& a, const train::RootConfig& config, bool average,
                                        at::Device device) {
  std::vector<model::Adapter> out;
  if (train::is_lora_checkpoint(a.checkpoint)) out = train::load_adapters(a.checkpoint, config.lora, average, device);
  for (const std::string& path : a.loras) {
    for (model::Adapter& adapter : model::read_lora(path, device)) {
      adapter.low_rank.scale *= a.lora_strength;
      out.push_back(std::move(adapter));
    }
  }
  return out;
}

train::RootConfig config_of(const Arguments& a) {
  std::vector<std::string> overrides = a.overrides;
  train::RootConfig config = train::load_root_config(a.checkpoint + "/state/config.yaml", overrides);
  if (a.seed >= 0) config.sample.seed = a.seed;
  if (!a.negative.empty()) config.sample.negative_prompt = a.negative;
  return config;
}

int write_sample(const Arguments& a) {
  const bool lora = train::is_lora_checkpoint(a.checkpoint);
  VMOBA_CHECK_INPUT(lora || fs::is_directory(a.checkpoint + "/transformer"),
                    "--checkpoint: expected a folder with transformer/ or lora/, and state/, found none at '{}'",
                    a.checkpoint);
  train::RootConfig config = config_of(a);
  const bool average = a.use_ema && fs::exists(a.checkpoint + (lora ? "/lora_ema" : "/transformer_ema"));
  if (!lora) config.model.weights = a.checkpoint + (average ? "/transformer_ema" : "/transformer");
  set_log_level(log_level_from_name(config.run.log_level));
  const at::Device device = train::prepare_device(config.run);
  const auto codec = model::make_codec(config.codec, device);
  const auto text = model::make_text_encoder(config.text, device);
  const auto dit = model::make_dit(config.model, config.attention, uint64_t(config.seed), device);
  const std::vector<model::Adapter> adapters = adapters_of(a, config, average, device);
  if (!adapters.empty()) dit->attach(adapters);
  log_info("weights: {}{}", config.model.weights, average ? ", averaged" : "");
  sample::Pipeline pipeline(*dit, *codec, *text, config.sample, config.attention,
                            config.model.compute_dtype == "bf16" ? at::kBFloat16 : at::kFloat, device);
  const at::Tensor frames =
      pipeline.generate({a.prompt, uint64_t(config.sample.seed), 0},
                        [](int64_t step, int64_t steps) { log_info("sampling step {}/{}", step, steps); });
  data::write_video(a.out, frames, config.sample.fps);
  std::cout << a.out << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Samples a video from a checkpoint of vmoba-train."};
  Arguments a;
  app.add_option("--checkpoint", a.checkpoint, "checkpoint-<step> folder of a run")->required();
  app.add_option("--prompt", a.prompt, "What to show")->required();
  app.add_option("--out", a.out, "The .mp4 to write");
  app.add_option("--negative-prompt", a.negative, "What to steer away from (default: the configuration's)");
  app.add_option("--seed", a.seed, "Seed of the noise (default: sample.seed)");
  app.add_flag("--ema,!--no-ema", a.use_ema, "Use the averaged weights where the checkpoint has them (default)");
  app.add_option("--lora", a.loras, "LoRA file to add, in any format of docs/pretrained.md; may be repeated");
  app.add_option("--lora-strength", a.lora_strength, "Factor of what --lora adds (1)");
  app.add_option("overrides", a.overrides, "key.sub=value, for example sample.steps=20 attention.backend=full");
  return vmoba::apps::guarded_main(app, argc, argv, [&] { return write_sample(a); });
}
