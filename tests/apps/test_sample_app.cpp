// vmoba-sample on a checkpoint of a tiny run: a playable file, the same for the same seed, clear errors.
#include <filesystem>

#include "support/catch.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kSample = bin_dir() + "/vmoba-sample";

std::string probe(const std::string& path, const std::string& entries) {
  return run_process({"ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames", "-show_entries",
                      "stream=" + entries, "-of", "csv=p=0", path})
      .output;
}

}  // namespace

TEST_CASE("a checkpoint samples to a video that plays") {
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/run";
  const ProcessResult trained = run_process({bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml",
                                             "run.dir=" + run, "train.steps=2", "train.validate_every=2"});
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

TEST_CASE("pretrained weights sample without a checkpoint, from given noise, and hand out their latents") {
  // The pretrained model is what a short run left behind.
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/run", weights = "model.weights=" + run + "/checkpoint-1/transformer";
  const ProcessResult trained = run_process({bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml",
                                             "run.dir=" + run, "train.steps=1", "train.ema.enabled=false"});
  INFO(trained.output);
  REQUIRE(trained.exit_code == 0);
  const auto latents = [&](const std::string& name, std::vector<std::string> command) {
    const std::string path = folder.path() + "/" + name;
    command.insert(command.begin(), kSample);
    command.insert(command.end(), {"--prompt", "a rocket", "--output-latents", path});
    const ProcessResult result = run_process(command);
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    return read_text(path);
  };
  const std::vector<std::string> from_config = {"--config", fixtures() + "/train/tiny.yaml", weights};
  const auto with = [&](std::vector<std::string> extra) {
    extra.insert(extra.begin(), from_config.begin(), from_config.end());
    return extra;
  };
  const std::string plain = latents("a.safetensors", from_config);
  CHECK(plain == latents("b.safetensors", {"--checkpoint", run + "/checkpoint-1"}));
  CHECK_FALSE(fs::exists("sample.mp4"));  // no video was asked for
  // The file that was written is a file of starting latents.
  const std::string again = latents("c.safetensors", with({"--latents", folder.path() + "/a.safetensors"}));
  CHECK(again != plain);
  CHECK(again == latents("d.safetensors", with({"--latents", folder.path() + "/a.safetensors", "--seed", "9"})));
  // Two experts of the same weights are one model; a guidance of the second one's own is not.
  const std::string of_both = "weights: '" + run + "/checkpoint-1/transformer'";
  const std::vector<std::string> experts = {"model.weights=''",
                                            "experts=[{" + of_both + ", until_timestep: 900}, {" + of_both + "}]"};
  CHECK(plain == latents("e.safetensors", with(experts)));
  CHECK(plain != latents("f.safetensors", with({experts[0], experts[1], "experts[1].guidance=4"})));
}

TEST_CASE("an image becomes the first frame") {
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/run";
  const ProcessResult trained =
      run_process({bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml", "run.dir=" + run,
                   "train.steps=1", "train.validate_every=1", "model.task=i2v", "model.in_channels=36"});
  INFO(trained.output);
  REQUIRE(trained.exit_code == 0);
  CHECK(fs::exists(run + "/samples/step-000001-0.mp4"));  // its first frame came from a clip
  const auto sample = [&](std::vector<std::string> extra) {
    std::vector<std::string> command = {kSample,
                                        "--checkpoint",
                                        run + "/checkpoint-1",
                                        "--prompt",
                                        "a rocket",
                                        "--out",
                                        folder.path() + "/out.mp4",
                                        "--output-latents",
                                        folder.path() + "/latents.safetensors"};
    command.insert(command.end(), extra.begin(), extra.end());
    return run_process(command);
  };
  const std::string clips = source_dir() + "/assets/clips/";
  const ProcessResult one = sample({"--image", clips + "03_red_lift_far.mp4"});
  INFO(one.output);
  REQUIRE(one.exit_code == 0);
  CHECK(probe(folder.path() + "/out.mp4", "width,height,nb_read_frames") == "64,32,5\n");
  const std::string latents = read_text(folder.path() + "/latents.safetensors");
  REQUIRE(sample({"--image", clips + "07_gold_hexagons.mp4"}).exit_code == 0);
  CHECK(latents != read_text(folder.path() + "/latents.safetensors"));
  const ProcessResult none = sample({});
  CHECK(none.exit_code == 2);
  CHECK(none.output.find("first frame") != std::string::npos);
  CHECK(sample({"--image", folder.path() + "/nothing.png"}).exit_code == 2);
}
