// vmoba-encode, and training from what it wrote, as users meet them: the same losses as without, nothing done twice,
// kill -9, damage, several processes, weights that are gone.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <thread>

#include "core/random.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kTrain = bin_dir() + "/vmoba-train", kEncode = bin_dir() + "/vmoba-encode";
const std::string kTiny = fixtures() + "/train/tiny.yaml";
// Both sides of each clip, batches of two, dropped captions.
const std::vector<std::string> kSettings = {"--config",
                                            kTiny,
                                            "train.steps=12",
                                            "train.validate_every=6",
                                            "data.horizontal_flip=0.5",
                                            "train.flow.caption_dropout=0.3"};
constexpr int64_t kClips = 20, kCaptions = 11;  // ten clips from two sides; ten captions and the empty one

std::vector<std::string> command(const std::string& program, std::vector<std::string> extra) {
  std::vector<std::string> out = {program};
  out.insert(out.end(), kSettings.begin(), kSettings.end());
  out.insert(out.end(), extra.begin(), extra.end());
  return out;
}

ProcessResult encode(const std::string& cache, std::vector<std::string> extra = {}) {
  extra.push_back("cache.dir=" + cache);
  return run_process(command(kEncode, extra));
}

// "N entries were there, M made".
std::pair<int64_t, int64_t> counts(const ProcessResult& result) {
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  std::smatch match;
  REQUIRE(std::regex_search(result.output, match, std::regex("(\\d+) entries were there, (\\d+) made")));
  return {std::stoll(match[1]), std::stoll(match[2])};
}

std::vector<std::string> losses(const std::string& run_dir) {
  std::ifstream file(run_dir + "/metrics.jsonl");
  std::vector<std::string> out;
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json all = nlohmann::json::parse(line);
    out.push_back(all.at("loss").dump() + " " + all.at("grad_norm").dump());
  }
  return out;
}

ProcessResult train(const std::string& run_dir, std::vector<std::string> extra) {
  extra.push_back("run.dir=" + run_dir);
  return run_process(command(kTrain, extra));
}

const std::vector<std::string>& losses_without_cache() {
  static const std::vector<std::string> expected = [] {
    const TemporaryFolder folder;
    const ProcessResult result = train(folder.path(), {});
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    return losses(folder.path());
  }();
  return expected;
}

// Trains from a complete cache.
void require_same_losses(const std::string& cache, std::vector<std::string> extra = {}) {
  const TemporaryFolder folder;
  extra.insert(extra.end(), {"cache.dir=" + cache, "cache.mode=require"});
  const ProcessResult result = train(folder.path(), extra);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  REQUIRE(losses(folder.path()).size() == 12);
  CHECK(losses(folder.path()) == losses_without_cache());
}

std::vector<fs::path> shards_in(const std::string& dir) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(dir))
    if (entry.path().extension() == ".safetensors") out.push_back(entry.path());
  return out;
}

}  // namespace

TEST_CASE("training from the cache has the losses of training without, to the last bit") {
  const TemporaryFolder folder;
  CHECK(counts(encode(folder.path())) == std::pair(int64_t{0}, kClips + kCaptions));
  require_same_losses(folder.path());
  CHECK(counts(encode(folder.path())) == std::pair(kClips + kCaptions, int64_t{0}));
}

TEST_CASE("only what a changed setting or file touches is made again, and pruning removes the rest") {
  const TemporaryFolder folder;
  const std::string clips = folder.path() + "/clips", cache = folder.path() + "/cache";
  fs::copy(source_dir() + "/assets/clips", clips);
  const std::string data = "data.path=" + clips;
  CHECK(counts(encode(cache, {data})).second == kClips + kCaptions);
  // Another folder, the same contents.
  fs::rename(clips, clips + "2");
  CHECK(counts(encode(cache, {data + "2"})).second == 0);
  fs::rename(clips + "2", clips);
  fs::copy_file(clips + "/02_mirror_close.mp4", clips + "/01_mirror_in_dark_hall.mp4",
                fs::copy_options::overwrite_existing);
  CHECK(counts(encode(cache, {data})).second == 0);  // the same content as clip 2, which is there
  fs::copy_file(source_dir() + "/assets/clips/10_banded_mirror.txt", clips + "/02_mirror_close.txt",
                fs::copy_options::overwrite_existing);
  CHECK(counts(encode(cache, {data})).second == 0);  // a known caption
  std::ofstream(clips + "/02_mirror_close.txt") << "a new caption";
  CHECK(counts(encode(cache, {data})).second == 1);
  CHECK(counts(encode(cache, {data, "data.width=96"})).second == kClips - 2);  // two clips have one content now
  CHECK(counts(encode(cache, {data, "text.max_tokens=9"})).second == kCaptions - 0);
  const ProcessResult pruned = encode(cache, {data, "--prune"});
  CHECK(counts(pruned).second == 0);
  CHECK(contains(pruned.output, "pruned"));
  CHECK(counts(encode(cache, {data})).second == 0);
}

