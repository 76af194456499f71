#include "core/log.h"

#include <regex>
#include <thread>
#include <vector>

#include "core/check.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/stderr_capture.h"

using namespace vmoba;
using test::lines_of;

namespace {

}  // namespace

TEST_CASE("levels are read from their names and filter the lines") {
  CHECK(log_level_from_name("debug") == LogLevel::kDebug);
  CHECK(log_level_from_name("info") == LogLevel::kInfo);
  CHECK(log_level_from_name("warning") == LogLevel::kWarning);
  CHECK(log_level_from_name("error") == LogLevel::kError);
  CHECK_THROWS_AS(log_level_from_name("loud"), Error);

  const std::string text = test::capture_stderr([] {
    set_log_level(LogLevel::kWarning);
    log_info("hidden {}", 1);
    log_warning("shown {}", 2);
    log_error("also {}", 3);
    set_log_level(LogLevel::kInfo);
    log_debug("hidden {}", 4);
    log_info("last {}", 5);
  });
  const auto lines = lines_of(text);
  REQUIRE(lines.size() == 3);
  CHECK(std::regex_match(lines[0], std::regex("\\d\\d:\\d\\d:\\d\\d warning shown 2")));
  CHECK(std::regex_match(lines[1], std::regex("\\d\\d:\\d\\d:\\d\\d error also 3")));
  CHECK(std::regex_match(lines[2], std::regex("\\d\\d:\\d\\d:\\d\\d info last 5")));
}

TEST_CASE("a message is text: braces and percent signs in it mean nothing") {
  const std::string text = test::capture_stderr([] { log_message(LogLevel::kInfo, "{} 100% {0} %s %v {"); });
  CHECK(text.find("info {} 100% {0} %s %v {\n") != std::string::npos);
}

TEST_CASE("lines of several threads stay whole") {
  const std::string text = test::capture_stderr([] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([t] {
        for (int i = 0; i < 50; ++i) log_info("thread {} says {}", t, std::string(200, char('a' + t)));
      });
    for (std::thread& thread : threads) thread.join();
  });
  const auto lines = lines_of(text);
  REQUIRE(lines.size() == 200);
  const std::regex whole("\\d\\d:\\d\\d:\\d\\d info thread \\d says (a+|b+|c+|d+)");
  for (const std::string& line : lines) {
    CHECK(line.size() == lines[0].size());
    CHECK(std::regex_match(line, whole));
  }
}

TEST_CASE("with several ranks a line names its own") {
  const std::string text = test::capture_stderr([] {
    set_log_rank(3, 8);
    log_info("hello");
  });
  CHECK(text.find("info [rank 3] hello\n") != std::string::npos);
  set_log_rank(0, 1);
  CHECK(test::capture_stderr([] { log_info("alone"); }).find("rank") == std::string::npos);
}

TEST_CASE("a status line stays below the log lines and goes when it is taken away") {
  const std::string text = test::capture_stderr([] {
    set_status_line("step 1/10");
    log_info("saved");
    set_status_line("step 2/10");
    set_status_line("");
    log_info("done");
  });
  const std::regex expected("step 1/10" + std::string("\r\x1b\\[K") + "\\d\\d:\\d\\d:\\d\\d info saved\n" +
                            "step 1/10\r\x1b\\[Kstep 2/10\r\x1b\\[K" + "\\d\\d:\\d\\d:\\d\\d info done\n");
  INFO(text);
  CHECK(std::regex_match(text, expected));
}
