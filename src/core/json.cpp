#include "core/json.h"

#include <algorithm>

#include "core/file.h"

namespace vmoba {
namespace {

// "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..." without its place and number.
std::string reason_of(const std::string& what) {
  const size_t place = what.find(": ");
  return place == std::string::npos ? what : what.substr(place + 2);
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& origin) {
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    const std::string_view before = text.substr(0, std::min(text.size(), error.byte == 0 ? 0 : error.byte - 1));
    const size_t newline = before.rfind('\n');
    throw_input("expected JSON in {}:{}:{}, found: {}", origin, 1 + std::count(before.begin(), before.end(), '\n'),
                1 + before.size() - (newline == std::string_view::npos ? 0 : newline + 1), reason_of(error.what()));
  }
}

nlohmann::json read_json(const std::string& path, int64_t max_bytes, const std::string& what) {
  return parse_json(read_file(path, max_bytes, what), path);
}

}  // namespace vmoba