TEST_CASE("killed at random instants and run again, the cache is complete and its losses are the same") {
  const TemporaryFolder folder;
  vmoba::RandomStream random(5, "kill_encode", 0);
  for (int kill = 0; kill < 8; ++kill) {
    const pid_t pid = start_process(command(kEncode, {"cache.dir=" + folder.path() + "/cache", "cache.shard_mb=1"}),
                                    folder.path() + "/log");
    std::this_thread::sleep_for(std::chrono::milliseconds(50 + random.below(700)));
    ::kill(pid, SIGKILL);
    const int code = wait_process(pid);
    REQUIRE((code == 128 + SIGKILL || code == 0));
  }
  const auto [kept, made] = counts(encode(folder.path() + "/cache"));
  CHECK(kept + made == kClips + kCaptions);
  require_same_losses(folder.path() + "/cache");
}

TEST_CASE("SIGTERM writes what is made and leaves with 75") {
  const TemporaryFolder folder;
  const pid_t pid = start_process(command(kEncode, {"cache.dir=" + folder.path() + "/cache"}), folder.path() + "/log");
  while (!contains(read_text(folder.path() + "/log"), "captions 11/11"))
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  ::kill(pid, SIGTERM);
  const int code = wait_process(pid);
  INFO(read_text(folder.path() + "/log"));
  REQUIRE((code == 75 || code == 0));
  const auto [kept, made] = counts(encode(folder.path() + "/cache"));
  CHECK(kept >= kCaptions);
  CHECK(kept + made == kClips + kCaptions);
}

TEST_CASE("a damaged shard is encoded again, and training meanwhile does without it") {
  const TemporaryFolder folder;
  counts(encode(folder.path()));
  for (const fs::path& shard : shards_in(folder.path())) {
    std::string bytes = read_text(shard.string());
    bytes.back() = char(~bytes.back());
    std::ofstream(shard, std::ios::binary) << bytes;
  }
  {
    const TemporaryFolder run;
    const ProcessResult result = train(run.path(), {"cache.dir=" + folder.path()});
    INFO(result.output);
    REQUIRE(result.exit_code == 0);
    CHECK(contains(result.output, "is damaged and not used"));
    CHECK(losses(run.path()) == losses_without_cache());
  }
  const auto [kept, made] = counts(encode(folder.path()));
  CHECK(made >= 1);
  CHECK(kept + made == kClips + kCaptions);
  CHECK(counts(encode(folder.path())).second == 0);
  require_same_losses(folder.path());
}

TEST_CASE("several processes share the work, named by options or by their launcher") {
  const TemporaryFolder folder;
  const std::string cache = "cache.dir=" + folder.path() + "/cache";
  const pid_t other = start_process(command(kEncode, {cache, "--rank", "1", "--ranks", "3"}), folder.path() + "/log");
  const auto first = counts(run_process(command(kEncode, {cache, "--rank", "0", "--ranks", "3"})));
  REQUIRE(wait_process(other) == 0);
  const ProcessResult third =
      run_process(command(kEncode, {cache}), {"OMPI_COMM_WORLD_RANK=2", "OMPI_COMM_WORLD_SIZE=3"});
  CHECK(first.second == 7 + 4);
  CHECK(counts(third).second == 6 + 3);
  CHECK(counts(encode(folder.path() + "/cache")) == std::pair(kClips + kCaptions, int64_t{0}));
  require_same_losses(folder.path() + "/cache");
}

TEST_CASE("with a complete cache the text encoder is not read: its weights may be gone") {
  const TemporaryFolder folder;
  const std::string cache = folder.path() + "/cache", weights = folder.path() + "/umt5";
  fs::copy(fixtures() + "/model/umt5", weights, fs::copy_options::recursive);
  const std::vector<std::string> umt5 = {"text.type=umt5", "text.weights=" + weights, "text.max_tokens=48",
                                         "model.text_dim=24", "cache.dir=" + cache};
  const ProcessResult without = train(folder.path() + "/without", {umt5[0], umt5[1], umt5[2], umt5[3]});
  INFO(without.output);
  REQUIRE(without.exit_code == 0);
  counts(run_process(command(kEncode, umt5)));
  fs::remove_all(weights);
  const ProcessResult result = train(folder.path() + "/run", umt5);
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK_FALSE(contains(result.output, "loading the text encoder"));
  CHECK(losses(folder.path() + "/run") == losses(folder.path() + "/without"));
}

