// Errors. Library code throws vmoba::Error; only main catches (apps/main_guard.h), logs and sets the exit code.
// A message says, in this order: what was expected, what was found, which key, file or command to change.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace vmoba {

enum class ErrorKind {
  kRuntime,  // exit code 1: a computation, device or file system failed
  kInput,    // exit code 2: the user's command line, configuration or data is wrong
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

template <typename... Args>
[[noreturn]] void throw_input(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorKind::kInput, fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
[[noreturn]] void throw_runtime(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ErrorKind::kRuntime, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace vmoba

// Conditions on what the user gave (exit code 2) and on everything else (exit code 1).
#define VMOBA_CHECK_INPUT(condition, ...)             \
  do {                                                \
    if (!(condition)) ::vmoba::throw_input(__VA_ARGS__); \
  } while (false)
#define VMOBA_CHECK(condition, ...)                     \
  do {                                                  \
    if (!(condition)) ::vmoba::throw_runtime(__VA_ARGS__); \
  } while (false)
