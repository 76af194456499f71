// vmoba-train as its users meet it: exit codes, exactness, resume, signals, kill -9, a full disk.
#include <signal.h>
#include <unistd.h>

#include <fmt/ranges.h>
#include <chrono>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "core/random.h"
#include "support/catch.h"
#include "support/metrics.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kTrain = bin_dir() + "/vmoba-train";
const std::string kTiny = fixtures() + "/train/tiny.yaml";
constexpr int64_t kSteps = 60;

std::vector<std::string> train_command(const std::string& run_dir, std::vector<std::string> extra = {}) {
  std::vector<std::string> out = {kTrain, "--config", kTiny, "run.dir=" + run_dir};
  out.insert(out.end(), extra.begin(), extra.end());
  return out;
}

// metrics.jsonl without what a clock or the machine decides.
std::vector<std::string> exact_metrics(const std::string& run_dir) {
  std::vector<std::string> out;
  for (const nlohmann::json& all : metrics(run_dir)) {
    nlohmann::json kept;
    for (const char* key : {"step", "loss", "lr", "grad_norm", "density"}) kept[key] = all.at(key);
    out.push_back(kept.dump());
  }
  return out;
}

void require_same_run(const std::string& a, const std::string& b) {
  const std::string last = "/checkpoint-" + std::to_string(kSteps);
  for (const char* file :
       {"/transformer/diffusion_pytorch_model.safetensors", "/transformer_ema/diffusion_pytorch_model.safetensors",
        "/state/optimizer.safetensors", "/transformer/config.json"}) {
    INFO(file);
    const std::string expected = read_text(a + last + file);
    REQUIRE(!expected.empty());
    REQUIRE(expected == read_text(b + last + file));
  }
  REQUIRE(exact_metrics(a).size() == size_t(kSteps));
  REQUIRE(exact_metrics(a) == exact_metrics(b));
}

// One uninterrupted run, shared by the cases of this program.
const std::string& reference_run() {
  static const TemporaryFolder folder;
  static const std::string run_dir = [] {
    const std::string dir = folder.path() + "/run";
    const ProcessResult result = run_process(train_command(dir));
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    return dir;
  }();
  return run_dir;
}

void kill_at_random_instants(int64_t kills, uint64_t seed) {
  const std::string& expected = reference_run();
  vmoba::RandomStream random(seed, "kill_instants", 0);
  const TemporaryFolder folder;
  int64_t run = 0;
  std::string dir = folder.path() + "/run0";
  for (int64_t done = 0; done < kills;) {
    const pid_t pid = start_process(train_command(dir, {"--resume", "latest"}), folder.path() + "/log");
    std::this_thread::sleep_for(std::chrono::milliseconds(100 + random.below(2500)));
    ::kill(pid, SIGKILL);
    const int code = wait_process(pid);
    INFO(read_text(folder.path() + "/log"));
    REQUIRE((code == 128 + SIGKILL || code == 0));
    if (code == 0) {  // it had finished: its result counts, and the next run starts afresh
      require_same_run(expected, dir);
      fs::remove_all(dir);
      dir = folder.path() + "/run" + std::to_string(++run);
    } else {
      ++done;
    }
  }
  const ProcessResult last = run_process(train_command(dir, {"--resume", "latest"}));
  INFO(last.output);
  REQUIRE(last.exit_code == 0);
  require_same_run(expected, dir);
}

}  // namespace

TEST_CASE("a model under full attention that its own weights teach has nothing to learn") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/taught";
  const std::string weights = reference_run() + "/checkpoint-" + std::to_string(kSteps) + "/transformer";
  const std::vector<std::string> taught = {"model.weights=" + weights, "train.distill.weight=1", "train.steps=2",
                                           "attention.dense_warmup_steps=1"};
  ProcessResult result = run_process(train_command(dir, taught));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK(metrics(dir).at(0)["loss"] == 0);  // full attention, as its teacher
  CHECK(metrics(dir).at(0)["grad_norm"] == 0);
  CHECK(metrics(dir).at(1)["loss"] > 0);  // sparse attention
  result = run_process(train_command(
      dir + "_lora", {"model.weights=" + weights, "train.distill.weight=1", "train.steps=1", "lora.rank=2"}));
  REQUIRE(result.exit_code == 0);
  CHECK(metrics(dir + "_lora").at(0)["loss"] == 0);
  result = run_process(train_command(dir + "_none", {"train.distill.weight=1"}));
  CHECK(result.exit_code == 2);
  CHECK(result.output.find("train.distill.weights") != std::string::npos);
}