TEST_CASE("an image-to-video model's conditions come from the cache too") {
  const TemporaryFolder folder;
  const std::string cache = folder.path() + "/cache";
  const std::vector<std::string> i2v = {"model.task=i2v", "model.in_channels=36", "train.validate_every=0"};
  std::vector<std::string> cached = i2v;
  cached.insert(cached.end(), {"cache.dir=" + cache, "cache.mode=require"});
  // What a text-to-video model needs is not enough.
  counts(encode(cache));
  CHECK(train(folder.path() + "/early", cached).exit_code == 2);
  CHECK(counts(run_process(command(kEncode, cached))).second == kClips);
  const ProcessResult with = train(folder.path() + "/with", cached), without = train(folder.path() + "/without", i2v);
  INFO(with.output << without.output);
  REQUIRE((with.exit_code == 0 && without.exit_code == 0));
  CHECK(losses(folder.path() + "/with").size() == 12);
  CHECK(losses(folder.path() + "/with") == losses(folder.path() + "/without"));
}

TEST_CASE("bf16 latents take less room, and other bits") {
  const TemporaryFolder folder;
  counts(encode(folder.path() + "/fp32"));
  counts(encode(folder.path() + "/bf16", {"cache.latent_dtype=bf16"}));
  const auto bytes = [](const std::string& dir) {
    uintmax_t sum = 0;
    for (const fs::path& shard : shards_in(dir)) sum += fs::file_size(shard);
    return sum;
  };
  CHECK(bytes(folder.path() + "/bf16") < bytes(folder.path() + "/fp32"));
  const ProcessResult result = train(folder.path() + "/run", {"cache.dir=" + folder.path() + "/bf16",
                                                              "cache.mode=require", "cache.latent_dtype=bf16"});
  REQUIRE(result.exit_code == 0);
  CHECK(losses(folder.path() + "/run") != losses_without_cache());
}

TEST_CASE("clips with a random start are encoded while training") {
  const TemporaryFolder folder;
  const std::string random = "data.frame_extraction=random", cache = "cache.dir=" + folder.path() + "/cache";
  const ProcessResult encoded = run_process(command(kEncode, {random, cache}));
  CHECK(contains(encoded.output, "random start"));
  const ProcessResult with = train(folder.path() + "/with", {random, cache});
  const ProcessResult without = train(folder.path() + "/without", {random});
  INFO(with.output);
  REQUIRE((with.exit_code == 0 && without.exit_code == 0));
  CHECK(losses(folder.path() + "/with") == losses(folder.path() + "/without"));
  CHECK(contains(train(folder.path() + "/no", {random, cache, "cache.mode=require"}).output, "random start"));
}

TEST_CASE("exit codes and messages of vmoba-encode and of a missing cache") {
  const TemporaryFolder folder;
  struct Case {
    std::vector<std::string> arguments;
    int code;
    std::string says;
  };
  const Case cases[] = {
      {{kEncode, "--help"}, 0, "--prune"},
      {command(kEncode, {}), 2, "cache.dir"},
      {command(kEncode, {"cache.dir=" + folder.path() + "/c", "--rank", "2", "--ranks", "2"}), 2, "2 of 2"},
      {command(kEncode, {"cache.dir=" + folder.path() + "/c", "--rank", "0", "--ranks", "2", "--prune"}), 2, "--prune"},
      {command(kEncode, {"cache.dir=" + folder.path() + "/c", "--rank", "0"}), 2, "--ranks"},
      {command(kEncode, {"cache.dir=/proc/nowhere"}), 1, "/proc/nowhere"},
      {command(kEncode, {"cache.dir=" + folder.path() + "/c", "model.text_dim=64", "text.dim=63"}), 2, "text.dim"},
      {command(kTrain, {"cache.dir=" + folder.path() + "/none", "run.dir=" + folder.path() + "/r"}), 2, "vmoba-encode"},
  };
  for (const Case& c : cases) {
    const ProcessResult result = run_process(c.arguments);
    INFO(result.output);
    CHECK(result.exit_code == c.code);
    CHECK(contains(result.output, c.says));
  }
  fs::create_directories(folder.path() + "/empty");
  const ProcessResult result =
      train(folder.path() + "/r", {"cache.dir=" + folder.path() + "/empty", "cache.mode=require"});
  CHECK(result.exit_code == 2);
  CHECK(contains(result.output, "0 of 20 clips and 0 of 11 captions"));
}
