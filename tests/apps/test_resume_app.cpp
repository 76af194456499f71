// vmoba-train and its run folders: who may write there, which checkpoint goes on, what may have changed, what was
// damaged.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "support/catch.h"
#include "support/messages.h"
#include "support/metrics.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kTrain = bin_dir() + "/vmoba-train";
const std::string kTiny = fixtures() + "/train/tiny.yaml";
const std::string kWeights = "/transformer/diffusion_pytorch_model.safetensors";
// A constant rate, so that the number of steps may change, and every checkpoint kept.
const std::vector<std::string> kKeys = {"train.optimizer.schedule=constant", "train.keep_checkpoints=0",
                                        "train.checkpoint_every=4", "train.tensorboard=false"};

std::vector<std::string> command(const std::string& dir, const std::vector<std::string>& extra) {
  std::vector<std::string> out = {kTrain, "--config", kTiny, "run.dir=" + dir};
  out.insert(out.end(), kKeys.begin(), kKeys.end());
  out.insert(out.end(), extra.begin(), extra.end());
  return out;
}

std::string run(int code, const std::vector<std::string>& arguments) {
  const ProcessResult result = run_process(arguments);
  INFO(result.output);
  REQUIRE(result.exit_code == code);
  return result.output;
}

// A run of 12 steps with checkpoints 4, 8 and 12, made once and copied.
std::string twelve_steps(const TemporaryFolder& folder, const std::string& name = "run") {
  static const TemporaryFolder made;
  static const std::string whole = [] {
    run(0, command(made.path() + "/run", {"train.steps=12"}));
    return made.path() + "/run";
  }();
  const std::string dir = folder.path() + "/" + name;
  fs::copy(whole, dir, fs::copy_options::recursive);
  return dir;
}

std::vector<int64_t> steps_in(const std::string& dir) {
  std::vector<int64_t> out;
  for (const auto& entry : fs::directory_iterator(dir))
    if (entry.path().filename().string().starts_with("checkpoint-"))
      out.push_back(std::stoll(entry.path().filename().string().substr(11)));
  std::sort(out.begin(), out.end());
  return out;
}

nlohmann::json manifest(const std::string& checkpoint) {
  return nlohmann::json::parse(read_text(checkpoint + "/state/trainer.json"));
}

// Not with CHECK(a == b), which would print megabytes.
bool same_bytes(const std::string& a, const std::string& b) {
  return !read_text(a).empty() && read_text(a) == read_text(b);
}

void flip_last_bit(const std::string& path) {
  std::string bytes = read_text(path);
  REQUIRE_FALSE(bytes.empty());
  bytes.back() = char(bytes.back() ^ 1);
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

TEST_CASE("going back keeps the abandoned branch whole, and latest is of the branch that took its place") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder);
  const std::string abandoned = read_text(dir + "/checkpoint-12" + kWeights);
  const std::string output =
      run(0, command(dir, {"--resume", dir + "/checkpoint-4", "train.steps=8", "train.optimizer.lr=2.0e-3",
                           "train.keep_checkpoints=1", "train.checkpoint_every=2"}));
  CHECK(contains(output, "set-aside-1"));
  CHECK(steps_in(dir + "/set-aside-1") == std::vector<int64_t>{8, 12});
  CHECK((read_text(dir + "/set-aside-1/checkpoint-12" + kWeights) == abandoned));
  CHECK(metrics(dir + "/set-aside-1").size() == 12);
  CHECK(metrics(dir).size() == 8);
  // One is kept, the newest; the one before it until a step has gone well; and the start.
  CHECK(steps_in(dir) == std::vector<int64_t>{4, 6, 8});
  CHECK(manifest(dir + "/checkpoint-8")["parent_step"] == 4);
  CHECK(manifest(dir + "/checkpoint-8")["run"] == manifest(dir + "/set-aside-1/checkpoint-8")["run"]);

  const std::string latest = run(0, command(dir, {"--resume", "latest", "train.steps=12", "train.keep_checkpoints=1",
                                                  "train.optimizer.lr=2.0e-3"}));
  CHECK(contains(latest, "resumed from " + dir + "/checkpoint-8"));
  CHECK(steps_in(dir) == std::vector<int64_t>{4, 8, 12});
  // The abandoned branch can go on: from its own folder, or in place of the one that followed.
  run(0, command(dir + "/set-aside-1", {"--resume", "latest", "train.steps=13"}));
  const std::string back = run(0, command(dir, {"--resume", dir + "/set-aside-1/checkpoint-12", "train.steps=13"}));
  CHECK(contains(back, "set-aside-2"));
  CHECK(steps_in(dir) == std::vector<int64_t>{13});
  CHECK(metrics(dir).size() == 13);
  CHECK(same_bytes(dir + "/checkpoint-13" + kWeights, dir + "/set-aside-1/checkpoint-13" + kWeights));
}

