// Ranks of one job that were started with different things: refused before the first step, by name.
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/dist/train_job.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

// Two ranks, the second with keys of its own behind the common ones, and the second's program.
ProcessResult differing(const std::string& dir, const std::vector<std::string>& common,
                        const std::vector<std::string>& second, const std::string& program = kTrain) {
  std::vector<std::string> command = train_command(1, kTiny, dir, common);
  std::vector<std::string> other = train_command(0, kTiny, dir, common);
  other.front() = program;
  command.insert(command.end(), {":", "-n", "1"});
  command.insert(command.end(), other.begin(), other.end());
  command.insert(command.end(), second.begin(), second.end());
  return run_process(command, kEnvironment);
}

}  // namespace

TEST_CASE("a rank with another value of any key is refused, and the key named with both values") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  struct Case {
    std::string key, usual, other;
  };
  for (const Case& c :
       {Case{"train.optimizer.lr", "0.001", "0.002"}, Case{"seed", "7", "8"}, Case{"attention.tau", "0.25", "0.3"},
        Case{"data.fps", "8", "4"}, Case{"parallel.shard", "1", "2"}, Case{"train.checkpoint_every", "5", "7"},
        Case{"run.dir", dir, dir + "2"}}) {
    const ProcessResult result = differing(dir, {"train.steps=3"}, {c.key + "=" + c.other});
    INFO(c.key << "\n" << result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, "the ranks disagree: expected " + c.key + " '" + c.usual + "' as on rank 0"));
    CHECK(contains(result.output, "found " + c.key + " '" + c.other + "' on rank 1"));
  }
  CHECK_FALSE(fs::exists(dir));
  CHECK_FALSE(fs::exists(dir + "2"));
  // What only a rank's own speed depends on may differ.
  const ProcessResult result =
      differing(dir, {"train.steps=3"}, {"data.prefetch_clips=2", "data.decode_threads=1", "run.log_level=debug"});
  INFO(result.output);
  CHECK(result.exit_code == 0);
}

TEST_CASE("a rank that sees other clips at the same path is refused, and the first other clip named") {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/run";
  const auto set = [&](const std::string& name, int64_t clips) {
    fs::create_directories(folder.path() + "/" + name);
    int64_t left = clips;
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(source_dir() + "/assets/clips")) found.push_back(entry.path());
    std::sort(found.begin(), found.end());
    for (const fs::path& path : found) {
      if (path.extension() == ".mp4" && left-- <= 0) continue;
      fs::copy(path, fs::path(folder.path()) / name / path.filename());
    }
    return folder.path() + "/" + name;
  };
  const std::string three = set("three", 3), four = set("four", 4), place = folder.path() + "/data";
  // The path of each rank's host: a link that the second rank's process turns to other files before it starts.
  const std::string script = folder.path() + "/second.sh";
  fs::create_directory_symlink(three, place);
  std::ofstream(script) << "#!/bin/sh\nexec unshare -m sh -c 'mount --bind " << four << " " << three
                        << " && exec \"$@\"' sh " << kTrain << " \"$@\"\n";
  fs::permissions(script, fs::perms::owner_all);
  if (run_process({"unshare", "-m", "true"}).exit_code != 0) return;  // not allowed here
  const ProcessResult result = differing(dir, {"train.steps=3", "data.path=" + place}, {}, script);
  INFO(result.output);
  CHECK(result.exit_code == 2);
  CHECK(contains(result.output, "clip 4"));
  CHECK(contains(result.output, "on rank 1"));
}

TEST_CASE("a rank with another build of the program is refused") {
  const TemporaryFolder folder;
  const std::string other = folder.path() + "/vmoba-train";
  fs::copy_file(kTrain, other);
  std::ofstream(other, std::ios::binary | std::ios::app) << "x";
  const ProcessResult result = differing(folder.path() + "/run", {"train.steps=3"}, {}, other);
  INFO(result.output);
  CHECK(result.exit_code == 2);
  CHECK(contains(result.output, "expected program '"));
  CHECK(contains(result.output, "one build of the program"));
}

