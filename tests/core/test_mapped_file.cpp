// Files that are cut short while they are mapped: a message that names them instead of a silent end by SIGBUS.
#include "core/mapped_file.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "core/check.h"
#include "support/catch.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::test;

namespace {

constexpr int64_t kBytes = 1 << 20;

std::string made_file(const std::string& folder) {
  const std::string path = folder + "/weights.safetensors";
  std::ofstream(path, std::ios::binary) << std::string(size_t(kBytes), 'x');
  return path;
}

// Runs `action` in a process of its own, stderr to `log`; the exit code, or 128 + the signal.
template <typename Action>
int in_child(const std::string& log, const Action& action) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    if (::freopen(log.c_str(), "w", stderr) == nullptr) ::_exit(9);
    action();
    ::_exit(0);
  }
  return wait_process(pid);
}

}  // namespace

TEST_CASE("a mapped file is read as it is") {
  const TemporaryFolder folder;
  const MappedFile file(made_file(folder.path()), 8, "weights");
  CHECK(file.bytes() == kBytes);
  CHECK(file.data()[kBytes - 1] == 'x');
  std::string copy(5, ' ');
  file.read(100, 5, copy.data());
  CHECK(copy == "xxxxx");
}

TEST_CASE("a touch of the lost part of a mapped file ends the process with a message that names it") {
  const TemporaryFolder folder;
  const std::string path = made_file(folder.path()), log = folder.path() + "/log";
  const int code = in_child(log, [&] {
    guard_mapped_files();
    const MappedFile other(path, 8, "weights"), file(path, 8, "weights");
    if (::truncate(path.c_str(), 4096) != 0) ::_exit(8);
    volatile uint8_t byte = file.data()[kBytes - 1];
    ::_exit(byte == 'x' ? 7 : 6);
  });
  INFO(read_text(log));
  CHECK(code == 1);
  CHECK(read_text(log).find(path) != std::string::npos);
  CHECK(read_text(log).find("cut short") != std::string::npos);
}

TEST_CASE("a bus error of anything else stays what it is") {
  const TemporaryFolder folder;
  const std::string path = made_file(folder.path());
  const int code = in_child(folder.path() + "/log", [&] {
    guard_mapped_files();
    const MappedFile file(path, 8, "weights");
    ::raise(SIGBUS);
    ::raise(SIGBUS);
  });
  CHECK(code == 128 + SIGBUS);
}

TEST_CASE("reading anew finds that the file was cut short") {
  const TemporaryFolder folder;
  const std::string path = made_file(folder.path());
  const MappedFile file(path, 8, "weights");
  REQUIRE(::truncate(path.c_str(), 4096) == 0);
  std::string copy(100, ' ');
  try {
    file.read(4090, 100, copy.data());
    FAIL("not refused");
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find(path) != std::string::npos);
    CHECK(std::string(e.what()).find("cut short") != std::string::npos);
  }
}