TEST_CASE("a checkpoint of another folder goes on beside nothing of what was there") {
  const TemporaryFolder folder;
  const std::string from = twelve_steps(folder, "from"), dir = twelve_steps(folder, "to");
  const std::string output = run(0, command(dir, {"--resume", from + "/checkpoint-4", "train.steps=6"}));
  CHECK(contains(output, "now kept at " + dir + ".1"));
  CHECK(steps_in(dir) == std::vector<int64_t>{6});
  CHECK(steps_in(dir + ".1") == std::vector<int64_t>{4, 8, 12});
  CHECK(steps_in(from) == std::vector<int64_t>{4, 8, 12});
}

TEST_CASE("equal runs have ids of their own and files of the same bytes; a resume keeps the id") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder), other = folder.path() + "/other";
  run(0, command(other, {"train.steps=4"}));
  const std::string one = manifest(dir + "/checkpoint-4")["run"], two = manifest(other + "/checkpoint-4")["run"];
  CHECK(one != two);
  CHECK(one.substr(0, one.find('-')) == two.substr(0, two.find('-')));
  CHECK(same_bytes(dir + "/checkpoint-4" + kWeights, other + "/checkpoint-4" + kWeights));
  run(0, command(other, {"train.steps=6", "--resume", "latest"}));
  CHECK(manifest(other + "/checkpoint-6")["run"] == two);
}

TEST_CASE("two processes do not share a run folder") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", log = folder.path() + "/log";
  const pid_t first = start_process(command(dir, {"train.steps=100000", "train.checkpoint_every=0"}), log);
  for (int i = 0; i < 3000 && (!fs::exists(dir + "/metrics.jsonl") || metrics(dir).empty()); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  for (const std::vector<std::string>& extra : {std::vector<std::string>{},
                                                {"--resume", "latest"},
                                                {"--resume", twelve_steps(folder, "x") + "/checkpoint-4"}}) {
    const std::string output = run(2, command(dir, extra));
    CHECK(contains(output, "process " + std::to_string(first) + " on "));
    CHECK(contains(output, "run.dir"));
    fs::remove_all(folder.path() + "/x");
  }
  CHECK_FALSE(fs::exists(dir + ".1"));
  ::kill(first, SIGTERM);
  CHECK(wait_process(first) == 75);
  CHECK_FALSE(fs::exists(dir + "/run.lock"));
  const auto done = metrics(dir).back()["step"].get<int64_t>();
  CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(done)));
}

TEST_CASE("a killed process holds its folder no longer") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder);
  const pid_t first = start_process(command(dir, {"--resume", "latest", "train.steps=100000"}), folder.path() + "/log");
  for (int i = 0; i < 3000 && metrics(dir).size() < 14; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ::kill(first, SIGKILL);
  wait_process(first);
  CHECK(fs::exists(dir + "/run.lock"));
  const auto reached = metrics(dir).back()["step"].get<int64_t>();
  const std::string output = run(0, command(dir, {"--resume", "latest", "train.steps=" + std::to_string(reached + 2)}));
  CHECK(contains(output, "took the lock over from process " + std::to_string(first)));
}

TEST_CASE("bytes that changed on disk are refused by name, and --verify finds them") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder), checkpoint = dir + "/checkpoint-12";
  CHECK(contains(run(0, {kTrain, "--verify", dir}), "checkpoint-8: step 8"));
  for (const std::string& file : {kWeights, std::string("/state/optimizer.safetensors"),
                                  std::string("/transformer_ema/diffusion_pytorch_model.safetensors")}) {
    const std::string whole = read_text(checkpoint + file);
    flip_last_bit(checkpoint + file);
    const std::string refused = run(2, command(dir, {"--resume", checkpoint, "train.steps=14"}));
    CHECK(contains(refused, file.substr(1)));
    CHECK(contains(refused, "other bytes"));
    const std::string verified = run(2, {kTrain, "--verify", checkpoint});
    CHECK(contains(verified, file.substr(1)));
    CHECK(run_process({kTrain, "--verify", dir}).exit_code == 2);
    std::ofstream(checkpoint + file, std::ios::binary) << whole;
  }
  fs::copy_file(dir + "/checkpoint-8" + kWeights, checkpoint + kWeights, fs::copy_options::overwrite_existing);
  CHECK(contains(run(2, command(dir, {"--resume", checkpoint, "train.steps=14"})),
                 "expected a file of step 12, found one of step 8"));
  CHECK(contains(run(2, {kTrain, "--verify", "/nowhere"}), "/nowhere"));
}

