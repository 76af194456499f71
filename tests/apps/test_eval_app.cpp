// The held-out loss of a run, vmoba-eval on its checkpoint and vmoba-plot on its metrics, as their users meet them.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "config/root_config.h"
#include "core/random.h"
#include "core/storage.h"
#include "data/dataset.h"
#include "model/architecture.h"
#include "model/conditioning.h"
#include "model/weights/safetensors.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/metrics.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const std::string kTiny = test::fixtures() + "/train/tiny.yaml";

ProcessResult run_program(const std::string& program, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), test::bin_dir() + "/" + program);
  return run_process(arguments);
}

void train(const std::string& run_dir, std::vector<std::string> extra) {
  extra.insert(extra.begin(), {"--config", kTiny, "run.dir=" + run_dir, "train.steps=5", "train.checkpoint_every=0"});
  const ProcessResult result = run_program("vmoba-train", extra);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
}

// A run of 5 steps with held-out losses after 2, 4 and 5.
const std::string& validated_run() {
  static const TemporaryFolder folder;
  static const std::string dir = [] {
    train(folder.path() + "/run", {"validate.holdout=0.3", "validate.clips=2", "validate.every=2",
                                   "validate.sigmas=[0.3,0.8]", "validate.seed=4"});
    return folder.path() + "/run";
  }();
  return dir;
}

json evaluated(const std::vector<std::string>& extra) {
  const TemporaryFolder folder;
  std::vector<std::string> arguments = {"--checkpoint", validated_run() + "/checkpoint-5", "--json",
                                        folder.path() + "/eval.json"};
  arguments.insert(arguments.end(), extra.begin(), extra.end());
  const ProcessResult result = run_program("vmoba-eval", arguments);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return json::parse(read_text(folder.path() + "/eval.json"));
}

std::string refused(const std::vector<std::string>& extra) {
  std::vector<std::string> arguments = {"--checkpoint", validated_run()};  // its newest checkpoint
  arguments.insert(arguments.end(), extra.begin(), extra.end());
  const ProcessResult result = run_program("vmoba-eval", arguments);
  CHECK(result.exit_code == 2);
  return result.output;
}

struct AttentionYaml {
  attention::AttentionConfig attention;
  void visit(ConfigVisitor& v) { v.group("attention", "", attention); }
};

const json& setting(const json& evaluation, const std::string& name) {
  for (const json& one : evaluation.at("settings"))
    if (one.at("name") == name) return one;
  throw std::runtime_error("no setting " + name);
}

}  // namespace

TEST_CASE("the held-out loss stands in the metrics of its steps, beside layers, samples and seconds") {
  const auto records = metrics(validated_run());
  REQUIRE(records.size() == 5);
  double gpu_s = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    const json& record = records[i];
    const bool due = i + 1 == 2 || i + 1 == 4 || i + 1 == 5;
    CHECK(record.contains("val_loss") == due);
    if (due) {
      const json& levels = record.at("val_loss_by_sigma");
      REQUIRE(levels.size() == 2);
      const double mean = (levels.at("0.3").get<double>() + levels.at("0.8").get<double>()) / 2;
      CHECK(record.at("val_loss").get<double>() == Approx(mean).epsilon(1e-12));
    }
    CHECK(record.at("samples") == 4 * (i + 1));
    gpu_s += record.at("step_s").get<double>();
    CHECK(record.at("gpu_s").get<double>() == Approx(gpu_s));
    CHECK(record.at("time").get<double>() > 1.7e9);
    for (const char* key : {"density_by_layer", "density_least_head", "density_greatest_head"})
      REQUIRE(record.at(key).size() == 3);
    double sum = 0;
    for (size_t l = 0; l < 3; ++l) {
      CHECK(record["density_least_head"][l] <= record["density_by_layer"][l]);
      CHECK(record["density_by_layer"][l] <= record["density_greatest_head"][l]);
      sum += record["density_by_layer"][l].get<double>() / 3;
    }
    CHECK(sum == Approx(record.at("density").get<double>()).margin(1e-5));
    if (i < 3) CHECK(record["density_by_layer"] == json({1.0, 1.0, 1.0}));  // dense_warmup_steps
  }
  const json plan = json::parse(read_text(validated_run() + "/clip_plan.json"));
  int64_t held = 0;
  for (const json& clip : plan.at("clips")) held += clip.contains("held_out") ? 1 : 0;
  CHECK(held == 2);
  CHECK(plan.at("clips").size() == 9);  // 7 of 10 are trained on, 2 of the other 3 are used
}

