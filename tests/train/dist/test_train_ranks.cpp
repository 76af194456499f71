// vmoba-train as several ranks, as its users meet it: same losses as one process, signals, deaths, hangs, exit codes.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <sstream>
#include <thread>

#include "support/catch.h"
#include "support/messages.h"
#include "support/metrics.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/dist/rank_job.h"
#include "train/dist/train_job.h"

using namespace vmoba::test;
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

namespace {

const std::string kExperts = "experts=[{until_timestep: 750}, {}]";

}  // namespace

TEST_CASE("the held-out loss does not depend on who computes it") {
  const TemporaryFolder folder;
  // Weights that stay as they were drawn, so that only the held-out loss is compared.
  const auto losses = [&](int ranks, const std::vector<std::string>& sharing) {
    const std::string dir = folder.path() + "/" + std::to_string(ranks) + (sharing.empty() ? "" : sharing.front());
    std::vector<std::string> settings = {
        "train.steps=1",        "train.global_batch=6",           "train.micro_batch=1",
        "train.optimizer.lr=0", "attention.dense_warmup_steps=0", "validate.holdout=0.4",
        "validate.clips=4",     "validate.sigmas=[0.2,0.9]",      "train.checkpoint_every=0"};
    settings.insert(settings.end(), sharing.begin(), sharing.end());
    train(ranks, kTiny, dir, settings);
    const nlohmann::json record = metrics(dir).back();
    return std::vector<double>{record.at("val_loss"), record.at("val_loss_by_sigma").at("0.2"),
                               record.at("val_loss_by_sigma").at("0.9")};
  };
  const std::vector<double> alone = losses(0, {});
  CHECK(losses(2, {}) == alone);
  CHECK(losses(3, {}) == alone);                    // 4 clips of 3 ranks
  CHECK(losses(3, {"parallel.shard=3"}) == alone);  // who has no clip left keeps in step
  const std::vector<double> shared = losses(2, {"parallel.sequence=2"});
  for (size_t i = 0; i < alone.size(); ++i) CHECK(std::abs(shared[i] - alone[i]) <= 1e-5 * alone[i]);
}

TEST_CASE("one and two ranks of the quickstart log the same losses") {
  const TemporaryFolder folder;
  const std::vector<std::string> few = {"train.steps=8", "train.global_batch=4", "train.validate_every=0"};
  train(0, kQuickstart, folder.path() + "/one", few);
  const ProcessResult two = train(2, kQuickstart, folder.path() + "/two", few);
  // Batches of 4 and of 2 x 2 samples: products of other sizes round differently in fp32 (6e-8 per operation).
  check_same_metrics(folder.path() + "/one", folder.path() + "/two", 1e-5);
  CHECK(contains(two.output, "[rank 0] rank 0 of 2 (mpirun)"));
  CHECK(contains(two.output, "[rank 1] rank 1 of 2 (mpirun)"));
  CHECK_FALSE(contains(two.output, "[rank 1] step"));
}

TEST_CASE("samples, noise and timesteps do not depend on the number of ranks") {
  const TemporaryFolder folder;
  const std::vector<std::string> few = {"train.steps=3", "train.micro_batch=1", "train.checkpoint_every=0"};
  const std::string one = folder.path() + "/one";
  train(0, kTiny, one, few);
  for (const int ranks : {1, 2, 4}) {
    const std::string dir = folder.path() + "/" + std::to_string(ranks);
    train(ranks, kTiny, dir, few);
    // The first loss is a sum over samples computed one by one, in their order: not a bit differs.
    CHECK(metrics(dir)[0]["loss"] == metrics(one)[0]["loss"]);
    check_same_metrics(one, dir, 1e-5);
  }
}