TEST_CASE("latest passes over damaged and stray folders, newest to oldest, and says which") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder);
  fs::create_directories(dir + "/checkpoint-99");
  fs::copy(dir + "/checkpoint-4", dir + "/checkpoint-50", fs::copy_options::recursive);
  std::ofstream(dir + "/checkpoint-60") << "a file";
  flip_last_bit(dir + "/checkpoint-12" + kWeights);
  const std::string output = run(0, command(dir, {"--resume", "latest", "train.steps=10"}));
  for (const char* passed : {"checkpoint-99: ", "checkpoint-50: its state is of step 4", "checkpoint-12: "})
    CHECK(contains(output, passed));
  CHECK(contains(output, "resumed from " + dir + "/checkpoint-8"));
  CHECK(steps_in(dir + "/set-aside-1") == std::vector<int64_t>{12, 50, 99});
  CHECK(fs::exists(dir + "/checkpoint-60"));

  for (const int64_t step : {4, 8, 10}) flip_last_bit(dir + "/checkpoint-" + std::to_string(step) + kWeights);
  const std::string refused = run(2, command(dir, {"--resume", "latest", "train.steps=14"}));
  CHECK(contains(refused, "found 3 that cannot be used"));
  CHECK(metrics(dir).size() == 10);
}

TEST_CASE("a path that is no checkpoint is refused by what it is") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder), checkpoint = dir + "/checkpoint-12";
  for (const bool with_config : {true, false}) {
    const auto refused = [&](const std::string& from) {
      return run(2,
                 with_config ? command(dir, {"--resume", from}) : std::vector<std::string>{kTrain, "--resume", from});
    };
    CHECK(contains(refused(checkpoint + "0"), "found none at '" + checkpoint + "0'"));
    for (const char* part : {"/state", "/transformer/"})
      CHECK(contains(refused(checkpoint + part),
                     "found a part of one at '" + checkpoint + part + "'; name " + checkpoint));
  }
  // What is wrong with the folder itself is no fault of its checkpoints.
  std::ofstream(dir + "/run.json") << "{\"step\": 1}";
  const std::string output = run(2, command(dir, {"--resume", "latest", "train.steps=14"}));
  CHECK(contains(output, dir + "/run.json"));
  CHECK_FALSE(contains(output, "passing over"));
}

TEST_CASE("another run's checkpoint in the folder is not latest") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder), other = folder.path() + "/other";
  run(0, command(other, {"train.steps=20", "train.checkpoint_every=0", "seed=8"}));
  fs::copy(other + "/checkpoint-20", dir + "/checkpoint-20", fs::copy_options::recursive);
  const std::string output = run(0, command(dir, {"--resume", "latest", "train.steps=14"}));
  CHECK(contains(output, "another run's folder made it"));
  CHECK(contains(output, "resumed from " + dir + "/checkpoint-12"));
}

TEST_CASE("what the model or its weights mean may not change; what makes the bytes is said and recorded") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder);
  struct Change {
    std::string key, old_value, new_value;
  };
  for (const Change& c : {Change{"model.eps", "1e-06", "1e-05"}, Change{"seed", "7", "8"},
                          Change{"model.heads", "2", "4"}, Change{"train.global_batch", "4", "8"}}) {
    std::vector<std::string> extra = {"--resume", dir + "/checkpoint-4", c.key + "=" + c.new_value};
    if (c.key == "model.heads") extra.push_back("model.head_dim=12");
    const std::string output = run(2, command(dir, extra));
    CHECK(contains(output, c.key + ": expected " + c.old_value + " as in the checkpoint, found " + c.new_value));
  }
  CHECK(steps_in(dir) == std::vector<int64_t>{4, 8, 12});

  const std::vector<Change> exact = {{"attention.tau", "0.25", "0.5"},         {"data.fps", "8", "4"},
                                     {"train.optimizer.lr", "0.001", "0.002"}, {"train.flow.shift", "3", "5"},
                                     {"train.micro_batch", "2", "1"},          {"data.caption_prefix", "", "x"}};
  std::vector<std::string> extra = {"--resume",       dir + "/checkpoint-4",   "train.steps=6",
                                    "sample.steps=3", "data.prefetch_clips=2", "run.log_level=debug"};
  for (const Change& c : exact) extra.push_back(c.key + "=" + c.new_value);
  const std::string output = run(0, command(dir, extra));
  for (const Change& c : exact) CHECK(contains(output, "  " + c.key + ": " + c.old_value + " -> " + c.new_value));
  CHECK(contains(output, "  clip plan: "));
  for (const char* key : {"sample.steps:", "prefetch_clips:", "log_level:", "train.steps:"})
    CHECK_FALSE(contains(output, key));
  const auto changes = manifest(dir + "/checkpoint-6")["changes"];
  CHECK(changes.size() == exact.size() + 1);
  for (const auto& change : changes) CHECK(change["step"] == 4);

  // Once recorded, they are no change any more; the record stays.
  extra[1] = "latest";
  extra[2] = "train.steps=8";
  CHECK_FALSE(contains(run(0, command(dir, extra)), " -> "));
  CHECK(manifest(dir + "/checkpoint-8")["changes"] == changes);
}

