// Waiting for storage that fails for a while.
#include "core/storage.h"

#include <cerrno>
#include <thread>

#include "core/file.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"
#include "support/stderr_capture.h"

using namespace vmoba;
using test::contains;

namespace {

double seconds_of(const std::function<void()>& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Fails so often with this errno, then succeeds.
struct Flaky {
  int failures, error_number, calls = 0;
  int operator()() {
    if (++calls <= failures) throw StorageError(ErrorKind::kInput, "broken", error_number);
    return 42;
  }
};

}  // namespace

TEST_CASE("a failing storage is waited for, with a line that says for what") {
  Flaky action{2, EIO};
  Outage outage;
  const std::string said = test::capture_stderr(
      [&] { CHECK(with_patience("/data/a.mp4", 30, outage, nullptr, [&] { return action(); }) == 42); });
  CHECK(action.calls == 3);
  CHECK(contains(said, "waiting for the storage"));
  CHECK(contains(said, "/data/a.mp4"));
  CHECK(contains(said, "answers again"));
  CHECK(storage_waits() == 0);
}

TEST_CASE("damage is not waited for") {
  Flaky action{2, 0};
  Outage outage;
  CHECK_THROWS_AS(with_patience("a", 30, outage, nullptr, [&] { return action(); }), StorageError);
  CHECK(action.calls == 1);
}

TEST_CASE("patience ends, and an outage that has lasted for it is not waited for again") {
  Outage outage;
  const auto fail = [&] {
    Flaky action{1000, ESTALE};
    CHECK_THROWS_AS(with_patience("a", 0.6, outage, nullptr, [&] { return action(); }), StorageError);
  };
  const double first_s = seconds_of(fail);
  CHECK(first_s > 0.5);
  CHECK(first_s < 10);
  CHECK(seconds_of(fail) < 0.3);
  outage.succeeded();
  CHECK(seconds_of(fail) > 0.5);
}

TEST_CASE("a wait ends where it is cancelled") {
  std::atomic<bool> cancel{false};
  Outage outage;
  std::thread other([&] {
    while (storage_waits() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    cancel = true;
  });
  Flaky action{1'000'000, EIO};
  CHECK_THROWS_AS(with_patience("a", 600, outage, &cancel, [&] { return action(); }), StorageError);
  other.join();
}

TEST_CASE("which errors are worth a wait") {
  for (const int error : {ENOENT, EIO, ESTALE, ETIMEDOUT, ENOTCONN, EAGAIN}) CHECK(is_transient(error));
  for (const int error : {0, EACCES, EISDIR, ENAMETOOLONG, ENOSPC}) CHECK_FALSE(is_transient(error));
  try {
    read_file("/nowhere/at/all", 100, "a file");
    FAIL("not refused");
  } catch (const StorageError& e) {
    CHECK(e.missing());
    CHECK(e.transient());
  }
}