TEST_CASE("two experts on several ranks are those of one process, whichever rank holds whose samples") {
  const TemporaryFolder folder;
  struct Mode {
    int ranks;
    std::vector<std::string> keys;
  };
  const std::vector<Mode> modes = {
      {2, {}}, {2, {"parallel.shard=2"}}, {4, {"parallel.shard=2", "parallel.sequence=2"}}};
  // Two samples a step: at times both train one expert, at times each rank trains another; and two passes a step.
  for (const int batch : {2, 4}) {
    const std::string one = folder.path() + "/one-" + std::to_string(batch);
    const std::vector<std::string> few = {"train.steps=8", "train.global_batch=" + std::to_string(batch),
                                          "train.micro_batch=1", "train.checkpoint_every=0", kExperts};
    train(0, kTiny, one, few);
    for (size_t m = 0; m < modes.size(); ++m) {
      const std::string dir = fmt::format("{}/{}-{}", folder.path(), batch, m);
      std::vector<std::string> keys = few;
      keys.insert(keys.end(), modes[m].keys.begin(), modes[m].keys.end());
      INFO("batch " << batch << ", " << modes[m].ranks << " ranks, way " << m);
      train(modes[m].ranks, kTiny, dir, keys);
      check_same_metrics(one, dir, 1e-5);
      for (size_t i = 0; i < 8; ++i) {
        const nlohmann::json a = metrics(one)[i], b = metrics(dir)[i];
        for (const char* key : {"grad_norm_high_noise", "grad_norm_low_noise"})
          CHECK(std::abs(double(a[key]) - double(b[key])) <= 1e-5 * double(a["grad_norm"]));
      }
    }
  }
  int64_t only_one = 0, both = 0;
  for (const nlohmann::json& step : metrics(folder.path() + "/one-2"))
    (double(step["grad_norm_high_noise"]) * double(step["grad_norm_low_noise"]) > 0 ? both : only_one) += 1;
  CHECK(only_one > 0);
  CHECK(both > 0);
}

TEST_CASE("adapters of two experts whose frozen bases ranks hold together are those of one process") {
  const TemporaryFolder folder;
  const std::vector<std::string> few = {"train.steps=6", "train.global_batch=2", "train.micro_batch=1",
                                        "train.checkpoint_every=0", kExperts};
  const std::string base = folder.path() + "/base", one = folder.path() + "/one", two = folder.path() + "/two";
  train(0, kTiny, base, few);  // the last map of random weights is zero, and so would be all gradients
  std::vector<std::string> lora = few;
  lora.insert(lora.end(), {"lora.rank=2", "experts[0].weights=" + base + "/checkpoint-6/transformer",
                           "experts[1].weights=" + base + "/checkpoint-6/transformer_2"});
  train(0, kTiny, one, lora);
  lora.push_back("parallel.shard=2");
  train(2, kTiny, two, lora);
  check_same_metrics(one, two, 1e-5);
  CHECK(double(metrics(one)[5]["grad_norm"]) > 0);
}

TEST_CASE("the same ranks twice give the same bytes") {
  const TemporaryFolder folder;
  std::vector<std::string> weights;
  for (const char* name : {"/a", "/b"}) {
    train(2, kTiny, folder.path() + name, {"train.steps=10"});
    weights.push_back(
        read_text(folder.path() + name + "/checkpoint-10/transformer/diffusion_pytorch_model.safetensors"));
  }
  REQUIRE_FALSE(weights[0].empty());
  CHECK(weights[0] == weights[1]);
}

TEST_CASE("a signal to any rank saves and ends all; the run goes on exactly, with another number of ranks too") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  Job job(2, dir, {});
  job.wait_for_steps(4);
  ::kill(job.ranks().at(1), SIGTERM);
  CHECK(job.end(30) == 75);
  const std::string output = job.output();
  CHECK(contains(output, "stopped by signal 15"));
  const auto before = metrics(dir);
  const int64_t done = before.back()["step"];
  CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(done)));
  fs::copy(dir, dir + "-copy", fs::copy_options::recursive);
  const std::string until = "train.steps=" + std::to_string(done + 4);
  for (const int ranks : {2, 1}) {
    const std::string from = ranks == 2 ? dir : dir + "-copy";
    train(ranks, kTiny, from, {"--resume", "latest", until, "train.optimizer.schedule=constant"});
  }
  check_same_metrics(dir, dir + "-copy", 1e-5);
}

