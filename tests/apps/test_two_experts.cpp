// Several experts in one run, above all the two of a Wan2.2 A14B kind of model: who learns from which sample,
// checkpoints, exact resume, sampling, conversion; and the keys of the last release.
#include <ATen/ATen.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "model/weights/safetensors.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/metrics.h"
#include "support/must_run.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/flow_matching.h"

using namespace vmoba;
using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kTiny = test::fixtures() + "/train/tiny.yaml";
constexpr double kBoundary = 750;
const std::string kExperts = "experts=[{until_timestep: 750}, {}]";
const std::string kOldKeys = "model.boundary=750";

std::string experts_with(const std::string& high, const std::string& low) {
  return "experts=[{weights: '" + high + "', until_timestep: 750}, {weights: '" + low + "'}]";
}

std::vector<std::string> train_command(const std::string& dir, const std::vector<std::string>& extra) {
  std::vector<std::string> out = {test::bin_dir() + "/vmoba-train", "--config", kTiny, "run.dir=" + dir,
                                  "train.tensorboard=false"};
  out.insert(out.end(), extra.begin(), extra.end());
  return out;
}

void run_training(const std::string& dir, const std::vector<std::string>& extra) {
  must_run(train_command(dir, extra));
}

// 0 for high noise, as tests/fixtures/train/tiny.yaml draws timesteps.
int expert_of(int64_t sample) {
  return 1000 * train::draw_sigma(FlowConfig{}, /*seed=*/7, sample) >= kBoundary ? 0 : 1;
}

std::vector<int64_t> updates_of(const std::string& checkpoint) {
  return nlohmann::json::parse(read_text(checkpoint + "/state/trainer.json")).at("updates");
}

// Everything a checkpoint holds but the configuration, which names its run's folder.
// What training came to; not where the checkpoint was made and what it went on from.
nlohmann::json training_state(const std::string& path) {
  nlohmann::json info = nlohmann::json::parse(read_text(path));
  for (const char* key : {"run", "folder", "parent_step", "changes", "checksums", "hash"})
    REQUIRE(info.erase(key) == 1);
  return info;
}

// Every tensor; the files' metadata names their steps.
bool same_tensors(const std::string& a, const std::string& b) {
  const model::SafetensorsFile first(a), second(b);
  REQUIRE_FALSE(first.tensors().empty());
  if (first.tensors().size() != second.tensors().size()) return false;
  for (const auto& [name, info] : first.tensors())
    if (!at::equal(first.tensor(name), second.tensor(name))) return false;
  return true;
}

void require_same_files(const std::string& a, const std::string& b, size_t expected) {
  size_t found = 0;
  for (const auto& entry : fs::recursive_directory_iterator(a)) {
    // The configuration names its folder, and the checksums cover it.
    if (!entry.is_regular_file() || entry.path().extension() == ".yaml") continue;
    if (entry.path().filename() == "checksums.json") continue;
    const std::string name = fs::relative(entry.path(), a).string();
    INFO(name);
    REQUIRE(fs::exists(b + "/" + name));
    if (name == "state/trainer.json")
      REQUIRE(training_state(a + "/" + name) == training_state(b + "/" + name));
    else if (name.ends_with(".safetensors"))
      REQUIRE(same_tensors(a + "/" + name, b + "/" + name));
    else
      REQUIRE(read_text(a + "/" + name) == read_text(b + "/" + name));
    ++found;
  }
  CHECK(found == expected);
}

std::string latents(const std::string& path, std::vector<std::string> command) {
  command.insert(command.begin(), test::bin_dir() + "/vmoba-sample");
  command.insert(command.end(), {"--prompt", "a rocket", "--output-latents", path, "sample.steps=4"});
  must_run(command);
  return read_text(path);
}

}  // namespace