TEST_CASE("a rank with another library of the same size, or with another --resume, is refused") {
  const TemporaryFolder folder;
  std::istringstream lines(run_process({"ldd", kTrain}).output);
  std::string name, place;
  for (std::string line; std::getline(lines, line);) {
    if (!contains(line, "libavutil.so")) continue;
    std::istringstream words(line);
    words >> name >> place >> place;  // "libavutil.so.57 => /usr/lib/libavutil.so.57 (0x...)"
  }
  REQUIRE(fs::exists(place));
  const std::string copy = folder.path() + "/" + name, script = folder.path() + "/second.sh";
  fs::copy_file(place, copy);
  {
    std::fstream bytes(copy, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(-1, std::ios::end);  // of the section headers, which no loader reads
    bytes.put('x');
  }
  std::ofstream(script) << "#!/bin/sh\nexport LD_LIBRARY_PATH=" << folder.path() << "\nexec " << kTrain << " \"$@\"\n";
  fs::permissions(script, fs::perms::owner_all);
  const ProcessResult library = differing(folder.path() + "/run", {"train.steps=3"}, {}, script);
  INFO(library.output);
  CHECK(library.exit_code == 2);
  CHECK(contains(library.output, "the ranks disagree: expected library libavutil"));
  const ProcessResult resume = differing(folder.path() + "/run", {"train.steps=3"}, {"--resume", "latest"});
  INFO(resume.output);
  CHECK(resume.exit_code == 2);
  CHECK(contains(resume.output, "found --resume 'latest' on rank 1"));
}

namespace {

// Two ranks, of which the second's reads of one file hang until the marker goes.
struct HungRank {
  HungRank(const std::string& folder, const std::string& name)
      : clips(folder + "/clips"), marker(folder + "/hung"), file(clips + "/" + name) {
    fs::copy(source_dir() + "/assets/clips", clips, fs::copy_options::recursive);
    REQUIRE(fs::exists(file));
    std::ofstream(marker) << "hung";
  }
  std::vector<std::string> command(const std::string& dir, std::vector<std::string> keys) const {
    keys.push_back("data.path=" + clips);
    std::vector<std::string> out = train_command(1, kTiny, dir, keys);
    const std::vector<std::string> other = train_command(0, kTiny, dir, keys);
    out.insert(out.end(), {":", "-n", "1", "env", "LD_PRELOAD=" VMOBA_HUNG_STORAGE, "VMOBA_HUNG_PATH=" + file,
                           "VMOBA_HUNG_WHILE=" + marker});
    out.insert(out.end(), other.begin(), other.end());
    return out;
  }
  std::string clips, marker, file;
};

}  // namespace

TEST_CASE("a rank that hangs while it plans ends the others after parallel.start_timeout_s, and is named") {
  const TemporaryFolder folder;
  const HungRank hung(folder.path(), "09_lift_with_flashlight.txt");
  const auto start = std::chrono::steady_clock::now();
  const ProcessResult result = run_process(
      hung.command(folder.path() + "/run", {"train.steps=3", "parallel.start_timeout_s=5", "parallel.timeout_s=600"}),
      kEnvironment);
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::minutes(5));
  CHECK(contains(result.output,
                 "to finish within 5 s (parallel.start_timeout_s), found these ranks missing: rank 1 on "));
  CHECK(contains(result.output, "in step 0: planning, listing the files"));
  CHECK_FALSE(fs::exists(folder.path() + "/run/metrics.jsonl"));
}

