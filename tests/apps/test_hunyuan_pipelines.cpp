// HunyuanVideo and HunyuanVideo 1.5 from prompt to file with every part, small and random, as diffusers' pipelines:
// what vmoba-sample makes, and what it makes with a LoRA that vmoba-train trained from the cache of vmoba-encode and
// diffusers loads.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/catch.h"
#include "support/messages.h"
#include "support/must_run.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;

namespace {

const std::string kScript = source_dir() + "/tests/apps/hunyuan_pipelines.py";
const std::string kQuotes = "A sign says \"OPEN\" in the rain.";

// A pipeline's parts in a folder, and what was sampled with them.
class Parts {
 public:
  explicit Parts(const std::string& kind) : kind_(kind) { must_run({python(), kScript, "make", kind, folder_.path()}); }

  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }
  Strings config() const { return {"--config", path("run.yaml")}; }

  // Samples with full attention; diffusers will do the same.
  void sample(const std::string& prompt, const Strings& from, const std::string& lora = "") {
    const std::string name = std::to_string(jobs_.size()), frames = path("frames_" + name);
    std::filesystem::create_directory(frames);
    nlohmann::json job = {{"prompt", prompt}, {"latents", path(name + ".safetensors")}, {"frames", frames}};
    if (!lora.empty()) job["lora"] = lora;
    Strings command = Strings{bin_dir() + "/vmoba-sample"} + from;
    if (kind_.starts_with("i2v")) command = command + Strings{"--image", path("image.png")};
    must_run(command + Strings{"--prompt", prompt, "--latents", path("noise.safetensors"), "--output-latents",
                               job["latents"], "--out", frames + "/%04d.png", "attention.backend=full"});
    jobs_.push_back(job);
  }

  // Trains a LoRA with VMoBA; the checkpoint's folder.
  std::string train(const std::string& name, bool from_cache) const {
    const std::string log =
        must_run(Strings{bin_dir() + "/vmoba-train"} + config() +
                 Strings{"run.dir=" + path(name) + "/run", "cache.dir=" + (from_cache ? path("cache") : "")});
    CHECK(contains(log, "loading the text encoder") == !from_cache);
    return path(name) + "/run/checkpoint-3";  // a LoRA's title is the name of the run's folder
  }

  void compare() const {
    std::ofstream(path("jobs.json")) << nlohmann::json(jobs_).dump();
    std::istringstream lines(must_run({python(), kScript, "compare", kind_, folder_.path(), path("jobs.json")}));
    size_t found = 0;
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("result ")) continue;
      INFO(kind_ << " " << line);
      const nlohmann::json result = nlohmann::json::parse(line.substr(7));
      // Steps of a LoRA that turns the latents over add their own rounding.
      const double learnt = result.value("learnt", 0.0);
      CHECK(double(result["error"]) < 1e-5 * (1 + learnt));
      if (result.contains("levels")) CHECK(double(result["levels"]) <= 1);
      if (result.contains("learnt")) CHECK(learnt > 1e-3);
      ++found;
    }
    CHECK(found == jobs_.size());
  }

 private:
  std::string kind_;
  TemporaryFolder folder_;
  std::vector<nlohmann::json> jobs_;
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

// The commands of docs/pretrained.md for HunyuanVideo, but the download and the copy into ComfyUI's folder.
std::string published_commands() {
  const std::string page = read_text(source_dir() + "/docs/pretrained.md"), fence = "```\n";
  const size_t begin = page.find(fence + "hf download hunyuanvideo-community/HunyuanVideo ");
  REQUIRE(begin != std::string::npos);
  std::istringstream lines(page.substr(begin + fence.size()));
  std::string out;
  for (std::string line; std::getline(lines, line) && line != "```";)
    if (!line.starts_with("hf ") && !line.starts_with("cp ")) out += line + "\n";
  return out;
}