TEST_CASE("each expert gets the gradient of its own samples, and both together that of one model") {
  const TemporaryFolder folder;
  const std::string base = folder.path() + "/base", one = folder.path() + "/one", two = folder.path() + "/two";
  run_training(base, {"train.steps=1"});
  const std::string weights = base + "/checkpoint-1/transformer";
  // After the first step a moment is (1 - beta) times the gradient.
  const std::vector<std::string> first = {"model.weights=" + weights, "train.steps=1",
                                          "train.optimizer.max_grad_norm=0"};
  run_training(one, first);
  std::vector<std::string> both = first;
  both.insert(both.end(), {"model.weights=''", experts_with(weights, weights)});
  run_training(two, both);

  int high = 0;
  for (int64_t sample = 0; sample < 4; ++sample) high += expert_of(sample) == 0;
  REQUIRE((high > 0 && high < 4));  // what this seed draws
  CHECK(updates_of(two + "/checkpoint-1") == std::vector<int64_t>{1, 1});
  const std::string state = "/checkpoint-1/state/optimizer";
  const model::SafetensorsFile all(one + state + ".safetensors"), of_high(two + state + ".safetensors"),
      of_low(two + state + "_2.safetensors");
  double largest = 0, error = 0, squares_high = 0, squares_low = 0;
  for (const auto& [name, info] : all.tensors()) {
    if (!name.starts_with("exp_avg.")) continue;
    const at::Tensor g = all.tensor(name), h = of_high.tensor(name), l = of_low.tensor(name);
    largest = std::max(largest, g.abs().max().item<double>());
    error = std::max(error, (h + l - g).abs().max().item<double>());
    squares_high += h.square().sum().item<double>();
    squares_low += l.square().sum().item<double>();
  }
  // Sums of four samples in fp32, in another order: a few roundings of 6e-8 of the largest terms.
  CHECK(error < 1e-5 * largest);
  const nlohmann::json logged = metrics(two)[0], single = metrics(one)[0];
  CHECK(double(logged["loss"]) == Approx(double(single["loss"])).epsilon(1e-6));
  CHECK(double(logged["grad_norm_high_noise"]) == Approx(10 * std::sqrt(squares_high)).epsilon(1e-4));
  CHECK(double(logged["grad_norm_low_noise"]) == Approx(10 * std::sqrt(squares_low)).epsilon(1e-4));
  CHECK(double(logged["grad_norm"]) == Approx(10 * std::sqrt(squares_high + squares_low)).epsilon(1e-4));
  CHECK_FALSE(single.contains("grad_norm_high_noise"));
}

TEST_CASE("an expert without a sample in a step is left alone by it") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", one = folder.path() + "/one";
  const std::vector<std::string> single = {"train.global_batch=1", "train.micro_batch=1", "train.checkpoint_every=1",
                                           "train.keep_checkpoints=0", "train.steps=6"};
  std::vector<std::string> both = single;
  both.push_back(kExperts);
  run_training(dir, both);
  std::vector<int64_t> expected = {0, 0};
  for (int64_t step = 1; step <= 6; ++step) {
    const int trained = expert_of(step - 1), left = 1 - trained;
    expected[size_t(trained)] += 1;
    const std::string at = dir + "/checkpoint-" + std::to_string(step);
    CHECK(updates_of(at) == expected);
    const nlohmann::json logged = metrics(dir)[size_t(step - 1)];
    CHECK(double(logged[trained == 0 ? "grad_norm_high_noise" : "grad_norm_low_noise"]) > 0);
    CHECK(double(logged[left == 0 ? "grad_norm_high_noise" : "grad_norm_low_noise"]) == 0);
    if (step == 1) continue;
    const std::string before = dir + "/checkpoint-" + std::to_string(step - 1), number = left == 0 ? "" : "_2";
    const std::string weights = "/diffusion_pytorch_model.safetensors";
    for (const std::string& file : {"/transformer" + number + weights, "/transformer" + number + "_ema" + weights,
                                    "/state/optimizer" + number + ".safetensors"})
      CHECK(same_tensors(at + file, before + file));
    const std::string changed = "/transformer" + std::string(trained == 0 ? "" : "_2") + weights;
    CHECK_FALSE(same_tensors(at + changed, before + changed));
  }
  REQUIRE((expected[0] > 0 && expected[1] > 0));
}

