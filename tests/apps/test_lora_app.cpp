// What makers of LoRAs rely on: epochs, LoRA+, masks and the metadata of their files, on runs of seconds.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/messages.h"
#include "support/metrics.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
using Strings = std::vector<std::string>;
namespace fs = std::filesystem;

namespace {

// A base whose last layer is no longer zero, so that adapters have gradients.
const std::string& base() {
  static const TemporaryFolder folder;
  static const std::string weights = [] {
    const ProcessResult result = run_process(
        {bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml", "run.dir=" + folder.path() + "/base",
         "train.steps=3", "train.ema.enabled=false", "train.report=false", "train.tensorboard=false"});
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    return folder.path() + "/base/checkpoint-3/transformer";
  }();
  return weights;
}

// Ten clips in one bucket and batches of four: 2.5 steps an epoch.
Strings command(const std::string& run_dir, const Strings& extra) {
  Strings out = {bin_dir() + "/vmoba-train",
                 "--config",
                 fixtures() + "/train/tiny.yaml",
                 "run.dir=" + run_dir,
                 "model.weights=" + base(),
                 "lora.rank=2",
                 "train.ema.enabled=false",
                 "train.tensorboard=false",
                 "train.optimizer.schedule=constant",
                 "train.optimizer.warmup_steps=0",
                 "train.checkpoint_every=0",
                 "train.keep_checkpoints=0",
                 "train.steps=1000"};
  out.insert(out.end(), extra.begin(), extra.end());
  return out;
}

std::string train(const std::string& run_dir, const Strings& extra) {
  const ProcessResult result = run_process(command(run_dir, extra));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return result.output;
}

nlohmann::json header_of(const std::string& safetensors) {
  const std::string text = read_text(safetensors);
  REQUIRE(text.size() > 8);
  uint64_t bytes = 0;
  std::memcpy(&bytes, text.data(), sizeof bytes);
  return nlohmann::json::parse(text.substr(8, bytes));
}

// Values of the fp32 tensors, by name.
std::map<std::string, std::vector<float>> tensors_of(const std::string& safetensors) {
  const std::string text = read_text(safetensors);
  uint64_t bytes = 0;
  std::memcpy(&bytes, text.data(), sizeof bytes);
  std::map<std::string, std::vector<float>> out;
  const nlohmann::json header = header_of(safetensors);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    REQUIRE(entry["dtype"] == "F32");
    const size_t begin = 8 + bytes + size_t(entry["data_offsets"][0]),
                 end = 8 + bytes + size_t(entry["data_offsets"][1]);
    std::vector<float>& values = out[name];
    values.resize((end - begin) / sizeof(float));
    std::memcpy(values.data(), text.data() + begin, end - begin);
  }
  return out;
}

Strings checkpoints_of(const std::string& run_dir) {
  Strings out;
  for (const auto& entry : fs::directory_iterator(run_dir))
    if (entry.path().filename().string().starts_with("checkpoint-")) out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

// A grey picture whose right half has another brightness.
void write_pgm(const std::string& path, int width, int height, int left, int right) {
  std::string bytes = "P5\n" + std::to_string(width) + " " + std::to_string(height) + "\n255\n";
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) bytes += char(x < width / 2 ? left : right);
  std::ofstream(path, std::ios::binary) << bytes;
}

// A manifest of the shipped clips; `mask` "" leaves it out.
std::string manifest(const std::string& folder, const std::string& name, const std::string& mask) {
  std::vector<std::string> clips;
  for (const auto& entry : fs::directory_iterator(source_dir() + "/assets/clips"))
    if (entry.path().extension() == ".mp4") clips.push_back(entry.path().string());
  std::sort(clips.begin(), clips.end());
  std::ofstream file(folder + "/" + name + ".jsonl");
  for (const std::string& clip : clips) {
    nlohmann::json line = {{"video_path", clip}, {"caption", "a clip"}};
    if (!mask.empty()) line["mask_path"] = mask;
    file << line.dump() << "\n";
  }
  return folder + "/" + name + ".jsonl";
}

}  // namespace