// Runs them on small parts, three steps in place of 2,000; the first training stops behind the second.
void run_published(const Parts& parts, bool first) {
  std::string run = read_text(parts.path("run.yaml"));
  run = replaced(run, "run:\n", "run:\n  dir: published/run\n");
  run = replaced(run, "cache:\n  dir: " + parts.path("cache") + "\n", "");
  std::ofstream(parts.path("published.yaml")) << replaced(run, "checkpoint_every: 3", "checkpoint_every: 1");
  std::string commands = replaced(published_commands(), "build/bin/", bin_dir() + "/");
  commands = replaced(commands, "configs/hunyuan_video_lora.yaml", "published.yaml");
  commands = replaced(commands, "models/HunyuanVideo/", "");
  commands = replaced(commands, "runs/hunyuan_video_lora/checkpoint-2000", "published/run/checkpoint-3");
  commands = replaced(commands, " cache.dir=cache\n" + bin_dir() + "/vmoba-train",
                      " cache.dir=cache train.steps=2\n" + bin_dir() + "/vmoba-train");
  commands = replaced(commands, "vmoba-encode --config published.yaml cache.dir=cache train.steps=2",
                      "vmoba-encode --config published.yaml cache.dir=cache");
  if (!first) commands = replaced(commands, "--architecture hunyuan_video", "--architecture hunyuan_video_15");
  REQUIRE(contains(commands, "--resume latest"));
  const std::string log = must_run({"bash", "-e", "-c", "cd '" + parts.path("") + "'\n" + commands});
  INFO(log);
  CHECK(contains(log, "everything that a run needs is there"));
  for (const char* made : {"fox.mp4", "kohya.safetensors", "merged.safetensors", "merged/config.json",
                           "published/run/checkpoint-2/lora/comfyui.safetensors"})
    CHECK(std::filesystem::exists(parts.path(made)));
}

// From prompt to file, and with a LoRA trained from the cache.
void check_pipeline(const std::string& kind) {
  Parts parts(kind);
  std::string long_prompt = "a cat";
  for (int i = 0; i < 400; ++i) long_prompt += ", a cat";
  for (const std::string& prompt : {kQuotes, std::string("夕方の港で漁船が揺れている。"), long_prompt})
    parts.sample(prompt, parts.config());
  must_run(Strings{bin_dir() + "/vmoba-encode"} + parts.config());
  const std::string checkpoint = parts.train("cached", /*from_cache=*/true);
  const std::string lora = "/lora/diffusers.safetensors";
  CHECK(read_text(checkpoint + lora) == read_text(parts.train("as_needed", /*from_cache=*/false) + lora));
  parts.sample(kQuotes, {"--checkpoint", checkpoint}, checkpoint + lora);
  parts.compare();
}

}  // namespace

TEST_CASE("HunyuanVideo text to video, every part") {
  check_pipeline("t2v");
}

TEST_CASE("HunyuanVideo image to video by token replace, every part") {
  check_pipeline("i2v");
}

TEST_CASE("HunyuanVideo image to video by concat, every part") {
  check_pipeline("i2v_concat");
}

TEST_CASE("HunyuanVideo 1.5 text to video, every part") {
  check_pipeline("t2v_15");
}

TEST_CASE("HunyuanVideo 1.5 image to video, every part") {
  check_pipeline("i2v_15");
}

TEST_CASE("HunyuanVideo 1.5 image to video with step-distilled weights, every part") {
  check_pipeline("i2v_meanflow_15");
}

TEST_CASE("the published commands of HunyuanVideo, one after the other, 1.0 and 1.5") {
  for (const std::string kind : {"t2v", "t2v_15"}) {
    Parts parts(kind);
    run_published(parts, kind == "t2v");
    const std::string checkpoint = parts.path("published/run/checkpoint-3");
    const std::string lora = checkpoint + "/lora/diffusers.safetensors";
    parts.sample(kQuotes, {"--checkpoint", checkpoint}, lora);
    // A single file says nothing of the rotation, which published models have in common.
    for (const char* merged : {"merged", "merged.safetensors"})
      parts.sample(kQuotes,
                   parts.config() + Strings{"model.weights=" + parts.path(merged), "model.rope_axes=[4, 2, 2]"}, lora);
    // Stopped and resumed is what one run makes.
    CHECK(read_text(lora) == read_text(parts.train("at_once", /*from_cache=*/true) + "/lora/diffusers.safetensors"));
    parts.compare();
  }
}

TEST_CASE("HunyuanVideo image to video: a text encoder that does not fit the task is refused") {
  const Parts image("i2v"), text("t2v");
  const std::string language = fixtures() + "/model/hunyuan_text/text_encoder";
  const auto refusal = [](const Parts& parts, const Strings& keys) {
    const ProcessResult result =
        run_process(Strings{bin_dir() + "/vmoba-train"} + parts.config() + Strings{"--dry-run", "cache.dir="} + keys);
    CHECK(result.exit_code == 2);
    return result.output;
  };
  CHECK(contains(refusal(image, {"text.type=hunyuan"}), "text.type: expected hunyuan_i2v"));
  CHECK(contains(refusal(text, {"text.type=hunyuan_i2v"}), "set text.type=hunyuan"));
  CHECK(contains(refusal(image, {"text.weights=" + language}), "vision_tower"));
}