TEST_CASE("another file under a clip's name is said when a run goes on, and recorded") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", clips = folder.path() + "/clips";
  fs::copy(source_dir() + "/assets/clips", clips, fs::copy_options::recursive);
  run(0, command(dir, {"train.steps=4", "data.path=" + clips}));
  CHECK_FALSE(contains(run(0, command(dir, {"--resume", "latest", "train.steps=5", "data.path=" + clips})), " -> "));
  std::string video;
  for (const auto& entry : fs::directory_iterator(clips))
    if (entry.path().extension() == ".mp4") video = entry.path().string();
  std::ofstream(video, std::ios::binary | std::ios::app) << std::string(
      "\0\0\0\x0C"
      "free"
      "\0\0\0\0",
      12);  // of the same pictures
  const std::string output = run(0, command(dir, {"--resume", "latest", "train.steps=6", "data.path=" + clips}));
  CHECK(contains(output, "  files of the clips: sizes ("));
  CHECK(manifest(dir + "/checkpoint-6")["changes"].size() == 1);
  CHECK_FALSE(contains(run(0, command(dir, {"--resume", "latest", "train.steps=7", "data.path=" + clips})), " -> "));
  {
    std::fstream bytes(video, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(-1, std::ios::end);
    bytes.put('x');  // of the same size
  }
  CHECK(contains(run(0, command(dir, {"--resume", "latest", "train.steps=8", "data.path=" + clips})),
                 "  files of the clips: bytes ("));
}

TEST_CASE("--resume alone takes configuration and folder from the checkpoint") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder, "moved");
  const std::string whole = folder.path() + "/whole";
  run(0, command(whole, {"train.steps=14"}));
  const std::string output = run(0, {kTrain, "--resume", dir, "train.steps=14"});
  CHECK(contains(output, "its newest checkpoint is " + dir + "/checkpoint-12"));
  CHECK_FALSE(contains(output, " -> "));
  CHECK(same_bytes(dir + "/checkpoint-14" + kWeights, whole + "/checkpoint-14" + kWeights));
  run(0, {kTrain, "--resume", "latest", "run.dir=" + dir, "train.steps=15"});
  CHECK(fs::exists(dir + "/checkpoint-15"));
  run(0, {kTrain, "--resume", dir + "/checkpoint-15", "train.steps=16"});
  CHECK(fs::exists(dir + "/checkpoint-16"));
  CHECK(contains(run(2, {kTrain, "--resume", "latest", "run.dir=" + folder.path() + "/none"}), "--config"));
}

TEST_CASE("a finished run and a last step that is past say so and change nothing") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder);
  CHECK(contains(run(0, command(dir, {"--resume", "latest", "train.steps=12"})), "the run is finished"));
  const std::string below = run(0, command(dir, {"--resume", "latest", "train.steps=8"}));
  CHECK(contains(below, "train.steps: 8 lies below step 12"));
  CHECK(contains(run(0, command(dir, {"--resume", dir + "/checkpoint-4", "train.steps=4"})), "the run is finished"));
  CHECK(steps_in(dir) == std::vector<int64_t>{4, 8, 12});
  CHECK(metrics(dir).size() == 12);
  CHECK_FALSE(fs::exists(dir + "/set-aside-1"));
}