TEST_CASE("the held-out loss is that of the saved average on the clips and the noise that it names") {
  const std::string checkpoint = validated_run() + "/checkpoint-5";
  const RootConfig config =
      load_root_config(checkpoint + "/state/config.yaml", {"model.weights=" + checkpoint + "/transformer_ema"});
  const auto dit = model::make_dit(config.model, config.attention, 0, at::kCPU);
  const auto codec = model::make_codec(config.codec, at::kCPU);
  const auto text = model::make_text_encoder(config.text, at::kCPU);
  const json plan = json::parse(read_text(validated_run() + "/clip_plan.json"));
  const at::NoGradGuard no_grad;
  double sum = 0;
  int64_t count = 0;
  for (const json& clip : plan.at("clips")) {
    if (!clip.contains("held_out")) continue;
    data::ClipPlan one;
    one.buckets = {{5, 32, 64, 0, 1}};
    one.clips.resize(1);
    one.clips[0].path = clip.at("path").get<std::string>();
    one.clips[0].frames = 5;
    one.clips[0].fps = config.data.fps;
    const std::atomic<bool> cancel = false;
    vmoba::Outage outage;
    const at::Tensor video = data::decode_planned_clip(one, config.data, 0, 0.0, false, 1, outage, cancel);
    const at::Tensor x0 = codec->encode((video.to(at::kFloat) / 127.5 - 1).unsqueeze(0));
    for (const double sigma : {0.3, 0.8}) {
      at::Tensor noise = at::empty_like(x0);
      const std::string name = fmt::format("{}@0.000/{}", fs::path(one.clips[0].path).filename().string(), sigma);
      fill_normal(4, "noise", hash_name(name), noise.data_ptr<float>(), noise.numel());
      model::ForwardOptions options;
      const at::Tensor velocity =
          dit->forward(model::conditioned_input((1 - sigma) * x0 + sigma * noise, at::full({1}, float(1000 * sigma)),
                                                text->encode({clip.at("caption").get<std::string>()}), {}),
                       options);
      sum += (velocity - (noise - x0)).to(at::kDouble).square().mean().item<double>();
      ++count;
    }
  }
  REQUIRE(count == 4);
  CHECK(metrics(validated_run()).back().at("val_loss").get<double>() == Approx(sum / 4).epsilon(1e-5));
}

TEST_CASE("held-out clips of another folder change nothing in training") {
  const TemporaryFolder folder;
  fs::create_directory(folder.path() + "/clips");
  for (const char* name : {"01_mirror_in_dark_hall", "07_gold_hexagons"})
    for (const char* end : {".mp4", ".txt"})
      fs::copy(fmt::format("{}/assets/clips/{}{}", test::source_dir(), name, end), folder.path() + "/clips");
  train(folder.path() + "/without", {});
  train(folder.path() + "/with", {"validate.path=" + folder.path() + "/clips", "validate.every=1"});
  const auto without = metrics(folder.path() + "/without"), with = metrics(folder.path() + "/with");
  for (size_t i = 0; i < 5; ++i) {
    CHECK(with[i].at("loss") == without[i].at("loss"));
    CHECK(with[i].at("grad_norm") == without[i].at("grad_norm"));
    CHECK(with[i].contains("val_loss"));
    CHECK_FALSE(without[i].contains("val_loss"));
  }
  const std::string weights = "/checkpoint-5/transformer_ema/diffusion_pytorch_model.safetensors";
  // The files' metadata names their runs.
  const model::SafetensorsFile one(folder.path() + "/with" + weights), other(folder.path() + "/without" + weights);
  REQUIRE(one.tensors().size() == other.tensors().size());
  for (const auto& [name, info] : one.tensors()) CHECK(at::equal(one.tensor(name), other.tensor(name)));
}