TEST_CASE("a run of epochs saves and samples at their ends, and goes on exactly from one") {
  const TemporaryFolder folder;
  const std::string a = folder.path() + "/a/run", b = folder.path() + "/b/run";
  write_pgm(folder.path() + "/mask.pgm", 480, 270, 255, 64);
  const Strings epochs = {"data.path=" + manifest(folder.path(), "clips", "mask.pgm"),
                          "data.horizontal_flip=0.5",
                          "lora.plus_ratio=4",
                          "train.epochs=2",
                          "train.checkpoint_every_epochs=1",
                          "train.validate_every_epochs=1",
                          "sample.prompts=[a, b]"};
  const std::string said = train(a, epochs);
  CHECK(contains(said, "2 epochs (train.epochs) are 5 steps"));
  CHECK(metrics(a).size() == 5);
  CHECK(checkpoints_of(a) ==
        Strings{"checkpoint-3", "checkpoint-5"});  // 12 samples are more than 10, 20 are two epochs
  for (const char* file : {"step-000003-0.mp4", "step-000003-1.mp4", "step-000005-1.mp4", "grid.png"})
    CHECK(fs::exists(a + "/samples/" + file));
  CHECK_FALSE(fs::exists(a + "/samples/step-000004-0.mp4"));

  fs::create_directories(folder.path() + "/b");
  fs::copy(a, b, fs::copy_options::recursive);
  fs::remove_all(b + "/checkpoint-5");
  Strings resumed = epochs;
  resumed.insert(resumed.end(), {"--resume", "latest"});
  train(b, resumed);
  for (const char* file : {"state/lora.safetensors", "state/optimizer.safetensors", "lora/comfyui.safetensors"}) {
    INFO(file);
    CHECK(read_text(a + "/checkpoint-5/" + file) == read_text(b + "/checkpoint-5/" + file));
  }
  CHECK(metrics(a).back()["loss"] == metrics(b).back()["loss"]);

  const ProcessResult more = run_process({bin_dir() + "/vmoba-train", "--resume", b, "train.epochs=3"});
  INFO(more.output);
  CHECK(more.exit_code == 0);
  CHECK(checkpoints_of(b).back() == "checkpoint-8");

  const ProcessResult both = run_process(command(folder.path() + "/c", {"train.epochs=2", "train.steps=7"}));
  CHECK(both.exit_code == 2);
  CHECK(contains(both.output, "train.steps: expected the 5 steps of train.epochs 2"));
  const ProcessResult dry = run_process(command(folder.path() + "/c", {"train.epochs=3", "--dry-run"}));
  INFO(dry.output);
  CHECK(dry.exit_code == 0);
  CHECK(contains(dry.output, "3 are 8 steps"));  // 7.5
}

TEST_CASE("LoRA+ lets B learn faster by its ratio") {
  const TemporaryFolder folder;
  for (const char* type : {"adamw", "adamw_8bit", "muon"}) {
    INFO(type);
    const std::string at = folder.path() + "/" + type;
    const Strings one = {"train.steps=1", "train.optimizer.weight_decay=0", "train.report=false",
                         std::string("train.optimizer.type=") + type};
    Strings plus = one;
    plus.push_back("lora.plus_ratio=4");
    train(at + "_plain", one);
    train(at + "_plus", plus);
    const auto plain = tensors_of(at + "_plain/checkpoint-1/state/lora.safetensors");
    const auto faster = tensors_of(at + "_plus/checkpoint-1/state/lora.safetensors");
    REQUIRE(plain.size() == faster.size());
    double moved = 0;
    for (const auto& [name, values] : plain) {
      INFO(name);
      const std::vector<float>& other = faster.at(name);
      // B begins as zero, so that its values are the first step's change; A has no gradient yet.
      if (name.find("lora_A") != std::string::npos) {
        CHECK(values == other);
        continue;
      }
      for (size_t i = 0; i < values.size(); ++i) {
        REQUIRE(other[i] == Approx(4 * values[i]).epsilon(1e-5));
        moved += std::abs(values[i]);
      }
    }
    CHECK(moved > 0);
  }
}

