// Lines about long work: none at first, then now and then, and the whole time at the end.
#include "core/work_progress.h"

#include "support/catch.h"
#include "support/messages.h"
#include "support/stderr_capture.h"

using namespace vmoba;
using std::chrono::seconds;
using test::contains;
using test::lines_of;

TEST_CASE("short work is silent, whatever its size") {
  const std::string text = test::capture_stderr([] {
    WorkProgress progress("loading 'x'", 1000);
    const auto start = WorkProgress::Clock::now();
    progress.add(400, start + seconds(1));
    progress.add(600, start + seconds(4));
  });
  CHECK(text.empty());
}

TEST_CASE("long work says how far it is every ten seconds, and at its end") {
  const std::string text = test::capture_stderr([] {
    WorkProgress progress("loading 'x'", 40'000'000'000);
    const auto start = WorkProgress::Clock::now();
    for (int i = 1; i <= 40; ++i) progress.add(1'000'000'000, start + seconds(i));
  });
  const auto lines = lines_of(text);
  REQUIRE(lines.size() == 5);  // after 5, 15, 25 and 35 seconds
  CHECK(contains(lines[0], "loading 'x': 5.0 GB of 40.0 GB (12 %), 35 s left"));
  CHECK(contains(lines[3], "35.0 GB"));
  CHECK(contains(lines[4], "loading 'x': 40.0 GB in 0 s"));
}

TEST_CASE("other things than bytes are counted by their name") {
  const std::string text = test::capture_stderr([] {
    WorkProgress progress("decoding", 21, "latent frames");
    progress.add(7, WorkProgress::Clock::now() + seconds(7));
  });
  CHECK(contains(text, "decoding: 7 latent frames of 21 latent frames (33 %), 14 s left"));
}