TEST_CASE("vmoba-eval finds the run's held-out loss, and several attentions on the same noise") {
  const double val_loss = metrics(validated_run()).back().at("val_loss");
  const json plain = evaluated({}), seeded = evaluated({"--seed", "9"});
  CHECK(plain.at("settings")[0].at("loss").get<double>() == Approx(val_loss).epsilon(1e-9));
  CHECK(seeded.at("clips") == plain.at("clips"));  // another seed must not bring clips that were trained on
  CHECK(seeded.at("settings")[0].at("loss") != plain.at("settings")[0].at("loss"));
  const json evaluation =
      evaluated({"--set", "dense: attention.backend=full", "--set", "same: attention.backend=full", "--set",
                 "whole: attention.select=topk attention.pool=query_head attention.density=1", "--set",
                 "own: attention.select=own attention.spatiotemporal_chunk=[1, 1, 2]"});
  CHECK(evaluation.at("sigmas") == json({0.3, 0.8}));
  CHECK(evaluation.at("clips").size() == 2);
  CHECK(setting(evaluation, "same").at("difference") ==
        json({{"percent", 0.0}, {"low", 0.0}, {"high", 0.0}, {"better", 0.0}}));
  CHECK(setting(evaluation, "dense").at("density") == 1.0);
  CHECK(setting(evaluation, "whole").at("density") == 1.0);
  CHECK(std::abs(setting(evaluation, "whole").at("difference").at("percent").get<double>()) < 1e-3);
  CHECK(setting(evaluation, "own").at("density") < 0.6);
  CHECK(std::abs(setting(evaluation, "own").at("difference").at("percent").get<double>()) > 1e-3);
  const json& losses = setting(evaluation, "own").at("losses");
  double sum = 0;
  for (const json& clip : losses)
    for (const json& loss : clip) sum += loss.get<double>() / 4;
  CHECK(setting(evaluation, "own").at("loss").get<double>() == Approx(sum).epsilon(1e-12));
  CHECK(evaluated({"--no-ema"}).at("settings")[0].at("loss") != evaluated({}).at("settings")[0].at("loss"));
}

TEST_CASE("vmoba-eval compares with an earlier evaluation of the same clips, and refuses another") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/before.json";
  std::ofstream(path) << evaluated({"--set", "dense: attention.backend=full", "--set", "own: attention.select=own"});
  const json again = evaluated({"--set", "mine: attention.select=own", "--against", path + ":own"});
  CHECK(setting(again, "mine").at("difference").at("percent") == 0.0);
  CHECK(contains(again.at("baseline").get<std::string>(), "own of "));
  CHECK(setting(evaluated({"--set", "mine: attention.select=own", "--against", path}), "mine")
            .at("difference")
            .at("percent") != 0.0);
  CHECK(contains(refused({"--against", path, "--seed", "9"}), "seed"));
  CHECK(contains(refused({"--against", path + ":none"}), "dense, own"));
  CHECK(contains(refused({"--set", "a: model.layers=2"}), "attention:"));
  CHECK(contains(refused({"--set", "a: attention.densty=0.2"}), "density"));
  CHECK(contains(refused({"--set", "a: attention.backend=full", "--set", "a: attention.select=own"}), "'a'"));
  CHECK(contains(refused({"validate.holdout=0"}), "--data"));
}

TEST_CASE("vmoba-eval compares samples from equal noise") {
  const TemporaryFolder folder;
  const json evaluation =
      evaluated({"--set", "dense: attention.backend=full", "--set", "same: attention.backend=full", "--set",
                 "own: attention.select=own", "--samples", "1", "--videos", folder.path(), "sample.guidance=1"});
  const json& samples = evaluation.at("samples");
  REQUIRE(samples.size() == 3);
  for (size_t i : {0, 1}) {
    CHECK(samples[i].at("psnr_db").is_null());  // infinite
    CHECK(samples[i].at("ssim").get<double>() == Approx(1));
    CHECK(samples[i].at("latent_error") == 0.0);
  }
  CHECK(samples[2].at("latent_error") > 0.0);
  CHECK(samples[2].at("psnr_db") > 0.0);
  for (const json& sample : samples) CHECK(fs::exists(sample.at("video").get<std::string>()));
}

TEST_CASE("vmoba-analyze writes a sheet for each layer, a report and a block of YAML that a run takes") {
  const TemporaryFolder folder;
  const ProcessResult result = run_program(
      "vmoba-analyze", {"--checkpoint", validated_run() + "/checkpoint-5", "--clips", "1", "--sigmas", "0.5",
                        "--density", "0.5", "--out", folder.path() + "/found", "--save-qkv", folder.path() + "/qkv"});
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  const json report = json::parse(read_text(folder.path() + "/found/report.json"));
  REQUIRE(report.at("layers").size() == 3);
  for (const json& layer : report.at("layers")) {
    CHECK(fs::file_size(fmt::format("{}/found/layer-0{}.png", folder.path(), layer.at("layer").get<int>())) > 5000);
    for (const auto& [name, partition] : layer.at("partitions").items()) {
      const json& kept = partition.at("kept");
      CHECK(kept.at("oracle").at("0.5").at("mass") >= kept.at("query_head").at("0.5").at("mass"));
      CHECK(kept.at("query_head").at("0.5").at("mass") >= kept.at("own").at("0.5").at("mass"));
    }
  }
  for (int layer = 0; layer < 3; ++layer) {
    const model::SafetensorsFile saved(fmt::format("{}/qkv/qkv-0{}.safetensors", folder.path(), layer));
    for (const char* name : {"q", "k", "v"}) {
      CHECK(saved.tensor(name).scalar_type() == at::kBFloat16);
      CHECK(saved.tensor(name).sizes() == at::IntArrayRef({1, 2 * 2 * 4, 2, 24}));  // 5 frames of 32 x 64
    }
    CHECK(saved.metadata().at("grid") == "2x2x4");
    CHECK_FALSE(at::equal(saved.tensor("q"), saved.tensor("k")));
  }
  AttentionYaml found;
  load_config(folder.path() + "/found/attention.yaml", {}, [&](ConfigVisitor& v) { found.visit(v); });
  found.attention.validate();
  CHECK_FALSE(attention::layer_attention(found.attention, 0, false).chunk == std::array<int64_t, 3>{0, 0, 0});
  CHECK(run_program("vmoba-analyze", {"--checkpoint", validated_run() + "/checkpoint-5", "--layers", "3"}).exit_code ==
        2);
}