TEST_CASE("ranks that hold the training state together log the losses of one process, and validate") {
  const TemporaryFolder folder;
  const std::vector<std::string> few = {"train.steps=5", "train.checkpoint_every=3", "train.validate_every=5"};
  for (const bool lora : {false, true}) {
    const std::string base = folder.path() + (lora ? "/lora-" : "/full-");
    const auto with = [&](std::vector<std::string> extra) {
      extra.insert(extra.end(), few.begin(), few.end());
      // Beside trained weights: the last map of random ones is zero, and so would be all gradients.
      if (lora)
        extra.insert(extra.end(),
                     {"lora.rank=2", "model.weights=" + folder.path() + "/full-one/checkpoint-5/transformer"});
      return extra;
    };
    train(0, kTiny, base + "one", with({}));
    struct Mode {
      int ranks;
      std::string key;
    };
    for (const Mode& mode :
         {Mode{2, "parallel.shard=2"}, Mode{2, "parallel.sequence=2"}, Mode{4, "parallel.shard=2"}}) {
      if (lora && mode.ranks == 4) continue;
      INFO(mode.ranks << " ranks, " << mode.key << (lora ? ", LoRA" : ""));
      const std::string dir = base + std::to_string(mode.ranks) + mode.key;
      train(mode.ranks, kTiny, dir, with({mode.key}));
      check_same_metrics(base + "one", dir, 1e-5);
      CHECK(fs::exists(dir + "/samples/step-000005-0.mp4"));
      CHECK(fs::exists(dir + "/checkpoint-3"));
      CHECK(fs::exists(dir + "/checkpoint-5"));
    }
  }
}

TEST_CASE("a run goes on with other ranks that hold its state in another way") {
  const TemporaryFolder folder;
  const std::string begun = folder.path() + "/begun", batch = "train.global_batch=6", micro = "train.micro_batch=1";
  train(2, kTiny, begun, {"parallel.shard=2", batch, micro, "train.steps=4", "train.optimizer.schedule=constant"});
  struct Mode {
    int ranks;
    std::string key;
  };
  for (const Mode& mode : {Mode{0, "parallel.shard=1"}, Mode{3, "parallel.shard=1"}, Mode{3, "parallel.shard=3"}}) {
    const std::string dir = folder.path() + "/on-" + std::to_string(mode.ranks) + mode.key;
    fs::copy(begun, dir, fs::copy_options::recursive);
    train(mode.ranks, kTiny, dir,
          {"--resume", "latest", mode.key, batch, micro, "train.steps=7", "train.optimizer.schedule=constant"});
    check_same_metrics(folder.path() + "/on-0parallel.shard=1", dir, 1e-5);
  }
}

TEST_CASE("a full disk on one rank ends the job with its reason; older checkpoints go on") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const std::vector<std::string> keys = {"parallel.shard=2", "train.checkpoint_every=2"};
  train(2, kTiny, dir, {"parallel.shard=2", "train.checkpoint_every=2", "train.steps=2"});
  std::vector<std::string> command =
      train_command(1, kTiny, dir, {"--resume", "latest", keys[0], keys[1], "train.steps=100"});
  // The same program once more as the second rank, which can write no file beyond 64 blocks.
  std::string limited = "trap '' XFSZ; ulimit -f 64; exec";
  for (size_t i = size_t(std::find(command.begin(), command.end(), kTrain) - command.begin()), n = command.size();
       i < n; ++i)
    limited += " " + command[i];
  command.insert(command.end(), {":", "-n", "1", "sh", "-c", limited});
  const ProcessResult result =
      run_process(command, {"OMP_NUM_THREADS=1", "OMPI_MCA_btl=tcp,self"});  // shared memory is a file too
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(contains(result.output, "rank 1: expected to write"));
  CHECK(contains(result.output, "File too large"));
  CHECK(fs::exists(dir + "/checkpoint-2"));
  CHECK_FALSE(fs::exists(dir + "/checkpoint-4"));
  train(2, kTiny, dir, {"--resume", "latest", keys[0], keys[1], "train.steps=4"});
  CHECK(fs::exists(dir + "/checkpoint-4"));
}

