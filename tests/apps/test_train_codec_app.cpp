// vmoba-train-codec as a user runs it.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <sstream>
#include <thread>

#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

namespace fs = std::filesystem;
using vmoba::test::contains;
using vmoba::test::ProcessResult;
using vmoba::test::run_process;

namespace {

const std::string kClips = vmoba::test::source_dir() + "/assets/quickstart.jsonl";

std::vector<std::string> command(const std::string& out, const std::vector<std::string>& more) {
  std::vector<std::string> all = {vmoba::test::bin_dir() + "/vmoba-train-codec"};
  const std::string small =
      " --device cpu --frames 5 --crop 32 --batch 2 --height 48 --width 80 --encoder-width 8 "
      "--decoder-width 8 --decoder-blocks 1 --fine-width 8 --fine-blocks 1";
  std::istringstream words("--data " + std::string(kClips) + " --out " + out + small);
  for (std::string word; words >> word;) all.push_back(word);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace

TEST_CASE("vmoba-train-codec writes a file and says how good it is") {
  const vmoba::test::TemporaryFolder folder;
  const std::string out = folder.path() + "/codec.safetensors";
  const ProcessResult result =
      run_process(command(out, {"--steps", "3", "--validation", kClips, "--validation-clips", "2"}));
  INFO(result.output);
  CHECK(result.exit_code == 0);
  CHECK(contains(result.output, "dB on held-out clips"));
  CHECK(contains(result.output, "2 held out"));
  CHECK(fs::file_size(out) > 10'000);
}

TEST_CASE("a run that is asked to stop saves and leaves with 75") {
  const vmoba::test::TemporaryFolder folder;
  const std::string out = folder.path() + "/codec.safetensors", log = folder.path() + "/log";
  const pid_t pid = vmoba::test::start_process(command(out, {"--steps", "1000000", "--save-every", "0.5"}), log);
  for (int i = 0; i < 600 && !fs::exists(out); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  CHECK(fs::exists(out));  // long before the end
  ::kill(pid, SIGTERM);
  CHECK(vmoba::test::wait_process(pid) == 75);
  CHECK(contains(vmoba::test::read_text(log), "saved"));
}

TEST_CASE("vmoba-train-codec refuses what it cannot do") {
  const vmoba::test::TemporaryFolder folder;
  const std::string out = folder.path() + "/codec.safetensors";
  const ProcessResult no_end = run_process(command(out, {}));
  CHECK(no_end.exit_code == 2);
  CHECK(contains(no_end.output, "expected --steps or --seconds above 0"));
  const ProcessResult nowhere = run_process(command(folder.path() + "/missing/codec.safetensors", {"--steps", "1"}));
  CHECK(nowhere.exit_code == 2);
  CHECK(contains(nowhere.output, "--out"));
  CHECK_FALSE(fs::exists(out));
}
