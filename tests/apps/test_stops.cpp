// What stops a run and what does not: signals, time limits, storage that goes away, a disk that is full.
#include <signal.h>
#include <sys/resource.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "support/catch.h"
#include "support/messages.h"
#include "support/metrics.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

namespace {

const std::string kTrain = bin_dir() + "/vmoba-train";
const std::string kTiny = fixtures() + "/train/tiny.yaml";
const std::string kWeights = "/transformer/diffusion_pytorch_model.safetensors";

std::vector<std::string> train_command(const std::string& run_dir, const std::vector<std::string>& extra = {}) {
  std::vector<std::string> out = {kTrain, "--config", kTiny, "run.dir=" + run_dir, "train.tensorboard=false"};
  out.insert(out.end(), extra.begin(), extra.end());
  return out;
}

size_t steps_done(const std::string& run_dir) {
  return fs::exists(run_dir + "/metrics.jsonl") ? metrics(run_dir).size() : 0;
}

// Waits for `there`, up to two minutes.
bool wait_for(const std::function<bool()>& there) {
  const auto start = Clock::now();
  while (!there()) {
    if (Clock::now() - start > std::chrono::minutes(2)) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Clips of its own, to be taken away.
std::string copied_clips(const std::string& folder) {
  fs::copy(source_dir() + "/assets/clips", folder + "/clips", fs::copy_options::recursive);
  return folder + "/clips";
}

}  // namespace

TEST_CASE("every stop signal saves, leaves with 75 and names itself") {
  for (const int signal : {SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU}) {
    const TemporaryFolder folder;
    const std::string dir = folder.path() + "/run";
    const pid_t pid = start_process(train_command(dir, {"train.checkpoint_every=1000"}), folder.path() + "/log");
    REQUIRE(wait_for([&] { return steps_done(dir) >= 2; }));
    ::kill(pid, signal);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // of two that wait, the later one is handled first
    ::kill(pid, SIGXCPU);                                        // comes every second behind a CPU limit
    const int code = wait_process(pid);
    const std::string log = read_text(folder.path() + "/log");
    INFO(log);
    CHECK(code == 75);
    CHECK(contains(log, "stopped by signal " + std::to_string(signal)));
    CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(steps_done(dir)) + kWeights));
  }
}

TEST_CASE("a run under nohup outlives its terminal, and stops for the other signals") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", log = folder.path() + "/log";
  std::vector<std::string> command = {"nohup"};
  for (const std::string& word : train_command(dir, {"train.steps=1000000", "train.checkpoint_every=100000"}))
    command.push_back(word);
  const pid_t pid = start_process(command, log);
  REQUIRE(wait_for([&] { return steps_done(dir) >= 2; }));
  ::kill(pid, SIGHUP);
  const size_t before = steps_done(dir);
  CHECK(wait_for([&] { return steps_done(dir) > before + 5; }));
  ::kill(pid, SIGUSR1);
  CHECK(wait_process(pid) == 75);
  CHECK(contains(read_text(log), "stopped by signal " + std::to_string(SIGUSR1)));
}

TEST_CASE("a stop between the passes of a long step is not kept waiting for the step") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  // 1,000 passes a step, for which half of the grace is too short.
  const pid_t pid =
      start_process(train_command(dir, {"train.global_batch=2000", "train.checkpoint_every=1000", "run.grace_s=8"}),
                    folder.path() + "/log");
  REQUIRE(wait_for([&] { return steps_done(dir) >= 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const double step_s = metrics(dir).front().at("step_s").get<double>();
  const auto start = Clock::now();
  ::kill(pid, SIGTERM);
  const int code = wait_process(pid);
  INFO(read_text(folder.path() + "/log") << "a step of " << step_s << " s");
  CHECK(code == 75);
  if (step_s > 5) {
    CHECK(seconds_since(start) < step_s + 3);
    CHECK(steps_done(dir) == 1);
  }
  CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(steps_done(dir)) + kWeights));
}

TEST_CASE("a time limit saves before it") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const auto start = Clock::now();
  const ProcessResult result = run_process(
      train_command(dir, {"train.steps=1000000", "train.checkpoint_every=0", "run.save_before=40s", "run.grace_s=30"}));
  INFO(result.output);
  CHECK(result.exit_code == 75);
  CHECK(seconds_since(start) > 8);
  CHECK(seconds_since(start) < 40);
  CHECK(contains(result.output, "run.save_before"));
  CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(steps_done(dir))));
}