TEST_CASE("a run writes what its users rely on") {
  const std::string& dir = reference_run();
  CHECK(fs::exists(dir + "/config.resolved.yaml"));
  CHECK(fs::exists(dir + "/loss.png"));
  CHECK(fs::exists(dir + "/checkpoint-60/transformer/config.json"));
  CHECK(fs::exists(dir + "/checkpoint-55"));
  CHECK_FALSE(fs::exists(dir + "/checkpoint-50"));  // keep_checkpoints: 2
  const auto records = metrics(dir);
  REQUIRE_FALSE(records.empty());
  const nlohmann::json& first = records.front();
  for (const char* key : {"step", "loss", "lr", "grad_norm", "tokens_per_s", "density"}) CHECK(first.contains(key));
  CHECK(first["step"] == 1);
}

TEST_CASE("a profiled step is a trace of its operations, and changes nothing") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const ProcessResult result =
      run_process(train_command(dir, {"train.steps=3", "run.profile_step=2", "train.checkpoint_every=0"}));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK(!fs::exists(dir + "/profile-1-rank0.json"));
  const auto trace = nlohmann::json::parse(read_text(dir + "/profile-2-rank0.json"));
  int64_t products = 0, backward = 0;
  for (const nlohmann::json& event : trace.at("traceEvents")) {
    const std::string name = event.value("name", "");
    products += name == "aten::addmm" || name == "aten::mm";
    backward += name == "AddmmBackward0";
  }
  CHECK(products > 0);
  CHECK(backward > 0);
  const std::vector<std::string> plain = exact_metrics(reference_run());
  CHECK(exact_metrics(dir) == std::vector<std::string>(plain.begin(), plain.begin() + 3));
}

TEST_CASE("the same configuration twice gives the same bytes, and an earlier run is kept") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  REQUIRE(run_process(train_command(dir)).exit_code == 0);
  require_same_run(reference_run(), dir);
  const ProcessResult again = run_process(train_command(dir, {"train.steps=2"}));
  REQUIRE(again.exit_code == 0);
  CHECK(again.output.find("now kept at") != std::string::npos);
  require_same_run(reference_run(), dir + ".1");
}

TEST_CASE("the resolved configuration starts the same run") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const ProcessResult result =
      run_process({kTrain, "--config", reference_run() + "/config.resolved.yaml", "run.dir=" + dir});
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  require_same_run(reference_run(), dir);
}

TEST_CASE("SIGTERM and SIGINT save, leave with 75, and the resumed run is exact") {
  for (int signal : {SIGTERM, SIGINT}) {
    const TemporaryFolder folder;
    const std::string dir = folder.path() + "/run";
    const pid_t pid = start_process(train_command(dir, {"train.checkpoint_every=1000"}), folder.path() + "/log");
    while (!fs::exists(dir + "/metrics.jsonl") || exact_metrics(dir).size() < 3)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ::kill(pid, signal);
    const int code = wait_process(pid);
    INFO(read_text(folder.path() + "/log"));
    REQUIRE(code == 75);
    const ProcessResult rest = run_process(train_command(dir, {"--resume", "latest", "train.checkpoint_every=1000"}));
    INFO(rest.output);
    REQUIRE(rest.exit_code == 0);
    require_same_run(reference_run(), dir);
  }
}

TEST_CASE("killed at 20 random instants and resumed, a run ends in the same bytes") {
  kill_at_random_instants(20, 1);
}

TEST_CASE("killed at 200 random instants and resumed, a run ends in the same bytes", "[slow]") {
  kill_at_random_instants(200, 2);
}

TEST_CASE("resuming from a named checkpoint is exact too") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const ProcessResult result = run_process(train_command(dir, {"--resume", reference_run() + "/checkpoint-55"}));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  const std::string weights = "/checkpoint-60/transformer/diffusion_pytorch_model.safetensors";
  REQUIRE(read_text(dir + weights) == read_text(reference_run() + weights));
}

TEST_CASE("a full disk is an error that loses nothing already saved") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  REQUIRE(run_process(train_command(dir, {"train.steps=5"})).exit_code == 0);
  const std::string weights = "/checkpoint-5/transformer/diffusion_pytorch_model.safetensors";
  const std::string before = read_text(dir + weights);
  // Files may grow to 16 KiB only: no checkpoint can be written.
  const std::string command = "ulimit -f 16; exec " + kTrain + " --config " + kTiny + " run.dir=" + dir +
                              " --resume latest train.tensorboard=false data.patience_s=1";
  const ProcessResult result = run_process({"bash", "-c", command});
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(result.output.find("older checkpoints are untouched") != std::string::npos);
  CHECK(read_text(dir + weights) == before);
  CHECK_FALSE(fs::exists(dir + "/checkpoint-10"));
  CHECK_FALSE(fs::exists(dir + "/checkpoint-10.unfinished"));
}

