// JSON that somebody else wrote: every way in which it can be wrong is an Error(kInput) that names the file.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/check.h"

namespace vmoba {

// `origin` names the text: a path, or "the metadata of <path>". The message says `<origin>:<line>:<column>`.
nlohmann::json parse_json(std::string_view text, const std::string& origin);

// As read_file (core/file.h) and parse_json.
nlohmann::json read_json(const std::string& path, int64_t max_bytes, const std::string& what);

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