TEST_CASE("a stop is seen while the run waits for storage, and while it samples") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", clips = copied_clips(folder.path());
  SECTION("storage") {
    const pid_t pid =
        start_process(train_command(dir, {"data.path=" + clips, "data.patience_s=3600", "train.checkpoint_every=1000"}),
                      folder.path() + "/log");
    REQUIRE(wait_for([&] { return steps_done(dir) >= 2; }));
    fs::rename(clips, clips + ".away");
    REQUIRE(wait_for([&] { return contains(read_text(folder.path() + "/log"), "waiting for the storage"); }));
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    const auto start = Clock::now();
    ::kill(pid, SIGTERM);
    const int code = wait_process(pid);
    INFO(read_text(folder.path() + "/log"));
    CHECK(code == 75);
    CHECK(seconds_since(start) < 30);
    const size_t steps = steps_done(dir);
    CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(steps) + kWeights));
    fs::rename(clips + ".away", clips);
    const ProcessResult rest = run_process(
        train_command(dir, {"data.path=" + clips, "--resume", "latest", "train.steps=" + std::to_string(steps + 2)}));
    INFO(rest.output);
    CHECK(rest.exit_code == 0);
  }
  SECTION("sampling") {
    const pid_t pid = start_process(
        train_command(dir, {"train.validate_every=2", "sample.steps=1000", "train.checkpoint_every=1000"}),
        folder.path() + "/log");
    REQUIRE(wait_for([&] { return steps_done(dir) >= 2; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const auto start = Clock::now();
    ::kill(pid, SIGUSR1);
    const int code = wait_process(pid);
    INFO(read_text(folder.path() + "/log"));
    CHECK(code == 75);
    CHECK(seconds_since(start) < 30);
    CHECK(contains(read_text(folder.path() + "/log"), "the validation is given up"));
    CHECK(fs::exists(dir + "/checkpoint-2" + kWeights));
  }
}

TEST_CASE("a read that hangs in the kernel shows who waits, costs what patience says, and holds up no stop") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", clips = copied_clips(folder.path()), log = folder.path() + "/log";
  const std::string marker = folder.path() + "/hung";
  std::string clip;
  for (const auto& entry : fs::directory_iterator(clips))
    if (entry.path().extension() == ".mp4") clip = entry.path().string();
  const std::vector<std::string> environment = {"LD_PRELOAD=" VMOBA_HUNG_STORAGE, "VMOBA_HUNG_PATH=" + clip,
                                                "VMOBA_HUNG_WHILE=" + marker};
  const auto start_run = [&](const std::vector<std::string>& extra) {
    std::vector<std::string> keys = {"data.path=" + clips, "train.checkpoint_every=1000", "train.steps=1000000"};
    keys.insert(keys.end(), extra.begin(), extra.end());
    const pid_t pid = start_process(train_command(dir, keys), log, environment);
    REQUIRE(wait_for([&] { return steps_done(dir) >= 2; }));
    std::ofstream(marker) << "hung";
    REQUIRE(wait_for([&] { return contains(read_text(log), clip + ": a read has not returned for 10 s"); }));
    return pid;
  };
  SECTION("a stop saves and leaves") {
    const pid_t pid = start_run({"data.patience_s=3600", "run.grace_s=60"});
    const auto start = Clock::now();
    ::kill(pid, SIGTERM);
    CHECK(wait_process(pid) == 75);
    INFO(read_text(log));
    CHECK(seconds_since(start) < 30);
    CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(steps_done(dir)) + kWeights));
  }
  SECTION("the clip is replaced when patience ends, and counts as failed") {
    const pid_t pid = start_run({"data.patience_s=12"});
    CHECK(wait_for([&] { return contains(read_text(log), clip + " cannot be read and is replaced by other clips"); }));
    const size_t before = steps_done(dir);
    CHECK(wait_for([&] { return steps_done(dir) > before + 2; }));
    fs::remove(marker);
    ::kill(pid, SIGTERM);
    CHECK(wait_process(pid) == 75);
    INFO(read_text(log));
    CHECK(metrics(dir).back().at("failed_clips") == 1);
  }
  SECTION("while planning, the file is dropped with the reason") {
    std::ofstream(marker) << "hung";
    const pid_t pid = start_process(
        {bin_dir() + "/vmoba-data", "--config", kTiny, "data.path=" + clips, "data.patience_s=12"}, log, environment);
    const int code = wait_process(pid);
    INFO(read_text(log));
    CHECK(code == 0);
    CHECK(contains(read_text(log), clip + ": unreadable: a read has not returned for 12 s"));
  }
}

