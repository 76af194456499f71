// A job of several ranks that runs until a test does something to it.
#pragma once
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.h"
#include "support/process.h"
#include "train/dist/train_job.h"

namespace vmoba::test {

// Whether the process exists and is more than an exit code that nobody has collected.
inline bool runs(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(stat, text);
  const size_t name_end = text.rfind(") ");
  return name_end != std::string::npos && text[name_end + 2] != 'Z';
}

// A job that runs until something happens to it.
class Job {
 public:
  Job(int ranks, const std::string& run_dir, const std::vector<std::string>& extra) : run_dir_(run_dir) {
    std::vector<std::string> all = {"train.steps=100000", "train.checkpoint_every=5"};
    all.insert(all.end(), extra.begin(), extra.end());
    pid_ = start_process(train_command(ranks, kTiny, run_dir, all), log(), kEnvironment);
  }
  ~Job() {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
  }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  void wait_for_steps(size_t steps) const {
    for (int i = 0; i < 1500 && metrics_lines() < steps; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    INFO(output());
    REQUIRE(metrics_lines() >= steps);
  }
  void wait_until(const std::function<bool()>& happened) const {
    bool done = false;
    for (int i = 0; i < 3000 && !(done = happened()); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    INFO(output());
    REQUIRE(done);
  }
  // Of every rank, from the line that each writes at its start.
  std::map<int, pid_t> ranks() const {
    static const std::regex line(R"(rank (\d+) of \d+ \(mpirun\) on [^,]+, pid (\d+),)");
    const std::string text = output();
    std::map<int, pid_t> out;
    for (std::sregex_iterator found(text.begin(), text.end(), line), end; found != end; ++found)
      out[std::stoi((*found)[1])] = pid_t(std::stol((*found)[2]));
    return out;
  }
  // The launcher's exit code; every rank must be gone within `seconds`.
  int end(double seconds) {
    const auto pids = ranks();
    const std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    const int code = wait_process(pid_);
    pid_ = 0;
    INFO(output());
    CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds);
    // No orphans: the launcher may leave before the last of them is quite gone.
    for (const auto& [rank, pid] : pids) {
      while (runs(pid) && std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      CHECK_FALSE(runs(pid));
    }
    return code;
  }
  std::string output() const { return read_text(log()); }

 private:
  std::string log() const { return run_dir_ + ".log"; }
  size_t metrics_lines() const {
    const std::string text =
        std::filesystem::exists(run_dir_ + "/metrics.jsonl") ? read_text(run_dir_ + "/metrics.jsonl") : "";
    return size_t(std::count(text.begin(), text.end(), '\n'));
  }

  std::string run_dir_;
  pid_t pid_ = 0;
};

}  // namespace vmoba::test
