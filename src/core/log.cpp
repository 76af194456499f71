#include "core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "core/check.h"

namespace vmoba {
namespace {

spdlog::logger& logger() {
  static std::shared_ptr<spdlog::logger> instance = [] {
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    const char* no_color = std::getenv("NO_COLOR");  // https://no-color.org
    if (no_color != nullptr && *no_color != '\0') sink->set_color_mode(spdlog::color_mode::never);
    auto made = std::make_shared<spdlog::logger>("vmoba", sink);
    made->set_pattern("%H:%M:%S %^%l%$ %v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// The status line belongs to the log: whoever writes a line must lift it first and lay it down again behind.
std::mutex status_mutex;
std::string status_line;

void draw_status() {
  if (!status_line.empty()) std::fputs(status_line.c_str(), stderr);
  std::fflush(stderr);
}
void erase_status() {
  if (!status_line.empty()) std::fputs("\r\x1b[K", stderr);
}

}  // namespace

void set_log_level(LogLevel level) {
  logger().set_level(to_spdlog(level));
}

LogLevel log_level_from_name(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  throw_input("expected a log level (debug, info, warning or error), found '{}'", name);
}

void set_log_rank(int rank, int world_size) {
  const std::string who = world_size > 1 ? fmt::format("[rank {}] ", rank) : "";
  logger().set_pattern("%H:%M:%S %^%l%$ " + who + "%v");
}

void log_message(LogLevel level, const std::string& message) {
  if (!logger().should_log(to_spdlog(level))) return;
  const std::lock_guard lock(status_mutex);
  erase_status();
  std::fflush(stderr);
  logger().log(to_spdlog(level), "{}", message);
  draw_status();
}

void set_status_line(const std::string& line) {
  const std::lock_guard lock(status_mutex);
  erase_status();
  status_line = line;
  draw_status();
}

int terminal_columns() {
  if (!::isatty(STDERR_FILENO)) return 0;
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace vmoba