TEST_CASE("storage that is away for a moment changes nothing") {
  const TemporaryFolder folder;
  const std::string clips = copied_clips(folder.path());
  const auto run = [&](const std::string& dir, bool disturbed) {
    const pid_t pid =
        start_process(train_command(dir, {"data.path=" + clips, "train.steps=12"}), folder.path() + "/log");
    if (disturbed) {
      REQUIRE(wait_for([&] { return steps_done(dir) >= 2; }));
      fs::rename(clips, clips + ".away");
      std::this_thread::sleep_for(std::chrono::seconds(2));
      fs::rename(clips + ".away", clips);
    }
    const int code = wait_process(pid);
    INFO(read_text(folder.path() + "/log"));
    REQUIRE(code == 0);
    return read_text(dir + "/checkpoint-12" + kWeights);
  };
  const std::string quiet = run(folder.path() + "/quiet", false);
  REQUIRE_FALSE(quiet.empty());
  CHECK(quiet == run(folder.path() + "/disturbed", true));
}

TEST_CASE("storage that stays away ends the run with its state saved, and the rest is trained once it is back") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", clips = copied_clips(folder.path());
  const std::vector<std::string> keys = {"data.path=" + clips, "data.patience_s=1", "train.checkpoint_every=1000"};
  const pid_t pid = start_process(train_command(dir, keys), folder.path() + "/log");
  REQUIRE(wait_for([&] { return steps_done(dir) >= 2; }));
  fs::rename(clips, clips + ".away");
  const int code = wait_process(pid);
  const std::string log = read_text(folder.path() + "/log");
  INFO(log);
  CHECK(code == 2);
  CHECK(contains(log, "is saved"));
  const size_t steps = steps_done(dir);
  CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(steps) + kWeights));
  fs::rename(clips + ".away", clips);
  std::vector<std::string> resumed = keys;
  resumed.insert(resumed.end(), {"--resume", "latest", "train.steps=" + std::to_string(steps + 3)});
  const ProcessResult rest = run_process(train_command(dir, resumed));
  INFO(rest.output);
  CHECK(rest.exit_code == 0);
  CHECK(metrics(dir).back().at("failed_clips") == 0);
}

TEST_CASE("a clip that turned out to be damaged is in the checkpoint, and a resumed run repeats its replacement") {
  const TemporaryFolder folder;
  const std::string clips = copied_clips(folder.path()), dir = folder.path() + "/run";
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(clips))
    if (entry.path().extension() == ".mp4") names.push_back(entry.path().string());
  REQUIRE(names.size() >= 3);
  const std::string whole = read_text(names[0]), stash = folder.path() + "/whole.mp4";
  fs::copy_file(names[0], stash);
  const auto run = [&](const std::string& run_dir, const std::vector<std::string>& extra) {
    std::vector<std::string> keys = {"data.path=" + clips};
    keys.insert(keys.end(), extra.begin(), extra.end());
    const ProcessResult result = run_process(train_command(run_dir, keys));
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
  };
  // Planned whole, damaged before the first sample is decoded: the plan is made from a sound header.
  std::string damaged = whole;
  const size_t begin = damaged.find("mdat") + 4;
  std::fill(damaged.begin() + int64_t(begin), damaged.begin() + int64_t(begin + (whole.size() - begin) / 2), '\x5A');
  const auto damage = [&] { std::ofstream(names[0], std::ios::binary) << damaged; };
  damage();
  run(dir, {"train.steps=5"});
  const nlohmann::json info = nlohmann::json::parse(read_text(dir + "/checkpoint-5/state/trainer.json"));
  if (info.at("failed_clips").empty()) {
    WARN("the damage shows at planning already: nothing to repeat");
    return;
  }
  run(folder.path() + "/straight", {"train.steps=10"});
  fs::copy_file(stash, names[0], fs::copy_options::overwrite_existing);  // mended
  run(dir, {"train.steps=10", "--resume", "latest"});
  CHECK(read_text(dir + "/checkpoint-10" + kWeights) ==
        read_text(folder.path() + "/straight/checkpoint-10" + kWeights));
}

