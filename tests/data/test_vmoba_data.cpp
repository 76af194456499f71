// vmoba-data as its users meet it: the plan as text and JSON, the decode rate, exit codes.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

const std::string kData = bin_dir() + "/vmoba-data";
const std::string kTiny = fixtures() + "/train/tiny.yaml";
const std::string kClips = source_dir() + "/assets/clips";

ProcessResult run_data(const std::vector<std::string>& extra) {
  std::vector<std::string> words = {kData, "--config", kTiny};
  words.insert(words.end(), extra.begin(), extra.end());
  return run_process(words);
}

// Two shipped clips, one of them without a caption, and two files that are no video.
void make_folder(const std::string& root) {
  for (const char* name : {"/02_mirror_close.mp4", "/02_mirror_close.txt", "/07_gold_hexagons.mp4"})
    fs::copy_file(kClips + name, root + name);
  std::ofstream(root + "/empty.mp4");
  std::ofstream(root + "/noise.mp4") << "noise";
}

// Log lines go to stderr, which run_process keeps together with stdout.
json object_in(const std::string& output) {
  const size_t begin = output.find("\n{\n") == std::string::npos ? output.find('{') : output.find("\n{\n") + 1;
  REQUIRE(begin != std::string::npos);
  return json::parse(output.substr(begin, output.rfind('}') + 1 - begin));
}

}  // namespace

TEST_CASE("--json prints clips, dropped files with reasons, and buckets") {
  const TemporaryFolder folder;
  make_folder(folder.path());
  const ProcessResult result = run_data({"data.path=" + folder.path(), "--json"});
  REQUIRE(result.exit_code == 0);
  const json plan = object_in(result.output);
  REQUIRE(plan.at("clips").size() == 2);
  const json& clip = plan["clips"][0];
  CHECK(clip.at("path") == folder.path() + "/02_mirror_close.mp4");
  CHECK(clip.at("caption").get<std::string>().size() > 10);
  CHECK(clip.at("frames") == 5);
  CHECK(clip.at("source_width") == 256);
  CHECK(clip.at("source_height") == 144);
  CHECK(clip.at("tokens") == 2 * 2 * 4);  // 5x32x64 pixels, codec 4x8x8, patch 1x2x2
  REQUIRE(plan.at("buckets").size() == 1);
  CHECK(plan["buckets"][0].at("clips") == 2);
  REQUIRE(plan.at("dropped").size() == 2);
  CHECK(plan["dropped"][0].at("path") == folder.path() + "/empty.mp4");
  CHECK(contains(plan["dropped"][0].at("reason"), "empty:"));
  CHECK(contains(plan["dropped"][1].at("reason"), "corrupt:"));
}

TEST_CASE("The plan for people names buckets, clips and drops") {
  const TemporaryFolder folder;
  make_folder(folder.path());
  const ProcessResult result = run_data({"data.path=" + folder.path(), "run.log_level=error"});
  REQUIRE(result.exit_code == 0);
  CHECK(contains(result.output, "2 clips in 1 buckets, 2 dropped"));
  CHECK(contains(result.output, "02_mirror_close.mp4 [256x144,"));
  CHECK(contains(result.output, "16 tokens"));
  CHECK(contains(result.output, "/empty.mp4: empty: the file has 0 bytes"));
  CHECK(contains(result.output, "/noise.mp4: corrupt:"));
  CHECK(contains(result.output, "1 clips have no caption"));
}

TEST_CASE("--bench measures the longest file and the sample stream") {
  const TemporaryFolder folder;
  make_folder(folder.path());
  const ProcessResult result = run_data({"data.path=" + folder.path(), "--bench"});
  REQUIRE(result.exit_code == 0);
  CHECK(contains(result.output, "02_mirror_close.mp4 (256x144, 138 frames, 2 threads)"));
  CHECK(contains(result.output, "decode"));
  CHECK(contains(result.output, "-f null -"));
  CHECK(contains(result.output, "(2 samples: open, seek, decode, crop, scale; 2 threads)"));
}

TEST_CASE("What cannot be planned exits with 2 and says what to change") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::vector<std::string>& extra, const std::string& word) {
    const ProcessResult result = run_data(extra);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, word));
  };
  refused({"data.path=" + folder.path() + "/none"}, "data.path");
  refused({"data.path="}, "data.path");
  refused({"data.path=" + folder.path()}, "no video or image");
  std::ofstream(folder.path() + "/noise.mp4") << "noise";
  refused({"data.path=" + folder.path()}, "noise.mp4: corrupt:");
  refused({"data.path=" + folder.path(), "--bench"}, "noise.mp4: corrupt:");
  refused({"data.height=33"}, "data.height");
  refused({"data.pth=x"}, "path");
  refused({"data.fps=0"}, "data.fps");
  refused({"--json", "--bench"}, "--bench");
  refused({"--nonsense"}, "nonsense");
  CHECK(run_process({kData, "--config", folder.path() + "/none.yaml"}).exit_code == 2);
  CHECK(run_process({kData, "--help"}).exit_code == 0);
}
