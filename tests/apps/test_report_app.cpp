// The report of a run as its users meet it: written while the run goes on, by a program of its own afterwards, and
// beside TensorBoard's events.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/messages.h"
#include "support/must_run.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

std::string train(const std::string& run_dir, const Strings& extra) {
  const Strings command = {bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml",
                           "run.dir=" + run_dir, "train.checkpoint_every=0"};
  return must_run(command + extra, {});
}

}  // namespace

TEST_CASE("a run keeps its report up to date: clips as trained on, samples, curves") {
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/run";
  const std::string said = train(run, {"train.steps=4", "train.checkpoint_every=2", "train.validate_every=2",
                                       "train.tensorboard=true", "sample.prompts=['<b>bold</b>', two]"});
  CHECK(contains(said, "report: " + run + "/report.html"));
  const std::string page = read_text(run + "/report.html");
  CHECK(contains(page, "<b>4 / 4</b><span>step</span>"));
  CHECK(contains(page, "<blockquote>&lt;b&gt;bold&lt;/b&gt;</blockquote>"));
  CHECK(contains(page, "data:video/mp4;base64,"));
  CHECK(read_text(run + "/samples/step-000004-1.txt") == "two\n");

  const nlohmann::json sheet = nlohmann::json::parse(read_text(run + "/contact_sheet/index.json"))["clips"];
  REQUIRE(sheet.size() == 10);
  for (const nlohmann::json& clip : sheet) {
    const std::string source = clip["source"], picture = read_text(run + "/contact_sheet/" + std::string(clip["file"]));
    CHECK(picture.starts_with("\xFF\xD8\xFF"));
    const std::string caption = read_text(fs::path(source).replace_extension(".txt").string());
    CHECK(caption.starts_with(clip["caption"].get<std::string>()));
    CHECK(clip["width"] == 64);
    CHECK(contains(page, fs::path(source).filename().string()));
  }
  // Three frames of 64 x 32 side by side, as another program reads them.
  const ProcessResult probed = run_process({"ffprobe", "-v", "error", "-show_entries", "stream=width,height", "-of",
                                            "csv=p=0", run + "/contact_sheet/000.jpg"});
  CHECK(probed.output == "192,32\n");

  // TensorBoard's own reader.
  const ProcessResult events =
      run_process({python(), source_dir() + "/tests/train/report/read_events.py", run + "/tensorboard"});
  REQUIRE(events.exit_code == 0);
  const nlohmann::json seen = nlohmann::json::parse(events.output.substr(events.output.find('{')));
  for (const char* tag : {"speed/step_s", "memory/gib", "train/loss"}) CHECK(seen["scalars"][tag].size() == 4);
  CHECK(seen["texts"]["samples/0/prompt"] == nlohmann::json({{2, "    <b>bold</b>"}, {4, "    <b>bold</b>"}}));
  CHECK(contains(seen["texts"]["configuration"][0][1], "\n    train:"));
  CHECK(seen["frames"]["samples/1/video"] == nlohmann::json({{2, 5}, {4, 5}}));  // GIFs in motion

  const ProcessResult result = run_process({bin_dir() + "/vmoba-report", run, folder.path() + "/none"});
  CHECK(result.exit_code == 2);
  CHECK(contains(result.output, "found no folder"));

  const std::string quiet = folder.path() + "/quiet";
  train(quiet, {"train.steps=1", "train.report=false"});
  CHECK_FALSE(fs::exists(quiet + "/report.html"));
  CHECK_FALSE(fs::exists(quiet + "/contact_sheet"));
  const ProcessResult compared =
      run_process({bin_dir() + "/vmoba-report", run, quiet, "--out", folder.path() + "/both.html"});
  INFO(compared.output);
  CHECK(compared.exit_code == 0);
  CHECK(contains(read_text(folder.path() + "/both.html"), "<td>train.steps</td><td>4</td><td>1</td>"));
}
