// Ranks that are stopped where one of them has no samples: all leave together, and the state before the step is saved.
#include <chrono>
#include <filesystem>

#include "support/messages.h"
#include "support/metrics.h"
#include "support/paths.h"
#include "train/dist/rank_job.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

TEST_CASE("a stop while the storage is away saves, whatever the ranks share") {
  for (const std::string shared : {"parallel.sequence=2", "parallel.shard=2", "parallel.data=2"}) {
    INFO(shared);
    const TemporaryFolder folder;
    const std::string dir = folder.path() + "/run", clips = folder.path() + "/clips";
    fs::copy(source_dir() + "/assets/clips", clips, fs::copy_options::recursive);
    Job job(2, dir,
            {shared, "data.path=" + clips, "data.patience_s=3600", "run.grace_s=20", "train.checkpoint_every=100000"});
    job.wait_for_steps(3);
    fs::rename(clips, clips + ".away");
    job.wait_until([&] { return contains(job.output(), "waiting for the storage"); });
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    ::kill(job.ranks().at(1), SIGTERM);
    CHECK(job.end(30) == 75);
    const int64_t done = metrics(dir).back()["step"];
    INFO(job.output());
    CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(done)));
    fs::rename(clips + ".away", clips);
    train(2, kTiny, dir,
          {shared, "data.path=" + clips, "--resume", "latest", "train.steps=" + std::to_string(done + 1),
           "train.optimizer.schedule=constant"});
  }
}

TEST_CASE("data that are gone for good end ranks that share samples with their state saved") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run", clips = folder.path() + "/clips";
  fs::copy(source_dir() + "/assets/clips", clips, fs::copy_options::recursive);
  Job job(2, dir,
          {"parallel.sequence=2", "data.path=" + clips, "data.patience_s=1", "data.max_failed=1",
           "train.checkpoint_every=100000"});
  job.wait_for_steps(3);
  fs::rename(clips, clips + ".away");
  CHECK(job.end(60) == 2);
  INFO(job.output());
  CHECK(contains(job.output(), "is saved: mend the storage or the files"));
  const int64_t done = metrics(dir).back()["step"];
  CHECK(fs::exists(dir + "/checkpoint-" + std::to_string(done)));
}