TEST_CASE("a run of two experts that is stopped goes on to the same bytes") {
  struct Kind {
    std::vector<std::string> extra;
    size_t files;
  };
  const std::vector<Kind> kinds = {// transformer(_2)(_ema) of two files each, two optimisers, trainer.json
                                   {{}, 11},
                                   // lora and lora_ema with one file for each format and expert; four files of
                                   // adapters, two optimisers, trainer.json
                                   {{"lora.rank=2", "lora.formats=[comfyui, kohya]", "train.optimizer.lr=0.01"}, 15}};
  for (const Kind& kind : kinds) {
    const TemporaryFolder folder;
    const std::string whole = folder.path() + "/whole", parts = folder.path() + "/parts", last = "/checkpoint-12";
    std::vector<std::string> extra = {kExperts, "train.steps=12", "train.checkpoint_every=1000"};
    extra.insert(extra.end(), kind.extra.begin(), kind.extra.end());
    run_training(whole, extra);
    const pid_t pid = start_process(train_command(parts, extra), folder.path() + "/log");
    for (int i = 0; i < 1500 && (!fs::exists(parts + "/metrics.jsonl") || metrics(parts).size() < 3); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ::kill(pid, SIGTERM);
    const int code = wait_process(pid);
    INFO(read_text(folder.path() + "/log"));
    REQUIRE(code == 75);
    extra.insert(extra.end(), {"--resume", "latest"});
    run_training(parts, extra);
    require_same_files(whole + last, parts + last, kind.files);
    CHECK(metrics(whole).back()["loss"] == metrics(parts).back()["loss"]);
  }
}

TEST_CASE("a checkpoint of two experts samples with both, and each converts") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", checkpoint = dir + "/checkpoint-2";
  run_training(dir, {kExperts, "train.steps=2", "train.validate_every=2", "sample.steps=4"});
  CHECK(fs::exists(dir + "/samples/step-000002-0.mp4"));
  const auto named = [&](const std::string& high, const std::string& low) {
    return std::vector<std::string>{"--config", kTiny, experts_with(checkpoint + "/" + high, checkpoint + "/" + low)};
  };
  const std::string f = folder.path();
  const std::string average = latents(f + "/a.st", {"--checkpoint", checkpoint});
  CHECK(average == latents(f + "/b.st", named("transformer_ema", "transformer_2_ema")));
  CHECK(average != latents(f + "/c.st", named("transformer_ema", "transformer_ema")));
  CHECK(latents(f + "/d.st", {"--checkpoint", checkpoint, "--no-ema"}) ==
        latents(f + "/e.st", named("transformer", "transformer_2")));
  must_run({test::bin_dir() + "/vmoba-convert", checkpoint + "/transformer_2", f + "/low.safetensors", "--layout",
            "comfyui", "--head-dim", "24"});
  // A folder of both gives one file, which is said.
  CHECK(contains(must_run({test::bin_dir() + "/vmoba-convert", checkpoint, f + "/high.safetensors", "--layout",
                           "comfyui", "--head-dim", "24"}),
                 "transformer_2"));
  CHECK(latents(f + "/g.st", {"--checkpoint", checkpoint, "--no-ema"}) ==
        latents(f + "/h.st", {"--config", kTiny, experts_with(checkpoint + "/transformer", f + "/low.safetensors")}));
}