TEST_CASE("a disk that takes no checkpoint for a while costs warnings and no run") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", log = folder.path() + "/log";
  // Files may grow to 16 KiB only. Without a handler for SIGXFSZ the first longer write would end the process.
  std::string command = "ulimit -S -f 16; exec";
  for (const std::string& word : train_command(dir, {"data.patience_s=60"})) command += " '" + word + "'";
  const pid_t pid = start_process({"bash", "-c", command}, log);
  REQUIRE(wait_for([&] { return contains(read_text(log), "tries again after step"); }));
  const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
  REQUIRE(::prlimit(pid, RLIMIT_FSIZE, &none, nullptr) == 0);
  const int code = wait_process(pid);
  INFO(read_text(log));
  CHECK(code == 0);
  CHECK(contains(read_text(log), "older checkpoints are untouched"));
  CHECK(fs::exists(dir + "/checkpoint-60" + kWeights));
  CHECK(steps_done(dir) == 60);  // no line is lost
}

TEST_CASE("a file-size limit is an error and no death by signal") {
  const TemporaryFolder folder;
  const std::string out = folder.path() + "/out.safetensors";
  const std::string command = "ulimit -f 16; exec " + bin_dir() + "/vmoba-convert " + fixtures() + "/model/wan_t2v " +
                              out + " --layout original --head-dim 20";
  const ProcessResult result = run_process({"bash", "-c", command});
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(contains(result.output, "File too large"));
  CHECK_FALSE(fs::exists(out));
}

TEST_CASE("everything that a run will use is checked at its start") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  struct Case {
    std::vector<std::string> keys;
    std::string says;
  };
  const std::vector<Case> cases = {
      {{"train.validate_every=5", "sample.frames=6"}, "sample.frames: expected 1 + 4n for this codec, found 6"},
      {{"train.validate_every=5", "sample.height=40"}, "sample.height and sample.width"},
      {{"run.save_before=soon"}, "run.save_before"},
      {{"lora.rank=4", "lora.init_from=" + folder.path() + "/none"}, folder.path() + "/none"},
      {{"parallel.sequence=3"}, "parallel.sequence"},
      {{"data.max_failed=0", "data.path=" + folder.path() + "/data"}, "data.max_failed"},
  };
  fs::copy(source_dir() + "/assets/clips", folder.path() + "/data", fs::copy_options::recursive);
  std::ofstream(folder.path() + "/data/broken.mp4") << "no video";
  for (const Case& one : cases) {
    for (const bool dry : {true, false}) {
      std::vector<std::string> keys = one.keys;
      if (dry) keys.push_back("--dry-run");
      const ProcessResult result = run_process(train_command(dir, keys));
      INFO(one.says << "\n" << result.output);
      CHECK(result.exit_code == 2);
      CHECK(contains(result.output, one.says));
    }
  }
  CHECK_FALSE(fs::exists(dir));
}

TEST_CASE("a dry run names all that is missing at once, and prints the memory without it") {
  const TemporaryFolder folder;
  const auto missing = [&](const std::string& name) { return folder.path() + "/" + name; };
  const ProcessResult result = run_process(train_command(
      missing("run"), {"--dry-run", "model.weights=" + missing("transformer"), "codec.type=wan_vae",
                       "codec.weights=" + missing("vae"), "text.type=umt5", "text.weights=" + missing("text"),
                       "data.path=" + missing("clips"), "lora.rank=4", "lora.init_from=" + missing("lora")}));
  INFO(result.output);
  CHECK(result.exit_code == 2);
  for (const char* name : {"transformer", "vae", "text", "clips", "lora"})
    CHECK(contains(result.output, missing(name)));
  CHECK(contains(result.output, "memory: unknown until"));
  // The shipped configurations name published models, whose sizes are known.
  const std::pair<const char*, const char*> known[] = {{"wan2.1_1.3b_finetune", "(1418996800)"},
                                                       {"wan2.1_14b_i2v_lora", "parameters           16"},
                                                       {"wan2.2_5b_finetune", "27280 tokens"}};
  for (const auto& [name, says] : known) {
    const ProcessResult shipped = run_process(
        {kTrain, "--config", source_dir() + "/configs/" + name + ".yaml", "--dry-run", "--ranks", "4"});
    INFO(name << "\n" << shipped.output);
    CHECK(shipped.exit_code == 2);
    CHECK(contains(shipped.output, says));
    CHECK(contains(shipped.output, "memory, estimated"));
    CHECK(contains(shipped.output, "4 ranks, 8 per host"));
  }
}