namespace {

int64_t newest_checkpoint(const std::string& run_dir) {
  static const std::regex name(R"(checkpoint-(\d+))");
  int64_t newest = 0;
  for (const auto& entry : fs::directory_iterator(run_dir)) {
    std::smatch found;
    const std::string text = entry.path().filename().string();
    if (std::regex_match(text, found, name)) newest = std::max<int64_t>(newest, std::stol(found[1]));
  }
  return newest;
}

// Kills random ranks at random moments; every time the newest checkpoint must load and go on.
void check_kills(int kills) {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  std::mt19937 random(5);
  for (int i = 0; i < kills; ++i) {
    const int64_t from = fs::exists(dir) ? newest_checkpoint(dir) : 0;
    INFO("kill " << i << ", from step " << from);
    Job job(2, dir, {"--resume", "latest", "parallel.shard=2", "train.checkpoint_every=1"});
    job.wait_until([&] { return fs::exists(dir) && newest_checkpoint(dir) > from; });
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 200));
    ::kill(job.ranks().at(int(random() % 2)), SIGKILL);
    CHECK(job.end(60) != 0);
    if (from > 0) CHECK(contains(job.output(), "checkpoint-" + std::to_string(from) + " at step"));
  }
  const int64_t done = newest_checkpoint(dir);
  train(0, kTiny, dir, {"--resume", "latest", "train.steps=" + std::to_string(done + 1)});
  CHECK(metrics(dir).back()["step"] == done + 1);
}

}  // namespace

TEST_CASE("a rank killed at any moment leaves a newest checkpoint that loads") {
  check_kills(6);
}

TEST_CASE("a rank killed at any moment, a hundred times", "[slow]") {
  check_kills(100);
}

TEST_CASE("a rank that dies ends the job; the newest checkpoint goes on") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  Job job(3, dir, {"train.global_batch=6", "train.micro_batch=1"});
  job.wait_for_steps(7);
  ::kill(job.ranks().at(2), SIGKILL);
  const int code = job.end(60);
  CHECK(code != 0);
  CHECK(code != 75);
  const int64_t done = metrics(dir).back()["step"];
  train(
      3, kTiny, dir,
      {"--resume", "latest", "train.global_batch=6", "train.micro_batch=1", "train.steps=" + std::to_string(done + 2)});
  CHECK(metrics(dir).back()["step"] == done + 2);
}

TEST_CASE("a rank that hangs ends the job, which names it") {
  const TemporaryFolder folder;
  for (const int hanging : {0, 1}) {
    const std::string dir = folder.path() + "/run" + std::to_string(hanging);
    Job job(2, dir, {"parallel.timeout_s=2"});
    job.wait_for_steps(3);
    ::kill(job.ranks().at(hanging), SIGSTOP);
    CHECK(job.end(40) == 1);
    const std::string output = job.output();
    INFO(output);
    CHECK(contains(output, "rank " + std::to_string(hanging) + " on "));
    CHECK((contains(output, "missing") || contains(output, "silent")));
    CHECK(contains(output, "--resume latest"));
  }
}

namespace {

// A hidden case of test_dist that ends its job, within half a minute.
std::string run_failing_case(int ranks, const std::string& tag) {
  std::vector<std::string> command = mpirun(ranks);
  command.insert(command.end(), {bin_dir() + "/../tests/test_dist", tag});
  const Clock::time_point start = Clock::now();
  const ProcessResult result = run_process(command, kEnvironment);
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(std::chrono::duration<double>(Clock::now() - start).count() < 30);
  return result.output;
}

}  // namespace

TEST_CASE("an operation on the device that one rank never begins ends the job, which names that rank") {
  for (const int ranks : {2, 3}) {
    const std::string output = run_failing_case(ranks, "[.stalled]");
    INFO(output);
    CHECK(contains(output, "fake sum has waited for other ranks"));
    CHECK(contains(output, "these ranks are missing: rank " + std::to_string(ranks - 1) + " on "));
    CHECK(contains(output, "in step 7: computing"));
    CHECK(contains(output, "behind by 1 on the device"));
  }
}

