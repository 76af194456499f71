// Logging facade over spdlog, which only log.cpp includes (torch ships another fmt than spdlog wants).
// Lines go to stderr; a line names the rank once set_log_rank was called with more than one rank.
#pragma once
#include <fmt/format.h>

#include <string>
#include <utility>

namespace vmoba {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

void set_log_level(LogLevel level);
LogLevel log_level_from_name(const std::string& name);  // debug | info | warning | error; else Error(kInput)
void set_log_rank(int rank, int world_size);
void log_message(LogLevel level, const std::string& message);

// The line that stays below the log lines when stderr is a terminal (core/progress.h); "" takes it away.
void set_status_line(const std::string& line);
// Columns of the terminal that stderr is; 0 where it is none.
int terminal_columns();

template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace vmoba
