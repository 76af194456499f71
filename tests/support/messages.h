// What errors and outputs say: small helpers that most test programs use.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/check.h"
#include "support/catch.h"

namespace vmoba::test {

// The message of the Error of this kind that `action` throws; "" where it throws none.
inline std::string error_of(ErrorKind kind, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(error.kind() == kind);
    return error.what();
  }
  return "";
}

// The same for what the user gave.
inline std::string refusal_of(const std::function<void()>& action) {
  return error_of(ErrorKind::kInput, action);
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0, end; (end = text.find('\n', at)) != std::string::npos; at = end + 1)
    lines.push_back(text.substr(at, end - at));
  return lines;
}

}  // namespace vmoba::test