TEST_CASE("exit codes and messages for wrong use") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  struct Case {
    std::vector<std::string> arguments;
    int code;
    std::string says;
  };
  const Case cases[] = {
      {{kTrain}, 2, "expected --config"},
      {{kTrain, "--nonsense"}, 2, ""},
      {{kTrain, "--help"}, 0, "--resume"},
      {{kTrain, "--config", "/nowhere.yaml"}, 2, "/nowhere.yaml"},
      {train_command(dir, {"train.stepz=3"}), 2, "did you mean 'train.steps'"},
      {train_command(dir, {"attention.tau=x"}), 2, "attention.tau"},
      {train_command(dir, {"train.global_batch=3"}), 2, "multiple of train.micro_batch"},
      {train_command(dir, {"data.path=/nowhere"}), 2, "/nowhere"},
      {train_command(dir, {"data.height=33"}), 2, "16"},
      {train_command(dir, {"--resume", "/nowhere"}), 2, "/nowhere"},
      {train_command("/proc/nowhere/run"), 1, "run.dir"},
      {train_command(dir, {"--dry-run"}), 0, "parameters"},
  };
  for (const Case& c : cases) {
    const ProcessResult result = run_process(c.arguments);
    INFO(fmt::format("{}", fmt::join(c.arguments, " ")) << "\n" << result.output);
    CHECK(result.exit_code == c.code);
    CHECK(result.output.find(c.says) != std::string::npos);
  }
  CHECK_FALSE(fs::exists(dir));
}

TEST_CASE("a non-finite loss stops before the update and names step and clips") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const ProcessResult result =
      run_process(train_command(dir, {"train.optimizer.lr=1e30", "train.optimizer.warmup_steps=0",
                                      "train.optimizer.max_grad_norm=0", "train.checkpoint_every=1"}));
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(result.output.find("expected a finite loss") != std::string::npos);
  CHECK(result.output.find(".mp4") != std::string::npos);
}

TEST_CASE("images and videos of several sizes and lengths train in batches of one bucket, through the Wan VAE") {
  const TemporaryFolder folder;
  const std::string data = folder.path() + "/data", dir = folder.path() + "/run";
  fs::create_directory(data);
  const std::string wide = source_dir() + "/assets/clips/02_mirror_close.mp4";
  const auto make = [&](const std::string& name, const std::string& filters, const std::vector<std::string>& length) {
    std::vector<std::string> command = {"ffmpeg", "-v", "error", "-nostdin", "-i", wide, "-vf", filters};
    command.insert(command.end(), length.begin(), length.end());
    command.push_back(data + "/" + name);
    REQUIRE(run_process(command).exit_code == 0);
  };
  const std::string portrait = "crop=ih/2:ih";
  make("a_wide.mp4", "scale=128:-2", {"-t", "1.5"});  // 9 frames at 8 a second
  make("b_wide.mp4", "hflip,scale=128:-2", {"-t", "1.5"});
  make("c_wide.mp4", "vflip,scale=128:-2", {"-t", "0.8"});  // 5 frames
  make("d_high.mp4", portrait, {"-t", "1.5"});
  make("e_high.png", portrait, {"-frames:v", "1"});
  make("f_wide.png", "scale=128:-2", {"-frames:v", "1"});
  make("g_wide.jpg", "scale=96:-2", {"-frames:v", "1"});
  make("too_short.mp4", "scale=128:-2", {"-t", "0.2"});
  std::ofstream(data + "/broken.mp4") << "no video";
  std::ofstream(data + "/orphan.txt") << "a caption of nothing";

  const ProcessResult result = run_process(train_command(
      dir, {"data.path=" + data, "data.frames=[5, 9]", "data.aspect_buckets=3", "train.steps=8", "codec.type=wan_vae",
            "codec.weights=" + fixtures() + "/model/wan_vae_21", "sample.height=32"}));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  const nlohmann::json plan = nlohmann::json::parse(read_text(dir + "/clip_plan.json"));
  std::map<int64_t, int64_t> clips_of_length;
  for (const auto& bucket : plan.at("buckets"))
    clips_of_length[bucket.at("frames")] += bucket.at("clips").get<int64_t>();
  CHECK(clips_of_length == std::map<int64_t, int64_t>{{1, 3}, {5, 1}, {9, 3}});
  CHECK(plan.at("buckets").size() == 5);  // wide and high of 1 and of 9 frames, wide of 5
  CHECK(plan.at("dropped").size() == 3);
  for (const std::string name : {"too_short.mp4", "broken.mp4", "orphan.txt"}) {
    const size_t first = result.output.find("/" + name);
    CHECK(first != std::string::npos);
    CHECK(result.output.find("/" + name, first + 1) == std::string::npos);  // once
  }
  // Two clips of wide videos and two wide images fill their batches of 2; each of the three others is shown twice.
  CHECK(result.output.find("an epoch is 10 samples, 3 of them shown again to fill micro batches of 2") !=
        std::string::npos);
  CHECK(exact_metrics(dir).size() == 8);  // 32 samples: three epochs, so every bucket was met
}