TEST_CASE("a checkpoint of an earlier version goes on exactly, with one line about what it lacks") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder), old = dir + "/checkpoint-12";
  fs::remove(old + "/state/checksums.json");
  std::ofstream(old + "/state/trainer.json")
      << R"({"format": 1, "step": 12, "next_sample": 48, "seed": 7, "updates": [12], "ema": true})";
  fs::remove(dir + "/run.json");
  const std::string output = run(0, command(dir, {"--resume", "latest", "train.steps=16", "train.keep_checkpoints=1"}));
  CHECK(contains(output, "cannot be verified"));
  CHECK(steps_in(dir) == std::vector<int64_t>{4, 8, 12, 16});  // what this folder did not make stays
  const std::string whole = folder.path() + "/whole";
  run(0, command(whole, {"train.steps=16"}));
  CHECK(metrics(whole).back()["loss"] == metrics(dir).back()["loss"]);
}

TEST_CASE("weights that are not finite are no start") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder), weights = folder.path() + "/bad";
  fs::copy(dir + "/checkpoint-4/transformer", weights);
  std::string bytes = read_text(weights + "/diffusion_pytorch_model.safetensors");
  for (size_t i = bytes.size() - 4; i < bytes.size(); ++i) bytes[i] = char(0xFF);
  std::ofstream(weights + "/diffusion_pytorch_model.safetensors", std::ios::binary) << bytes;
  const std::string output = run(2, command(folder.path() + "/run2", {"model.weights=" + weights}));
  CHECK(contains(output, "expected finite values in '"));
  CHECK_FALSE(fs::exists(folder.path() + "/run2"));
}

TEST_CASE("checkpoints stay by number and by validation loss, beside the newest") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  run(0, command(dir, {"train.steps=8", "train.checkpoint_every=2", "train.keep_checkpoints=0"}));
  // As a validation of these steps would have written it.
  const std::map<int64_t, double> losses = {{2, 0.5}, {4, 0.3}, {6, 0.4}, {8, 0.6}};
  std::ostringstream lines;
  for (nlohmann::json record : metrics(dir)) {
    if (losses.contains(record["step"])) record["val_loss"] = losses.at(record["step"]);
    lines << record.dump() << "\n";
  }
  std::ofstream(dir + "/metrics.jsonl") << lines.str();
  run(0, command(dir, {"--resume", "latest", "train.steps=16", "train.checkpoint_every=2", "train.keep_checkpoints=1",
                       "train.keep_best=1", "train.keep_every=6"}));
  // 4: best; 6, 12: by number; 8: the start; 14: the last that a step followed; 16: the newest.
  CHECK(steps_in(dir) == std::vector<int64_t>{4, 6, 8, 12, 14, 16});
}

TEST_CASE("a run goes back past a spike, on in other samples, and resumes exactly") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", parts = folder.path() + "/parts";
  // Any loss above the median is a spike here.
  const std::vector<std::string> keys = {"train.rewind.times=1", "train.rewind.factor=1.0001"};
  const auto with = [&](std::vector<std::string> extra) {
    extra.insert(extra.end(), keys.begin(), keys.end());
    return extra;
  };
  const std::string output = run(0, command(dir, with({"train.steps=32"})));
  CHECK(contains(output, "(train.rewind, 1 of 1)"));
  const auto records = metrics(dir);
  REQUIRE(records.size() == 32);
  for (size_t i = 0; i < records.size(); ++i) CHECK(records[i]["step"] == int64_t(i) + 1);
  const nlohmann::json info = manifest(dir + "/checkpoint-32");
  const auto skipped = info["skipped_samples"].get<int64_t>();
  CHECK(skipped > 0);
  CHECK(info["next_sample"].get<int64_t>() - skipped == 32 * 4);
  REQUIRE(info["changes"].size() == 1);
  CHECK(info["changes"][0]["key"] == "rewind");

  run(0, command(parts, with({"train.steps=28"})));
  run(0, command(parts, with({"train.steps=32", "--resume", "latest"})));
  CHECK(same_bytes(dir + "/checkpoint-32" + kWeights, parts + "/checkpoint-32" + kWeights));
}

TEST_CASE("a run goes back as often as it may, then ends with its good checkpoint there") {
  const TemporaryFolder folder;
  const std::string dir = twelve_steps(folder);
  const std::string output =
      run(1, command(dir, {"--resume", "latest", "train.steps=20", "train.optimizer.lr=1e30",
                           "train.optimizer.max_grad_norm=0", "train.rewind.times=2", "train.checkpoint_every=1"}));
  CHECK(contains(output, "going back to step 12"));
  CHECK(contains(output, "(train.rewind, 2 of 2)"));
  CHECK(contains(output, "expected a finite loss"));
  CHECK(contains(run(0, {kTrain, "--verify", dir + "/checkpoint-12"}), "every file is as it was written"));
}

