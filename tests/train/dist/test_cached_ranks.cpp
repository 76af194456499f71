// Encoding and training from what was encoded, as several ranks.
#include "support/messages.h"
#include "support/paths.h"
#include "train/dist/train_job.h"

using namespace vmoba::test;

TEST_CASE("from a cache that two ranks wrote, one rank and two log the losses of training without") {
  const TemporaryFolder folder;
  const std::string without = folder.path() + "/without", cache = "cache.dir=" + folder.path() + "/cache";
  std::vector<std::string> settings = {"train.steps=4", "train.micro_batch=1", "train.checkpoint_every=0",
                                       "data.horizontal_flip=0.5", "train.flow.caption_dropout=0.3"};
  train(0, kTiny, without, settings);
  settings.insert(settings.end(), {cache, "cache.mode=require"});
  std::vector<std::string> encode = mpirun(2);
  encode.insert(encode.end(), {bin_dir() + "/vmoba-encode", "--config", kTiny});
  encode.insert(encode.end(), settings.begin(), settings.end());
  const ProcessResult encoded = run_process(encode, kEnvironment);
  INFO(encoded.output);
  REQUIRE(encoded.exit_code == 0);
  // Ten clips from two sides, ten captions and the empty one: each rank makes its part.
  for (const char* made : {"15", "16"})
    CHECK(contains(encoded.output, "0 entries were there, " + std::string(made) + " made"));
  for (const int ranks : {0, 2}) {
    const std::string dir = folder.path() + "/" + std::to_string(ranks);
    train(ranks, kTiny, dir, settings);
    CHECK(metrics(dir)[0]["loss"] == metrics(without)[0]["loss"]);
    check_same_metrics(without, dir, ranks == 0 ? 0 : 1e-5);
  }
}