TEST_CASE("black parts of a mask are not learnt, white ones as without a mask") {
  const TemporaryFolder folder;
  const std::string at = folder.path();
  write_pgm(at + "/black.pgm", 480, 270, 0, 0);
  write_pgm(at + "/white.pgm", 240, 135, 255, 255);  // smaller, but of the same shape
  write_pgm(at + "/grey.pgm", 480, 270, 51, 51);
  const auto first = [&](const std::string& name, const std::string& mask) {
    train(at + "/" + name, {"data.path=" + manifest(at, name, mask), "train.steps=1", "train.report=false"});
    return metrics(at + "/" + name).at(0);
  };
  const nlohmann::json none = first("none", ""), white = first("white", "white.pgm"),
                       black = first("black", "black.pgm"), grey = first("grey", "grey.pgm");
  CHECK(white["loss"] == none["loss"]);
  CHECK(white["grad_norm"] == none["grad_norm"]);
  CHECK(black["loss"] == 0);
  CHECK(black["grad_norm"] == 0);
  CHECK(grey["loss"].get<double>() == Approx(none["loss"].get<double>() / 5).epsilon(1e-5));
}

TEST_CASE("a mask that is not there, or of another shape, drops its clip with the reason") {
  const TemporaryFolder folder;
  const std::string at = folder.path();
  write_pgm(at + "/square.pgm", 100, 100, 255, 255);
  for (const auto& [mask, reason] :
       {std::pair{"none.pgm", "its mask"}, std::pair{"square.pgm", "expected a mask of the shape of 480 x 270"}}) {
    const ProcessResult result = run_process(
        command(at + "/run", {"data.path=" + manifest(at, "clips", mask), "data.patience_s=0", "train.steps=1"}));
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, reason));
  }
}

TEST_CASE("a LoRA file says how it was made under the keys of other tools") {
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/lifts";
  train(run, {"train.steps=3", "lora.alpha=1", "lora.formats=[comfyui, kohya]", "data.caption_prefix='zxq hall, '",
              "sample.prompts=['zxq hall, a \"lift\"']"});
  const nlohmann::json said = header_of(run + "/checkpoint-3/lora/comfyui.safetensors")["__metadata__"];
  const std::map<std::string, std::string> expected = {{"ss_network_dim", "2"},
                                                       {"ss_network_alpha", "1"},
                                                       {"ss_steps", "3"},
                                                       {"ss_max_train_steps", "3"},
                                                       {"ss_epoch", "1"},
                                                       {"ss_num_epochs", "2"},
                                                       {"ss_learning_rate", "0.001"},
                                                       {"ss_optimizer", "adamw"},
                                                       {"ss_base_model_version", "wan"},
                                                       {"ss_output_name", "lifts"},
                                                       {"ss_caption_prefix", "zxq hall, "},
                                                       {"ss_trigger_words", "zxq hall"},
                                                       {"ss_sample_prompt", "zxq hall, a \"lift\""},
                                                       {"modelspec.title", "lifts"},
                                                       {"modelspec.architecture", "wan/lora"},
                                                       {"modelspec.trigger_phrase", "zxq hall"},
                                                       {"modelspec.resolution", "64x32x5"},
                                                       {"format", "pt"}};
  for (const auto& [key, value] : expected) {
    INFO(key);
    REQUIRE(said.contains(key));
    CHECK(said[key] == value);
  }
  for (const auto& [key, value] : said.items()) CHECK(value.is_string());
  CHECK(header_of(run + "/checkpoint-3/lora/kohya.safetensors")["__metadata__"]["ss_steps"] == "3");

  train(run + "2", {"train.steps=1", "lora.trigger_words=[zxq, lift hall]", "train.report=false"});
  CHECK(header_of(run + "2/checkpoint-1/lora/comfyui.safetensors")["__metadata__"]["modelspec.trigger_phrase"] ==
        "zxq, lift hall");
}