TEST_CASE("adapters go on beside the weights that they were trained with, wherever these lie now") {
  const TemporaryFolder folder;
  const std::string base = twelve_steps(folder, "base"), dir = folder.path() + "/run";
  const auto keys = [&](const std::string& weights, std::vector<std::string> extra) {
    extra.insert(extra.end(), {"lora.rank=2", "model.weights=" + weights});
    return command(dir, extra);
  };
  run(0, keys(base + "/checkpoint-12/transformer", {"train.steps=4"}));
  const std::string refused = run(2, keys(base + "/checkpoint-8/transformer", {"train.steps=6", "--resume", "latest"}));
  CHECK(contains(refused, "model.weights: expected the weights beside which these adapters were trained"));
  fs::rename(base, folder.path() + "/moved");
  const std::string moved = folder.path() + "/moved/checkpoint-12/transformer";
  CHECK(contains(run(0, keys(moved, {"train.steps=6", "--resume", "latest"})), "  model.weights: "));
  CHECK(contains(run(2, keys(moved, {"train.steps=8", "--resume", "latest", "lora.alpha=8"})),
                 "lora.alpha: expected 0 as in the checkpoint, found 8"));
}

TEST_CASE("every optimiser, and weights in bf16, go on bit by bit") {
  const std::vector<std::vector<std::string>> kinds = {
      {"train.optimizer.type=adamw_8bit"},
      {"train.optimizer.type=muon"},
      {"model.weights_dtype=bf16"},
      {"model.weights_dtype=bf16", "train.optimizer.type=adamw_8bit", "train.ema.enabled=true"}};
  for (const std::vector<std::string>& keys : kinds) {
    INFO(keys.front());
    const TemporaryFolder folder;
    const auto train = [&](const char* name, std::vector<std::string> extra) {
      extra.insert(extra.end(), keys.begin(), keys.end());
      extra.insert(extra.end(), {"train.checkpoint_every=0", "train.validate_every=0"});
      run(0, command(folder.path() + name, extra));
    };
    train("/whole", {"train.steps=6"});
    train("/halves", {"train.steps=3"});
    train("/halves", {"train.steps=6", "--resume", "latest"});
    for (const std::string& file : {kWeights, std::string("/state/optimizer.safetensors")})
      CHECK(same_bytes(folder.path() + "/whole/checkpoint-6" + file, folder.path() + "/halves/checkpoint-6" + file));
    CHECK(metrics(folder.path() + "/whole").back()["loss"] == metrics(folder.path() + "/halves").back()["loss"]);
  }
}

TEST_CASE("runs whose weights and inputs of blocks wait in the host's memory are the same bytes, resumed or not") {
  const TemporaryFolder folder;
  const std::vector<std::string> lora = {
      "lora.rank=2", "model.weights_dtype=fp8",
      "model.weights=" + twelve_steps(folder, "base") + "/checkpoint-12/transformer"};
  // A LoRA's title is the name of the run's folder.
  const auto dir = [&](const char* name) { return folder.path() + "/" + name + "/run"; };
  const auto with = [&](std::vector<std::string> keys) {
    keys.insert(keys.begin(), lora.begin(), lora.end());
    return keys;
  };
  run(0, command(dir("plain"), with({"train.steps=8"})));
  for (const auto& line : metrics(dir("plain"))) CHECK(double(line["grad_norm"]) > 0);
  run(0, command(dir("both"), with({"train.steps=8", "model.offload=both"})));
  const std::string automatic = run(0, command(dir("auto"), with({"train.steps=8", "model.offload=auto"})));
  CHECK(contains(automatic, "model.offload auto: nothing, without a GPU"));
  run(0, command(dir("mixed"), with({"model.offload=weights", "train.steps=4"})));
  const std::string resumed =
      run(0, command(dir("mixed"), with({"model.offload=activations", "train.steps=8", "--resume", "latest"})));
  CHECK(contains(resumed, "resumed from"));
  for (const char* name : {"both", "auto", "mixed"}) {
    INFO(name);
    for (const char* file : {"/checkpoint-8/lora/comfyui.safetensors", "/checkpoint-8/state/optimizer.safetensors"}) {
      INFO(file);
      CHECK(same_bytes(dir("plain") + file, dir(name) + file));
    }
  }
}
