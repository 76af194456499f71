#include "core/json.h"

#include <algorithm>

#include "core/file.h"
#include "core/file_kind.h"

namespace vmoba {
namespace {

using nlohmann::json;

// Reads without keeping anything: where and why a text is no JSON.
class Refusal : public nlohmann::json_sax<json> {
 public:
  explicit Refusal(std::string_view text) { json::sax_parse(text.begin(), text.end(), this); }

  size_t byte() const { return byte_; }  // from 1
  const std::string& reason() const { return reason_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return true; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    byte_ = position;
    reason_ = reason_of(error.what());
    return false;
  }

 private:
  // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..." without its number and place.
  // It repeats the token at fault, which may be long.
  static std::string reason_of(const std::string& what) {
    constexpr size_t kMost = 200;
    const size_t number = what.find("] "), place = what.find(": ");
    const size_t from = what.find(" at line ") < place ? place : number;
    std::string out = from == std::string::npos ? what : what.substr(from + 2);
    if (out.size() > kMost) out.replace(kMost, std::string::npos, "...");
    return out;
  }

  size_t byte_ = 0;
  std::string reason_;
};

// What JSON allows and is refused here. A zero character would cut every message that quotes its text.
struct Unwanted {
  size_t byte = 0;  // from 1; 0: nothing
  std::string what;
};

Unwanted find_unwanted(std::string_view text) {
  int64_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') {
      if (text.substr(i, 6) == "\\u0000") return {i + 1, "a zero character (\\u0000); take it out"};
      ++i;
    } else if (c == '"') {
      in_string = !in_string;
    } else if (!in_string && (c == '[' || c == '{')) {
      if (++depth > kMaxJsonDepth) return {i + 1, fmt::format("more than {} levels", kMaxJsonDepth)};
    } else if (!in_string && (c == ']' || c == '}')) {
      --depth;
    }
  }
  return {};
}

[[noreturn]] void refuse(std::string_view text, const std::string& origin, int64_t first_line, size_t byte,
                         const std::string& reason) {
  const std::string_view before = text.substr(0, std::min(text.size(), byte == 0 ? 0 : byte - 1));
  const size_t newline = before.rfind('\n');
  throw_input("expected JSON in {}:{}:{}, found: {}", origin,
              first_line + std::count(before.begin(), before.end(), '\n'),
              1 + before.size() - (newline == std::string_view::npos ? 0 : newline + 1), reason);
}

template <typename Json>
Json parse(std::string_view text, const std::string& origin, int64_t first_line) {
  if (const Unwanted unwanted = find_unwanted(text); unwanted.byte > 0)
    refuse(text, origin, first_line, unwanted.byte, unwanted.what);
  Json out = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!out.is_discarded()) return out;
  const Refusal refusal(text);
  refuse(text, origin, first_line, refusal.byte(), refusal.reason());
}

}  // namespace

json parse_json(std::string_view text, const std::string& origin, int64_t first_line) {
  return parse<json>(text, origin, first_line);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& origin) {
  return parse<nlohmann::ordered_json>(text, origin, 1);
}

std::optional<json> try_parse_json(std::string_view text) {
  if (find_unwanted(text).byte > 0) return std::nullopt;
  json out = json::parse(text, nullptr, /*allow_exceptions=*/false);
  return out.is_discarded() ? std::nullopt : std::optional<json>(std::move(out));
}

json read_json(const std::string& path, int64_t max_bytes, const std::string& what) {
  const std::string text = read_file(path, max_bytes, what);
  try {
    return parse_json(text, path);
  } catch (const Error& error) {
    const std::string kind = what_is_this(path);
    if (kind.empty() || kind == "a JSON text" || kind.starts_with("a text that begins with"))
      throw_input("{}; the file should be {}", error.what(), what);
    throw_input("expected {} at '{}', found {}", what, path, kind);
  }
}

std::optional<int64_t> json_count(const json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t(INT64_MAX)) return std::nullopt;
  return value.get<int64_t>();
}

}  // namespace vmoba