TEST_CASE("the dry run says whether a GPU suffices and what to set") {
  const auto dry_run = [](const std::string& gib) {
    return run_process(
               {kTrain, "--config", source_dir() + "/configs/wan2.1_1.3b_finetune.yaml", "--dry-run", "--gpu-gib", gib})
        .output;
  };
  CHECK(contains(dry_run("200"), "--gpu-gib            fits"));
  const std::string small = dry_run("16");
  INFO(small);
  CHECK(contains(small, "--gpu-gib            does not fit"));
  CHECK(contains(small, "train.optimizer.type=adamw_8bit"));
}

TEST_CASE("a large model does not start on a CPU by accident") {
  const TemporaryFolder folder;
  const std::vector<std::string> keys = {"model.layers=30", "model.heads=12", "model.head_dim=128",
                                         "model.ffn_dim=8960", "run.device=auto"};
  const ProcessResult result = run_process(train_command(folder.path() + "/run", keys));
  INFO(result.output);
  if (contains(result.output, "cuda")) return;  // a machine with a GPU
  CHECK(result.exit_code == 2);
  CHECK(contains(result.output, "run.device=cpu"));
}

TEST_CASE("the start is said in one block") {
  const TemporaryFolder folder;
  const ProcessResult result = run_process(train_command(folder.path() + "/run", {"train.steps=1"}));
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  size_t at = 0;
  for (const char* line : {"device: ", "model: ", "data: ", "memory: ", "checkpoints: "}) {
    const size_t found = result.output.find(line, at);
    REQUIRE(found != std::string::npos);
    at = found;
  }
  CHECK(contains(result.output, "steps an epoch"));
  CHECK(contains(result.output, " fit in "));
}

TEST_CASE("a terminal gets colours, unless NO_COLOR is set") {
  const std::string command = kTrain + " --config /nowhere.yaml";
  const auto on_terminal = [&](const std::string& setting) {
    return run_process({"script", "-qec", command, "/dev/null"}, {setting}).output;
  };
  CHECK(contains(on_terminal("NO_COLOR="), "\x1b[31m"));
  const std::string plain = on_terminal("NO_COLOR=1");
  INFO(plain);
  CHECK(contains(plain, "/nowhere.yaml"));
  CHECK_FALSE(contains(plain, "\x1b[31m"));
}

TEST_CASE("every program says its version, waits passively, and ends in order where nobody reads its output") {
  for (const char* name : {"vmoba-train", "vmoba-sample", "vmoba-encode", "vmoba-data", "vmoba-convert"}) {
    const std::string program = bin_dir() + "/" + name;
    const ProcessResult version = run_process({program, "--version"});
    INFO(name << ": " << version.output);
    CHECK(version.exit_code == 0);
    for (const char* part : {"vmoba ", "commit ", "CUDA ", "libtorch "}) CHECK(contains(version.output, part));
  }
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const pid_t pid = start_process(train_command(dir, {"train.steps=100000"}), folder.path() + "/log");
  REQUIRE(wait_for([&] { return steps_done(dir) >= 1; }));
  const std::string environment = read_text("/proc/" + std::to_string(pid) + "/environ");
  ::kill(pid, SIGKILL);
  wait_process(pid);
  CHECK(contains(environment, std::string("OMP_WAIT_POLICY=passive\0", 24)));
  // stderr is a pipe that is closed after a line.
  const ProcessResult piped = run_process({"bash", "-c",
                                           kTrain + " --config " + kTiny + " run.dir=" + dir +
                                               "2 train.steps=30 2>&1 | head -n 1; exit "
                                               "${PIPESTATUS[0]}"});
  INFO(piped.output);
  CHECK(piped.exit_code == 0);
  CHECK(fs::exists(dir + "2/checkpoint-30" + kWeights));
}
