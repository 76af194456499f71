// vmoba-sample on a checkpoint of a tiny run: a playable file, the same for the same seed, clear errors.
#include <filesystem>

#include "support/catch.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kSample = VMOBA_BIN_DIR "/vmoba-sample";

std::string probe(const std::string& path, const std::string& entries) {
  return run_process({"ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames", "-show_entries",
                      "stream=" + entries, "-of", "csv=p=0", path})
      .output;
}

}  // namespace

TEST_CASE("a checkpoint samples to a video that plays") {
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/run";
  const ProcessResult trained =
      run_process({VMOBA_BIN_DIR "/vmoba-train", "--config", VMOBA_FIXTURES "/train/tiny.yaml", "run.dir=" + run,
                   "train.steps=2", "train.validate_every=2"});
  INFO(trained.output);
  REQUIRE(trained.exit_code == 0);
  CHECK(fs::exists(run + "/samples/step-000002-0.mp4"));
  const std::string checkpoint = run + "/checkpoint-2";
  const auto sample = [&](const std::string& name, std::vector<std::string> extra) {
    std::vector<std::string> command = {
        kSample, "--checkpoint", checkpoint, "--prompt", "a rocket", "--out", folder.path() + "/" + name};
    command.insert(command.end(), extra.begin(), extra.end());
    const ProcessResult result = run_process(command);
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    return folder.path() + "/" + name;
  };
  const std::string one = sample("one.mp4", {"--seed", "5"});
  CHECK(probe(one, "codec_name,width,height,r_frame_rate,nb_read_frames") == "h264,64,32,8/1,5\n");
  CHECK(read_text(one) == read_text(sample("two.mp4", {"--seed", "5"})));
  CHECK(read_text(one) != read_text(sample("three.mp4", {"--seed", "6"})));
  CHECK(read_text(one) != read_text(sample("four.mp4", {"--seed", "5", "attention.backend=full", "--no-ema"})));
  sample("euler.mp4", {"sample.scheduler=euler", "--negative-prompt", "blurry"});
}

TEST_CASE("vmoba-sample says what is wrong") {
  const TemporaryFolder folder;
  const ProcessResult missing = run_process({kSample, "--checkpoint", folder.path(), "--prompt", "x"});
  CHECK(missing.exit_code == 2);
  CHECK(missing.output.find("--checkpoint") != std::string::npos);
  CHECK(run_process({kSample}).exit_code == 2);
}