TEST_CASE("every shipped configuration is valid and names the files that it lacks and where to get them") {
  int64_t pretrained = 0;
  for (const auto& entry : fs::directory_iterator(source_dir() + "/configs")) {
    if (entry.path().filename() == "quickstart.yaml") continue;
    const ProcessResult result = run_process({kTrain, "--config", entry.path().string(), "--dry-run"});
    INFO(entry.path() << "\n" << result.output);
    CHECK(result.exit_code == 2);
    const std::string text = read_text(entry.path().string());
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      const size_t at = line.find(": models/");
      if (at == std::string::npos || line.front() == '#') continue;
      INFO(line);
      CHECK(result.output.find(line.substr(at + 2) + "'") != std::string::npos);
      ++pretrained;
    }
    for (const char* hint : {"codec.weights", "text.weights", "Hugging Face", "docs/pretrained.md"})
      CHECK(result.output.find(hint) != std::string::npos);
    const bool from_scratch = text.find("weights: \"\"") != std::string::npos;
    const char* key = text.find("experts:") == std::string::npos ? "model.weights" : "experts[1].weights";
    CHECK((result.output.find(key) == std::string::npos) == from_scratch);
  }
  CHECK(pretrained >= 30);
}

TEST_CASE("configurations in the pages for users of other tools lack nothing but files") {
  const TemporaryFolder folder;
  int64_t blocks = 0;
  for (const char* page : {"from_musubi", "from_diffusion_pipe", "from_fastvideo"}) {
    const std::string text = read_text(fmt::format("{}/docs/{}.md", source_dir(), page));
    for (size_t at = 0; (at = text.find("```yaml\n", at)) != std::string::npos; ++at, ++blocks) {
      const size_t begin = at + std::string("```yaml\n").size();
      const std::string path = fmt::format("{}/{}.yaml", folder.path(), page);
      std::ofstream(path) << text.substr(begin, text.find("```", begin) - begin);
      const ProcessResult result = run_process({kTrain, "--config", path, "--dry-run", "data.patience_s=0"});
      INFO(page << "\n" << result.output);
      CHECK(result.exit_code == 2);
      CHECK(result.output.find("data.path to exist") != std::string::npos);
      CHECK(result.output.find("unknown key") == std::string::npos);
    }
  }
  CHECK(blocks == 3);
}

TEST_CASE("docs/config.md is what the program prints") {
  const ProcessResult result = run_process({kTrain, "--config-reference"});
  REQUIRE(result.exit_code == 0);
  CHECK(result.output == read_text(source_dir() + "/docs/config.md"));
}

TEST_CASE("image-to-video tasks train and repeat their bytes") {
  // With the dct codec of 16 channels: 16 + 4 + 16 in for i2v; TI2V-5B's way with 16.
  const TemporaryFolder folder;
  const auto train = [&](const std::string& name, std::vector<std::string> extra) {
    const std::string dir = folder.path() + "/" + name;
    extra.insert(extra.end(), {"train.steps=4", "train.ema.enabled=false", "train.tensorboard=false"});
    const ProcessResult result = run_process(train_command(dir, extra));
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    return read_text(dir + "/checkpoint-4/transformer/diffusion_pytorch_model.safetensors");
  };
  const std::string i2v = train("i2v", {"model.task=i2v", "model.in_channels=36"});
  CHECK(i2v == train("i2v_again", {"model.task=i2v", "model.in_channels=36"}));
  const std::string ti2v = train("ti2v", {"model.task=ti2v"});
  CHECK(ti2v != train("ti2v_without", {"model.task=ti2v", "train.flow.first_frame_rate=0"}));
  const ProcessResult wrong = run_process(train_command(folder.path() + "/wrong", {"model.task=i2v"}));
  CHECK(wrong.exit_code == 2);
  CHECK(wrong.output.find("expected 36 and 16 (codec 'dct', model.task i2v), found 16 and 16") != std::string::npos);
}
