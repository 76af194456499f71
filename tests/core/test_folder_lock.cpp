// Who holds a folder: the living process, whatever the file system knows of locks. Processes are real ones.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>

#include "core/check.h"
#include "core/folder_lock.h"
#include "core/yaml_values.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using test::contains;
namespace fs = std::filesystem;

namespace {

constexpr double kBeat = 0.05, kSilence = 0.6;

FolderLockOptions options(bool kernel_locks) {
  return {kBeat, kSilence, kernel_locks};
}

std::unique_ptr<FolderLock> take(const std::string& path, bool kernel_locks) {
  return std::make_unique<FolderLock>(path, "run.dir 'r'", "choose another run.dir", options(kernel_locks));
}

// A process that holds the lock until it is killed.
class Holder {
 public:
  Holder(const std::string& path, bool kernel_locks) : pid_(::fork()) {
    if (pid_ == 0) {
      const auto lock = take(path, kernel_locks);
      while (true) ::pause();
    }
    while (test::read_text(path).find("heartbeat") == std::string::npos)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ~Holder() { kill(); }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  void signal(int number) const { ::kill(pid_, number); }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

void replace_host(const std::string& path) {
  std::string text = test::read_text(path);
  const size_t at = text.find('\n');
  text.replace(0, at, "host: elsewhere");
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace

TEST_CASE("a living process keeps others out, with and without the kernel's locks") {
  for (const bool kernel_locks : {true, false}) {
    const test::TemporaryFolder folder;
    const std::string path = folder.path() + "/run.lock";
    Holder holder(path, kernel_locks);
    const std::string message = test::error_of(ErrorKind::kInput, [&] { take(path, kernel_locks); });
    INFO(message);
    CHECK(contains(message, "process " + std::to_string(holder.pid()) + " on "));
    CHECK(contains(message, "choose another run.dir"));
    CHECK(fs::exists(path));
  }
}

TEST_CASE("a process that was killed holds nothing") {
  for (const bool kernel_locks : {true, false}) {
    const test::TemporaryFolder folder;
    const std::string path = folder.path() + "/run.lock";
    Holder holder(path, kernel_locks);
    holder.kill();
    CHECK(fs::exists(path));
    const auto start = std::chrono::steady_clock::now();
    const auto lock = take(path, kernel_locks);
    // The kernel knows at once; without it the heartbeat's silence is waited for.
    const double waited = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    CHECK((waited < kSilence) == kernel_locks);
  }
}

TEST_CASE("what another host left counts by its heartbeat, though the kernel gives the lock") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/run.lock";
  {
    Holder holder(path, true);
    holder.kill();
    replace_host(path);
    std::atomic<bool> done{false};
    // Somebody whose locks are not seen here beats on, as a holder does: in place, so that the file is never empty.
    const auto beat = [&](std::ios::openmode mode, int number) {
      std::fstream(path, std::ios::out | std::ios::binary | mode)
          << fmt::format("host: elsewhere\npid: 4\nsince: then\nheartbeat: {:06}\n", number);
    };
    beat(std::ios::trunc, 0);
    std::thread other([&] {
      for (int i = 1; !done; ++i) {
        beat(std::ios::in, i);
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
    });
    const std::string message = test::error_of(ErrorKind::kInput, [&] { take(path, true); });
    done = true;
    other.join();
    INFO(message);
    CHECK(contains(message, "process 4 on elsewhere"));
  }
  CHECK_NOTHROW(take(path, true));
}

TEST_CASE("a lock is gone with its holder, and can be taken again and again") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/run.lock";
  for (int i = 0; i < 3; ++i) {
    const auto lock = take(path, true);
    CHECK(fs::exists(path));
    CHECK_NOTHROW(lock->check());
  }
  CHECK_FALSE(fs::exists(path));
}

TEST_CASE("a holder that stood still learns that another took its place, and leaves the file to it") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/run.lock";
  auto lock = take(path, false);
  std::ofstream(path, std::ios::binary) << "host: elsewhere\npid: 4\nsince: then\nheartbeat: 0\n";
  std::string message;
  for (int i = 0; i < 200 && message.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    try {
      lock->check();
    } catch (const Error& e) {
      message = e.what();
    }
  }
  CHECK(contains(message, "process 4 on elsewhere"));
  lock.reset();
  CHECK(contains(test::read_text(path), "elsewhere"));
}

TEST_CASE("a folder that cannot be written is said") {
  CHECK(contains(test::error_of(ErrorKind::kRuntime, [] { take("/proc/none/run.lock", true); }), "run.dir 'r'"));
}

TEST_CASE("the values of a written configuration, by full key") {
  const auto values = yaml_values(
      "seed: 7\ntrain:\n  optimizer:\n    betas: [0.9, 0.99]\nempty: []\ntext: \"a: b\"\n"
      "experts:\n  - weights: \"x\"\n    until_timestep: 875\n  - weights: \"\"\n",
      "here");
  const std::map<std::string, std::string> expected = {{"seed", "7"},
                                                       {"train.optimizer.betas", "[0.9, 0.99]"},
                                                       {"empty", "[]"},
                                                       {"text", "a: b"},
                                                       {"experts[0].weights", "x"},
                                                       {"experts[0].until_timestep", "875"},
                                                       {"experts[1].weights", ""}};
  CHECK(values == expected);
  CHECK_THROWS_AS(yaml_values("- 1\n", "here"), Error);
  CHECK_THROWS_AS(yaml_values("a: [", "here"), Error);
}
