#include "core/progress.h"

#include <algorithm>
#include <regex>

#include "core/log.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/stderr_capture.h"

using namespace vmoba;
using test::contains;
using test::lines_of;

namespace {

ProgressReport report(int64_t step) {
  ProgressReport r;
  r.step = step;
  r.steps = 1000;
  r.loss = 0.51234;
  r.lr = 1e-5;
  r.grad_norm = 1.2345;
  r.tokens_per_s = 12345.6;
  r.density = {{"all", 0.28}, {"spatial", 0.25}, {"temporal", 0.31}};
  r.step_s = 2.0;
  r.data_wait_s = 0.1;
  r.memory_bytes = int64_t{3} << 29;
  return r;
}

}  // namespace

TEST_CASE("the line names everything where there is room") {
  CHECK(format_progress(report(120), 754, 0) ==
        "step 120/1000 | loss 0.5123 | lr 1.00e-05 | grad 1.23 | 12.3k tokens/s | density spatial 0.25 temporal 0.31 "
        "all 0.28 | data 5% | mem 1.5 GiB | ETA 12m34s");
}

TEST_CASE("the line names the share of the GPU's peak where it is known") {
  ProgressReport r = report(120);
  r.mfu = 0.4567;
  CHECK(contains(format_progress(r, 754, 0), "12.3k tokens/s | MFU 46% | density"));
}

TEST_CASE("a narrow terminal gets a shorter line that never wraps") {
  for (int columns = 1; columns < 200; ++columns)
    CHECK(format_progress(report(120), 754, columns).size() <= size_t(columns));
  const std::string middle = format_progress(report(120), 754, 130);
  CHECK(contains(middle, "density all 0.28"));
  CHECK_FALSE(contains(middle, "temporal"));
  ProgressReport late = report(123456);
  late.steps = 250000;
  late.tokens_per_s = 1.2e6;
  for (const ProgressReport& one : {report(120), late}) {
    const std::string usual = format_progress(one, 90061, 79);  // a terminal of 80 columns
    INFO(usual);
    CHECK(contains(usual, "tokens/s"));
    CHECK(contains(usual, "ETA 1d01h"));
    CHECK(contains(usual, "loss 0.5123"));
  }
  const std::string narrow = format_progress(report(120), 754, 79);
  CHECK(contains(narrow, "loss 0.5123"));
  CHECK(contains(narrow, "ETA 12m34s"));
}

TEST_CASE("times are for people") {
  const auto eta = [](double seconds) {
    const std::string line = format_progress(report(1), seconds, 0);
    return line.substr(line.rfind("ETA ") + 4);
  };
  CHECK(eta(0) == "0s");
  CHECK(eta(59.4) == "59s");
  CHECK(eta(59.6) == "1m00s");
  CHECK(eta(3600) == "1h00m");
  CHECK(eta(90061) == "1d01h");
  CHECK(eta(-1) == "?");
  CHECK(eta(1e300) != "");
}

TEST_CASE("plain lines come at the interval, and for the first and the last step") {
  const std::string text = test::capture_stderr([] {
    Progress progress(0, 10.0);
    for (int64_t step = 1; step <= 1000; ++step) progress.update(report(step), 2.0 * double(step));
    progress.finish();
  });
  const auto lines = lines_of(text);
  // Steps 1, 6, 11, ... 996 (2 s each, every 10 s) and 1000.
  REQUIRE(lines.size() == 201);
  CHECK(contains(lines[0], "info step 1/1000 |"));
  CHECK(contains(lines[1], "step 6/1000 |"));
  CHECK(contains(lines[200], "step 1000/1000 |"));
  CHECK(contains(lines[200], "ETA 0s"));
  CHECK_FALSE(contains(text, "\x1b"));
}

TEST_CASE("the remaining time follows the recent steps") {
  const std::string text = test::capture_stderr([] {
    Progress progress(0, 0.0);
    for (int64_t step = 1; step <= 900; ++step) {
      ProgressReport r = report(step);
      r.step_s = step <= 700 ? 10.0 : 1.0;  // 200 steps ago is long past
      progress.update(r, double(step));
    }
  });
  const auto lines = lines_of(text);
  REQUIRE(lines.size() == 900);
  CHECK(contains(lines[0], "ETA 2h46m"));    // 999 steps of 10 s
  CHECK(contains(lines[499], "ETA 1h23m"));  // 500 steps of 10 s
  CHECK(contains(lines[899], "ETA 1m40s"));  // 100 steps of 1 s
}

TEST_CASE("a terminal's line is rewritten in place and log lines go above it") {
  int columns = 0;
  const std::string text = test::capture_terminal(80, [&] {
    columns = terminal_columns();
    Progress progress(columns, 10.0);
    progress.update(report(1), 0.0);
    progress.update(report(2), 0.05);  // too soon after the first: not drawn
    progress.update(report(3), 0.2);
    log_info("saved");
    progress.finish();
  });
  CHECK(columns == 80);
  INFO(text);
  CHECK(text.starts_with("step 1/1000 |"));
  CHECK_FALSE(contains(text, "step 2/1000"));
  CHECK(contains(text, "\r\x1b[Kstep 3/1000 |"));
  CHECK(std::regex_search(text, std::regex("\r\x1b\\[K\\d\\d:\\d\\d:\\d\\d info saved\r?\nstep 3/1000 ")));
  // The line that stood last is left behind as a log line, and nothing after it.
  CHECK(std::regex_search(text, std::regex("\r\x1b\\[K\\d\\d:\\d\\d:\\d\\d info step 3/1000 [^\r\n]*\r?\n$")));
  // Nothing drawn in place is as wide as the terminal.
  for (const std::string& line : lines_of(text)) {
    const std::string drawn = line.substr(0, line.find('\r'));
    CHECK(drawn.size() < 80);
  }
}

TEST_CASE("an abandoned progress line is taken away") {
  const std::string text = test::capture_terminal(100, [] {
    {
      Progress progress(terminal_columns(), 10.0);
      progress.update(report(1), 0.0);
    }
    log_error("it failed");
  });
  INFO(text);
  CHECK(std::regex_search(text, std::regex("\r\x1b\\[K\\d\\d:\\d\\d:\\d\\d error it failed\r?\n$")));
}

TEST_CASE("stderr that is a file has no columns") {
  test::capture_stderr([] { CHECK(terminal_columns() == 0); });
}
