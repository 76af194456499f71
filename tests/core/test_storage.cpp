// Waiting for storage that fails for a while.
#include "core/storage.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
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

namespace {

// A pipe whose reader waits in the kernel until somebody writes, as for a server that does not answer.
struct Pipe {
  int ends[2] = {-1, -1};
  Pipe() { REQUIRE(::pipe(ends) == 0); }
  ~Pipe() {
    ::close(ends[0]);
    ::close(ends[1]);
  }
  void answer() const { REQUIRE(::write(ends[1], "x", 1) == 1); }
};

}  // namespace

TEST_CASE("a watched read returns and throws as it does alone") {
  Outage outage;
  const auto value = std::make_shared<int>(0);
  run_watched("a", 1, outage, nullptr, [value](ReadWatch&) { *value = 42; });
  CHECK(*value == 42);
  CHECK(value.use_count() == 1);  // the thread keeps nothing
  CHECK_THROWS_AS(
      run_watched("a", 1, outage, nullptr, [](ReadWatch&) { throw StorageError(ErrorKind::kInput, "broken", 0); }),
      StorageError);
}

TEST_CASE("a read that never returns is said, counted as a wait, and left behind when patience ends") {
  const auto pipe = std::make_shared<Pipe>();
  const auto returned = std::make_shared<std::atomic<bool>>(false);
  Outage outage;
  std::atomic<int> waits{0};
  std::atomic<bool> over{false};
  std::thread witness([&] {
    while (!over) {
      waits = std::max(waits.load(), storage_waits());
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  bool waited_out = false;
  const std::string said = test::capture_stderr([&] {
    const double s = seconds_of([&] {
      try {
        run_watched("/data/a.mp4", 12, outage, nullptr, [pipe, returned](ReadWatch&) {
          char byte = 0;
          *returned = ::read(pipe->ends[0], &byte, 1) == 1;
        });
      } catch (const StorageError& error) {
        waited_out = error.waited_out() && error.transient();
      }
    });
    CHECK(s > 11);
    CHECK(s < 20);
  });
  over = true;
  witness.join();
  CHECK(waited_out);
  CHECK(waits == 1);
  CHECK(storage_waits() == 0);
  CHECK(outage.seconds() > 1);
  CHECK(
      contains(said, "waiting for the storage, for 2 s more (data.patience_s): /data/a.mp4: a read has not returned"));
  pipe->answer();  // the thread ends by itself
  for (int i = 0; i < 500 && pipe.use_count() > 1; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(*returned);
  CHECK(pipe.use_count() == 1);
}

TEST_CASE("a stop does not wait for a read that never returns, and a slow one that goes on is not left") {
  const auto pipe = std::make_shared<Pipe>();
  Outage outage;
  const std::atomic<bool> cancel{true};
  const double s = seconds_of([&] {
    CHECK_THROWS_AS(run_watched("a", 600, outage, &cancel,
                                [pipe](ReadWatch&) {
                                  char byte = 0;
                                  if (::read(pipe->ends[0], &byte, 1) != 1) return;
                                }),
                    StorageError);
  });
  CHECK(s < 8);
  pipe->answer();
  const auto parts = std::make_shared<int>(0);
  run_watched("a", 0, outage, nullptr, [parts](ReadWatch& watch) {
    for (; *parts < 12; ++*parts) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      watch.part_read();
    }
  });
  CHECK(*parts == 12);
}
