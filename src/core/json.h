// JSON that somebody else wrote: every way in which it can be wrong is an Error(kInput) that names file, line and
// column.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "core/check.h"

namespace vmoba {

// Copying, comparing and printing a value go down its levels by recursion.
constexpr int64_t kMaxJsonDepth = 100;

// `origin` names the text: a path, or "the metadata of <path>". The message says `<origin>:<line>:<column>`, where the
// text begins at line `first_line`. Deeper nesting than kMaxJsonDepth, numbers beyond double's range and
// zero characters are refused.
nlohmann::json parse_json(std::string_view text, const std::string& origin, int64_t first_line = 1);

// The same with the keys of objects in their order.
nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& origin);

// Nothing where parse_json refuses.
std::optional<nlohmann::json> try_parse_json(std::string_view text);

// As read_file (core/file.h) and parse_json. A file of another kind (core/file_kind.h) is named with its cure.
nlohmann::json read_json(const std::string& path, int64_t max_bytes, const std::string& what);

// Whole numbers from 0 to 2^63 - 1; nothing for other values.
std::optional<int64_t> json_count(const nlohmann::json& value);

// For a message: the value, of which a long one is cut.
template <typename Json>
std::string json_text(const Json& value) {
  constexpr size_t kMost = 100;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kMost) text.replace(kMost, std::string::npos, "...");
  return text;
}

// What `use` returns; what it finds of another type than it asks for, or missing, is an Error too.
template <typename Use>
auto use_json(const std::string& origin, const Use& use) {
  try {
    return use();
  } catch (const nlohmann::json::exception& error) {
    throw_input("'{}': expected other JSON, found: {}", origin, error.what());
  }
}

}  // namespace vmoba
