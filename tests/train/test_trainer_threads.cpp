// Runs in this process, with all their threads: decoding, checkpoints, heartbeat, validation. For the program with
// ThreadSanitizer; the last case leaves the process stopped.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "config/root_config.h"
#include "support/catch.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/trainer.h"

using namespace vmoba;
namespace fs = std::filesystem;

namespace {

RootConfig config_of(const std::string& run_dir, std::vector<std::string> extra) {
  extra.insert(extra.end(), {"run.dir=" + run_dir, "data.decode_threads=3", "run.log_level=warning"});
  return load_root_config(test::fixtures() + "/train/tiny.yaml", extra);
}

int run(const RootConfig& config, const std::string& from = "") {
  train::dist::World world;
  train::Trainer trainer(config, world);
  return trainer.run({from});
}

}  // namespace

TEST_CASE("a run decodes, trains, validates and saves at once, and goes on") {
  const test::TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const std::vector<std::string> keys = {"train.checkpoint_every=2", "train.validate_every=3", "validate.holdout=0.3",
                                         "validate.every=2", "train.optimizer.schedule=constant"};
  std::vector<std::string> first = keys, second = keys;
  first.push_back("train.steps=6");
  second.push_back("train.steps=8");
  CHECK(run(config_of(dir, first)) == 0);
  CHECK(fs::exists(dir + "/checkpoint-6"));
  CHECK(run(config_of(dir, second), "latest") == 0);
  CHECK(fs::exists(dir + "/checkpoint-8"));
}

TEST_CASE("a signal from outside the loop stops it") {
  const test::TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  std::thread sender([&] {
    while (!fs::exists(dir + "/checkpoint-2")) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ::kill(::getpid(), SIGTERM);
  });
  CHECK(run(config_of(dir, {"train.steps=100000", "train.checkpoint_every=2"})) == 75);
  sender.join();
}