TEST_CASE("LoRA of both experts: two files for other tools, which give what the checkpoint gives") {
  const TemporaryFolder folder;
  const std::string f = folder.path(), base = f + "/base", dir = f + "/run", checkpoint = dir + "/checkpoint-3";
  run_training(base, {kExperts, "train.steps=1"});
  const std::string weights = experts_with(base + "/checkpoint-1/transformer", base + "/checkpoint-1/transformer_2");
  std::vector<std::string> lora = {weights};
  lora.insert(lora.end(), {"lora.rank=2", "lora.save_dtype=fp32", "train.steps=3", "train.optimizer.warmup_steps=0",
                           "train.optimizer.lr=0.1", "train.ema.enabled=false"});
  run_training(dir, lora);
  const model::SafetensorsFile high(checkpoint + "/state/lora.safetensors"),
      low(checkpoint + "/state/lora_2.safetensors");
  CHECK(high.tensors().size() == low.tensors().size());
  CHECK_FALSE(at::allclose(high.tensor("blocks.0.attn1.to_q.lora_A.weight"),
                           low.tensor("blocks.0.attn1.to_q.lora_A.weight"), 1e-5, 0.05));
  const std::string by_files = f + "/high.safetensors";
  must_run({test::bin_dir() + "/vmoba-convert", checkpoint + "/lora/comfyui_high_noise.safetensors", by_files,
            "--layout", "kohya"});
  std::vector<std::string> files = {"--config", kTiny, weights};
  const std::string untrained = latents(f + "/a.st", files);
  const std::string by_low = checkpoint + "/lora/comfyui_low_noise.safetensors";
  std::vector<std::string> old_option = files;
  files.insert(files.end(), {"--lora", by_files, "--lora", "2:" + by_low});
  latents(f + "/b.st", files);
  old_option.insert(old_option.end(), {"--lora", "1:" + by_files, "--lora-2", by_low});
  CHECK(latents(f + "/old.st", old_option) == read_text(f + "/b.st"));
  CHECK(latents(f + "/c.st", {"--checkpoint", checkpoint}) != untrained);
  const auto read = [](const std::string& path) { return model::SafetensorsFile(path).tensor("latents").clone(); };
  const at::Tensor expected = read(f + "/c.st"), found = read(f + "/b.st");
  // Equal but for the scale, which the files carry inside B or as alpha.
  const double roundings = 1e-5 * expected.abs().max().item<double>();
  CHECK((expected - found).abs().max().item<double>() <= roundings);
  CHECK((expected - read(f + "/a.st")).abs().max().item<double>() > 10 * roundings);
  // Going on from both files begins where they stand.
  const std::string on = f + "/on";
  lora.insert(lora.end(), {"experts[0].lora=" + by_files, "experts[1].lora=" + by_low, "train.optimizer.lr=0"});
  run_training(on, lora);
  for (const char* file : {"/state/lora.safetensors", "/state/lora_2.safetensors"}) {
    const model::SafetensorsFile before(checkpoint + file), after(on + "/checkpoint-3" + file);
    for (const auto& [name, info] : before.tensors())
      CHECK(at::allclose(before.tensor(name), after.tensor(name), 1e-6));
  }
}

TEST_CASE("of three experts a sample's timestep chooses one, and a stopped run goes on to the same bytes") {
  const TemporaryFolder folder;
  const std::string whole = folder.path() + "/whole", parts = folder.path() + "/parts";
  const auto expert_of_three = [](int64_t sample) {
    const double timestep = 1000 * train::draw_sigma(FlowConfig{}, /*seed=*/7, sample);
    return timestep >= 800 ? 0 : timestep >= 600 ? 1 : 2;
  };
  const std::vector<std::string> three = {"experts=[{until_timestep: 800}, {until_timestep: 600}, {}]",
                                          "train.global_batch=2", "train.checkpoint_every=3",
                                          "train.keep_checkpoints=0", "train.optimizer.schedule=constant"};
  std::vector<std::string> extra = three;
  extra.push_back("train.steps=6");
  run_training(whole, extra);
  std::vector<int64_t> expected = {0, 0, 0};
  for (int64_t step = 0; step < 6; ++step) {
    std::vector<bool> trained(3, false);
    for (int64_t sample = 2 * step; sample < 2 * step + 2; ++sample) trained[size_t(expert_of_three(sample))] = true;
    const nlohmann::json logged = metrics(whole)[size_t(step)];
    for (size_t i = 0; i < 3; ++i) {
      expected[i] += trained[i];
      CHECK((double(logged["grad_norm_expert_" + std::to_string(i + 1)]) > 0) == trained[i]);
    }
    if (step == 2) CHECK(updates_of(whole + "/checkpoint-3") == expected);
  }
  CHECK(updates_of(whole + "/checkpoint-6") == expected);
  for (const int64_t updates : expected) REQUIRE(updates > 0);  // what this seed draws
  extra = three;
  extra.push_back("train.steps=3");
  run_training(parts, extra);
  extra.back() = "train.steps=6";
  extra.insert(extra.end(), {"--resume", "latest"});
  run_training(parts, extra);
  // transformer(_2, _3)(_ema) of two files each, three optimisers, trainer.json
  require_same_files(whole + "/checkpoint-6", parts + "/checkpoint-6", 16);
  // Four steps at 1000, 750, 500 and 250: the third expert has the last two.
  const std::vector<std::string> sampled = {"--checkpoint", whole + "/checkpoint-6", "--no-ema", "sample.shift=1"};
  std::vector<std::string> without_third = sampled;
  without_third.push_back("experts=[{until_timestep: 800}, {}]");
  CHECK(latents(folder.path() + "/a.st", sampled) != latents(folder.path() + "/b.st", without_third));
}

