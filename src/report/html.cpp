#include "report/html.h"

#include <cstdint>
#include <nlohmann/json.hpp>

#include "core/utf8.h"

namespace vmoba::report {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

void add_character(std::string& out, std::string_view character) {
  const char ch = character.front();
  const bool control = (static_cast<unsigned char>(ch) < 0x20 && ch != '\n' && ch != '\t') || ch == 0x7F;
  if (character.size() > 1)
    out += character;
  else if (control)
    out += kReplacement;
  else if (ch == '&')
    out += "&amp;";
  else if (ch == '<')
    out += "&lt;";
  else if (ch == '>')
    out += "&gt;";
  else if (ch == '"')
    out += "&quot;";
  else if (ch == '\'')
    out += "&#39;";
  else
    out += ch;
}

}  // namespace

std::string html_text(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t bytes = utf8_character(text);
    if (bytes == 0)
      out += kReplacement;
    else
      add_character(out, text.substr(0, bytes));
    text.remove_prefix(bytes == 0 ? 1 : bytes);
  }
  return out;
}

std::string script_json(const nlohmann::json& value) {
  std::string out;
  for (const char ch : value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)) {
    if (ch == '<')
      out += "\\u003c";
    else if (ch == '>')
      out += "\\u003e";
    else if (ch == '&')
      out += "\\u0026";
    else
      out += ch;
  }
  return out;
}

std::string data_uri(std::string_view kind, std::string_view bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out = "data:" + std::string(kind) + ";base64,";
  out.reserve(out.size() + 4 * (bytes.size() / 3 + 1));
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += i + k <= bytes.size() ? kDigits[group >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

}  // namespace vmoba::report