TEST_CASE("a device that does not answer neither hides a stopped rank nor keeps the job alive") {
  const std::string stopped = run_failing_case(2, "[.stopped]");
  INFO(stopped);
  CHECK(contains(stopped, "found 1 rank(s) silent"));
  CHECK(contains(stopped, "rank 1 on "));
  const std::string unanswered = run_failing_case(2, "[.unanswered]");
  INFO(unanswered);
  CHECK(contains(unanswered, "expected the device to answer within"));
}

TEST_CASE("links are measured, and the dry run for many ranks takes the measurement") {
  const TemporaryFolder folder;
  const std::string file = folder.path() + "/comm.json";
  const std::vector<std::string> bench = {bin_dir() + "/vmoba-bench",
                                          "comm",
                                          "--device",
                                          "cpu",
                                          "--most-bytes",
                                          "1048576",
                                          "--repeats",
                                          "3",
                                          "--json",
                                          file};
  std::vector<std::string> command = mpirun(2);
  command.insert(command.end(), bench.begin(), bench.end());
  const ProcessResult two = run_process(command, kEnvironment);
  INFO(two.output);
  REQUIRE(two.exit_code == 0);
  CHECK(contains(two.output, "2 ranks on 1 host, CPU (mpi)"));
  const auto json = nlohmann::json::parse(read_text(file));
  REQUIRE(json["operations"].size() == 4);
  for (const auto& operation : json["operations"]) {
    CHECK(operation["gb_per_s"].get<double>() > 0);
    CHECK(operation["sizes"].size() == 5);  // 4 KiB to 1 MiB
  }
  const std::vector<std::string> dry = {kTrain, "--config", kTiny, "--dry-run", "--ranks", "8", "--comm", file};
  const ProcessResult planned = run_process(dry, kEnvironment);
  INFO(planned.output);
  CHECK(planned.exit_code == 0);
  CHECK(contains(planned.output, "inside a host measured with 2 mpi ranks"));
  CHECK(contains(planned.output, "* data parallel"));
  CHECK(contains(planned.output, "everything that a run needs is there"));

  const ProcessResult one = run_process(bench, kEnvironment);
  INFO(one.output);
  CHECK(one.exit_code == 0);
  CHECK(contains(one.output, "one rank exchanges nothing"));
  const ProcessResult refused = run_process(dry, kEnvironment);  // `file` is now of one rank
  CHECK(refused.exit_code == 2);
  CHECK(contains(refused.output, "at least 2 ranks"));
  CHECK(run_process({kTrain, "--config", kTiny, "--ranks", "8"}, kEnvironment).exit_code == 2);
}

TEST_CASE("a rank that throws ends the job and says where and why") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const ProcessResult result =
      run_process(train_command(2, kTiny, dir,
                                {"train.optimizer.lr=1e30", "train.optimizer.warmup_steps=0",
                                 "train.optimizer.max_grad_norm=0", "train.checkpoint_every=1"}),
                  kEnvironment);
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(contains(result.output, "expected a finite loss"));
  CHECK(contains(result.output, "failed in step"));
}

TEST_CASE("exit codes and messages for ranks that cannot work together") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  struct Case {
    int ranks;
    std::vector<std::string> extra, environment;
    std::string says;
  };
  const Case cases[] = {
      {3, {}, {}, "use 3 or 6"},
      {2, {"parallel.data=3"}, {}, "start 3 ranks"},
      {0, {}, {"RANK=0", "WORLD_SIZE=4"}, "mpirun -n 4"},
  };
  for (const Case& c : cases) {
    std::vector<std::string> environment = kEnvironment;
    environment.insert(environment.end(), c.environment.begin(), c.environment.end());
    const ProcessResult result = run_process(train_command(c.ranks, kTiny, dir, c.extra), environment);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, c.says));
  }
  CHECK_FALSE(fs::exists(dir));
}