TEST_CASE("keys of the last release train, resume and sample as the list does") {
  const TemporaryFolder folder;
  const std::string by_list = folder.path() + "/list", by_keys = folder.path() + "/keys", last = "/checkpoint-4";
  run_training(by_list, {kExperts, "train.steps=4"});
  run_training(by_keys, {kOldKeys, "train.steps=2"});  // both warm up, whatever the schedule
  const std::string says = must_run(train_command(by_keys, {kOldKeys, "train.steps=4", "--resume", "latest"}));
  CHECK(contains(says, "instead of model.boundary write experts: [{until_timestep: 750}, {}]"));
  require_same_files(by_list + last, by_keys + last, 11);
  CHECK(contains(read_text(by_keys + "/config.resolved.yaml"), "experts:\n  - weights: \"\"\n    until_timestep: 750"));

  // A checkpoint of the last release: its configuration has the old keys.
  const std::string expected = latents(folder.path() + "/a.st", {"--checkpoint", by_list + last});
  const std::string path = by_list + last + "/state/config.yaml";
  std::string text = read_text(path);
  const size_t begin = text.find("experts:"), end = text.find("\nlora:");
  REQUIRE((begin != std::string::npos && end != std::string::npos));
  text.erase(begin, end + 1 - begin);
  text.insert(text.find("\nmodel:\n") + 8, "  boundary: 750\n  weights_2: \"\"\n");
  text.insert(text.find("\nlora:\n") + 7, "  init_from_2: \"\"\n");
  text.insert(text.find("\nsample:\n") + 9, "  guidance_2: 0\n");
  std::ofstream(path) << text;
  CHECK(latents(folder.path() + "/b.st", {"--checkpoint", by_list + last}) == expected);
}

TEST_CASE("what two experts cannot train from is refused") {
  const TemporaryFolder folder;
  const auto says = [&](const std::vector<std::string>& extra) {
    const ProcessResult result = run_process(train_command(folder.path() + "/run", extra));
    CHECK(result.exit_code == 2);
    return result.output;
  };
  CHECK(contains(says({kExperts, "train.flow.min_timestep=750"}), "experts to []"));
  CHECK(contains(says({kExperts, "train.flow.max_timestep=700"}), "train.flow.min_timestep"));
  CHECK(contains(says({kExperts, "lora.init_from=x.safetensors"}), "experts[0].lora"));
  run_training(folder.path() + "/one", {"train.steps=1"});
  CHECK(contains(says({kExperts, "train.steps=2", "--resume", folder.path() + "/one/checkpoint-1"}), "experts"));
  const std::string weights = folder.path() + "/one/checkpoint-1/transformer";
  CHECK(contains(says({kOldKeys, "model.weights=" + weights}), "experts[1].weights"));
  const ProcessResult sampled =
      run_process({test::bin_dir() + "/vmoba-sample", "--config", kTiny, experts_with(weights, weights), "--prompt",
                   "x", "--lora", "3:x.safetensors", "--output-latents", folder.path() + "/x.st"});
  CHECK(sampled.exit_code == 2);
  CHECK(contains(sampled.output, "expected an expert of 1 .. 2"));
}