TEST_CASE("a rank that is late within parallel.start_timeout_s is waited for, whatever parallel.timeout_s is") {
  const TemporaryFolder folder;
  const HungRank hung(folder.path(), "09_lift_with_flashlight.mp4");
  const std::string log = folder.path() + "/log", dir = folder.path() + "/run";
  const pid_t job = start_process(
      hung.command(dir, {"train.steps=3", "parallel.start_timeout_s=300", "parallel.timeout_s=3"}), log, kEnvironment);
  for (int i = 0; i < 1200 && !contains(read_text(log), "waiting for the storage"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  std::this_thread::sleep_for(std::chrono::seconds(5));  // longer than parallel.timeout_s
  fs::remove(hung.marker);
  const int code = wait_process(job);
  INFO(read_text(log));
  CHECK(code == 0);
  CHECK(contains(read_text(log), "[rank 1] waiting for the storage"));
  CHECK(fs::exists(dir + "/checkpoint-3"));
}

TEST_CASE("ranks that never start end the others after VMOBA_START_TIMEOUT_S") {
  const TemporaryFolder folder;
  std::vector<std::string> command = train_command(1, kTiny, folder.path() + "/run", {"train.steps=3"});
  command.insert(command.begin() + 1, {"-x", "VMOBA_START_TIMEOUT_S"});
  command.insert(command.end(), {":", "-n", "1", "sleep", "600"});
  const auto start = std::chrono::steady_clock::now();
  const ProcessResult result = run_process(command, {"OMP_NUM_THREADS=1", "VMOBA_START_TIMEOUT_S=4"});
  INFO(result.output);
  CHECK(result.exit_code == 1);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::minutes(5));
  CHECK(contains(result.output, "rank 0 of 2: expected all ranks to start within 4 s (VMOBA_START_TIMEOUT_S)"));
  const ProcessResult wrong = run_process(command, {"OMP_NUM_THREADS=1", "VMOBA_START_TIMEOUT_S=soon"});
  INFO(wrong.output);
  CHECK(wrong.exit_code == 2);
  CHECK(contains(wrong.output, "VMOBA_START_TIMEOUT_S: expected seconds, found 'soon'"));
}

TEST_CASE("a rank that does not come is waited for with a line that says so") {
  const TemporaryFolder folder;
  const std::string log = folder.path() + "/log";
  std::vector<std::string> command = train_command(1, kTiny, folder.path() + "/run", {"train.steps=3"});
  command.insert(command.end(), {":", "-n", "1", "sleep", "120"});
  const pid_t job = start_process(command, log, kEnvironment);
  const auto said = [&] {
    std::ostringstream text;
    text << std::ifstream(log).rdbuf();
    return contains(text.str(), "rank 0 of 2 has waited 10 s for the others to start (MPI_Init)");
  };
  for (int i = 0; i < 1000 && !said(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  CHECK(said());
  ::kill(job, SIGTERM);
  CHECK(wait_process(job) != 0);
}

TEST_CASE("a rank that begins with other weights is refused, and the first other tensor named") {
  const TemporaryFolder folder;
  const std::string base = folder.path() + "/base", place = folder.path() + "/weights";
  train(0, kTiny, base, {"train.steps=2", "train.checkpoint_every=1"});
  if (run_process({"unshare", "-m", "true"}).exit_code != 0) return;  // not allowed here
  fs::copy(base + "/checkpoint-1/transformer", place, fs::copy_options::recursive);
  const std::string script = folder.path() + "/second.sh";
  std::ofstream(script) << "#!/bin/sh\nexec unshare -m sh -c 'mount --bind " << base << "/checkpoint-2/transformer "
                        << place << " && exec \"$@\"' sh " << kTrain << " \"$@\"\n";
  fs::permissions(script, fs::perms::owner_all);
  for (const std::string& way : {std::string("parallel.shard=1"), std::string("lora.rank=2")}) {
    const ProcessResult result =
        differing(folder.path() + "/run", {"train.steps=3", way, "model.weights=" + place}, {}, script);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, "expected the same weights '"));
    CHECK(contains(result.output, "different values on rank 1"));
  }
}
