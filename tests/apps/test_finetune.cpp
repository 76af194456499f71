// Fine-tuning end to end: diffusers and transformers write small random "pretrained" pipelines with a real Wan VAE,
// UMT5 with its tokenizer and CLIP; vmoba-encode caches, vmoba-train trains with VMoBA (all weights, or a LoRA; one
// transformer, or two experts), diffusers loads the results and samples the same latents as vmoba-sample.
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

const std::string kScript = source_dir() + "/tests/apps/finetune.py";
// The same as in finetune.py.
const std::string kPrompt = "A rocket lifts off; white smoke &amp; people cheer.", kNegative = "最差质量，低质量";

class Pipelines {
 public:
  Pipelines() { must_run({python(), kScript, "make", folder_.path(), fixtures() + "/model"}); }

  std::string at(const std::string& name) const { return folder_.path() + "/" + name; }
  // Configuration of a run that begins at pipeline `kind`.
  Strings settings(const std::string& kind) const {
    Strings out = {"--config",
                   fixtures() + "/train/tiny.yaml",
                   "model.weights=" + at(kind) + "/transformer",
                   "model.text_dim=24",
                   "text.type=umt5",
                   "text.dtype=fp32",
                   "text.max_tokens=512",
                   "text.weights=" + at(kind) + "/text_encoder",
                   "codec.type=wan_vae",
                   "codec.weights=" + at(kind) + "/vae",
                   "attention.dense_warmup_steps=0",
                   "train.optimizer.warmup_steps=0",
                   "train.steps=3",
                   "train.ema.enabled=false",
                   "train.tensorboard=false"};
    if (kind == "i2v")
      out = out + Strings{"model.task=i2v", "model.in_channels=36", "model.image_dim=16", "image_encoder.type=clip",
                          "image_encoder.weights=" + at(kind) + "/image_encoder"};
    return out;
  }
  // Trains; the checkpoint's folder.
  std::string train(const std::string& name, const Strings& settings) const {
    must_run(Strings{bin_dir() + "/vmoba-train"} + settings + Strings{"run.dir=" + at(name)});
    return at(name) + "/checkpoint-3";
  }
  // Final latents of a checkpoint, in a file.
  std::string sample(const std::string& kind, const std::string& checkpoint) const {
    const std::string out = checkpoint + "/sampled.safetensors";
    Strings command = {bin_dir() + "/vmoba-sample",
                       "--checkpoint",
                       checkpoint,
                       "--prompt",
                       kPrompt,
                       "--negative-prompt",
                       kNegative,
                       "--latents",
                       at(kind + ".safetensors"),
                       "--output-latents",
                       out,
                       "sample.steps=4",
                       "sample.schedule=diffusers",  // the release that the tests have
                       "sample.guidance=3",
                       "attention.backend=full"};
    if (kind == "i2v") command = command + Strings{"--image", at("first.png"), "sample.height=224", "sample.width=224"};
    must_run(command);
    return out;
  }
  // Latents of each job, beside what diffusers makes of it.
  void check(const nlohmann::json& jobs) const {
    std::ofstream(at("jobs.json")) << jobs.dump();
    std::istringstream lines(must_run({python(), kScript, "compare", folder_.path(), at("jobs.json")}));
    size_t found = 0;
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("result ")) continue;
      INFO(line);
      const nlohmann::json result = nlohmann::json::parse(line.substr(7));
      // Four steps in fp32 with guidance 3, on both sides in another order of additions.
      CHECK(double(result["error"]) < 1e-4);
      CHECK(double(result["learnt"]) > 1e-3);
      CHECK(result["warnings"].empty());
      ++found;
    }
    CHECK(found == jobs.size());
  }

 private:
  TemporaryFolder folder_;
};

}  // namespace

TEST_CASE("what was fine-tuned from a pretrained pipeline samples in diffusers as it does here") {
  const Pipelines p;
  nlohmann::json jobs;
  const auto add = [&](const std::string& name, nlohmann::json job, const std::string& latents) {
    job.update({{"name", name}, {"latents", latents}});
    jobs.push_back(job);
  };
  const Strings lora = {"lora.rank=4", "lora.alpha=4", "lora.save_dtype=fp32", "train.optimizer.lr=0.02"};

  const std::string full = p.train("full", p.settings("t2v"));
  add("all weights", {{"kind", "t2v"}, {"transformer", full + "/transformer"}}, p.sample("t2v", full));

  // From a cache of latents and embeddings, which leaves VAE and UMT5 unread.
  const Strings cached = p.settings("t2v") + Strings{"cache.dir=" + p.at("cache")};
  must_run(Strings{bin_dir() + "/vmoba-encode"} + cached);
  const std::string adapters =
      p.train("lora", cached + lora + Strings{"cache.mode=require", "lora.formats=[comfyui, diffusers, kohya]"});
  const std::string latents = p.sample("t2v", adapters);
  for (const char* format : {"comfyui", "diffusers", "kohya"})
    add(std::string("LoRA ") + format,
        {{"kind", "t2v"},
         {"transformer", p.at("t2v/transformer")},
         {"loras", {adapters + "/lora/" + format + ".safetensors"}}},
        latents);

  const Strings images = p.settings("i2v") + lora + Strings{"cache.dir=" + p.at("cache_i2v")};
  must_run(Strings{bin_dir() + "/vmoba-encode"} + images);
  const std::string i2v = p.train("i2v_lora", images + Strings{"cache.mode=require"});
  add("image to video, LoRA",
      {{"kind", "i2v"}, {"transformer", p.at("i2v/transformer")}, {"loras", {i2v + "/lora/comfyui.safetensors"}}},
      p.sample("i2v", i2v));
  p.check(jobs);
}

TEST_CASE("two experts trained in one run sample in diffusers as they do here") {
  const Pipelines p;
  nlohmann::json jobs;
  // Half of the timesteps are above 875 with this shift.
  const Strings experts =
      p.settings("t2v") + Strings{"model.weights=''", "train.flow.shift=7",
                                  "experts=[{weights: '" + p.at("t2v/transformer") + "', until_timestep: 875}, " +
                                      "{weights: '" + p.at("t2v/transformer_2") + "'}]"};
  const std::string full = p.train("experts", experts);
  jobs.push_back({{"name", "two experts"},
                  {"kind", "t2v"},
                  {"transformer", full + "/transformer"},
                  {"transformer_2", full + "/transformer_2"},
                  {"latents", p.sample("t2v", full)}});
  const std::string lora =
      p.train("experts_lora", experts + Strings{"lora.rank=4", "lora.save_dtype=fp32", "train.optimizer.lr=0.02"});
  jobs.push_back(
      {{"name", "LoRA of two experts"},
       {"kind", "t2v"},
       {"transformer", p.at("t2v/transformer")},
       {"transformer_2", p.at("t2v/transformer_2")},
       {"loras", {lora + "/lora/comfyui_high_noise.safetensors", lora + "/lora/comfyui_low_noise.safetensors"}},
       {"latents", p.sample("t2v", lora)}});
  p.check(jobs);
}