TEST_CASE("vmoba-plot draws runs over steps, samples and GPU seconds") {
  const TemporaryFolder folder;
  for (const char* x : {"step", "samples", "gpu_s"})
    for (const char* y : {"loss", "val_loss"}) {
      const std::string out = fmt::format("{}/{}-{}.png", folder.path(), x, y);
      const ProcessResult result = run_program(
          "vmoba-plot", {validated_run(), validated_run() + "/metrics.jsonl", "--x", x, "--y", y, "--out", out});
      INFO(result.output);
      CHECK(result.exit_code == 0);
      CHECK(fs::file_size(out) > 1000);
    }
  CHECK(run_program("vmoba-plot", {validated_run(), "--y", "speed", "--out", folder.path() + "/a.png"}).exit_code == 2);
  CHECK(run_program("vmoba-plot", {validated_run(), "--out", folder.path() + "/a.gif"}).exit_code == 2);
}

TEST_CASE("what attention learns is trained, kept, gone on with and evaluated") {
  const TemporaryFolder folder;
  const std::string whole = folder.path() + "/whole", parted = folder.path() + "/parted";
  const auto run = [&](const std::string& dir, std::vector<std::string> extra) {
    for (const char* key : {"train.optimizer.schedule=constant", "train.checkpoint_every=4", "train.keep_checkpoints=0",
                            "attention.remainder=one_softmax", "attention.remainder_beta=learnt"})
      extra.insert(extra.begin(), key);
    train(dir, extra);
  };
  run(whole, {"train.steps=8"});
  run(parted, {"train.steps=4"});
  run(parted, {"train.steps=8", "--resume", "latest"});
  for (const std::string kind : {"transformer", "transformer_ema"}) {
    const std::string file = "/" + kind + "/diffusion_pytorch_model.safetensors";
    const model::SafetensorsFile early(whole + "/checkpoint-4" + file), late(whole + "/checkpoint-8" + file),
        resumed(parted + "/checkpoint-8" + file);
    for (const auto& [name, info] : late.tensors()) CHECK(at::equal(late.tensor(name), resumed.tensor(name)));
    for (const char* name : {"blocks.0.attn1.remainder_beta", "blocks.2.attn1.remainder_beta"}) {
      INFO(file << " " << name);
      const at::Tensor after = late.tensor(name);
      CHECK(after.abs().min().item<float>() > 0);
      CHECK_FALSE(at::equal(early.tensor(name).to(at::kFloat), after.to(at::kFloat)));
    }
  }
  const ProcessResult refused =
      run_program("vmoba-train", {"--config", kTiny, "run.dir=" + parted, "--resume", "latest", "train.steps=9",
                                  "train.optimizer.schedule=constant", "attention.remainder=one_softmax"});
  CHECK(refused.exit_code != 0);
  CHECK(contains(refused.output, "attention.remainder_beta: expected learnt as in the checkpoint, found zero"));

  // A run that learnt nothing and one that did, each under both.
  const std::vector<std::string> sets = {"--set",    "learnt: attention.remainder_beta=learnt",
                                         "--set",    "zero: attention.remainder_beta=zero",
                                         "--data",   "assets/clips",
                                         "--clips",  "2",
                                         "--sigmas", "0.5"};
  for (const bool learnt : {true, false}) {
    std::vector<std::string> arguments = {"--checkpoint", learnt ? whole : validated_run(), "--json",
                                          folder.path() + "/eval.json"};
    arguments.insert(arguments.end(), sets.begin(), sets.end());
    arguments.push_back("attention.remainder=one_softmax");
    const ProcessResult result = run_program("vmoba-eval", arguments);
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    const json found = json::parse(read_text(folder.path() + "/eval.json"));
    CHECK((setting(found, "learnt").at("loss") == setting(found, "zero").at("loss")) == !learnt);
  }
}
